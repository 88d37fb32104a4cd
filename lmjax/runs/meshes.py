"""Meshes, recomputation and microbatches that may suit a run, ranked by an estimate before any is compiled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lmjax.adapters.model import AdaptedModel, abstract_adapter, make_model
from lmjax.config import Config, replace
from lmjax.errors import FlagError
from lmjax.model.flops import train_flops
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.model.parameters import count_parameters
from lmjax.parallel.chips import Chip
from lmjax.parallel.mesh import make_mesh
from lmjax.parallel.roofline import torus_sides
from lmjax.runs.build import check_mesh
from lmjax.runs.pretrained import open_pretrained
from lmjax.runs.teacher import teacher_config

# Sides of a torus over which XLA has no gathers.
_SUMMED = 3
# The estimate of memory is no more exact than this, so larger ones are left out.
_ROOM = 1.1
# Numbers of embed_dim and of mlp_dim that a layer keeps for a token, and the products that it computes again.
_KEPT = {"none": (14, 3, 0.0), "dots": (7, 1, 0.0), "full": (1, 0, 1 / 3)}


class Counts(NamedTuple):
    """Numbers of parameters.

    Attributes:
        trained: those with gradients and moments.
        frozen: those of an adapter's base.
        width: bytes of one of the base.
        teacher: those of a teacher.
    """

    trained: int
    frozen: int = 0
    width: int = 4
    teacher: int = 0


class Candidate(NamedTuple):
    """One way to lay a run out.

    Attributes:
        config: the run's config with its mesh, remat and microbatches.
        seconds: the estimated time of a step.
        memory: the estimated bytes of a device.
    """

    config: Config
    seconds: float
    memory: float

    @property
    def name(self) -> str:
        """Returns what it is, as flags."""
        sizes = self.config.parallel.sizes().items()
        axes = ",".join(f"{axis}={size}" for axis, size in sizes if size != 1) or "data=1"
        return f"--mesh={axes} remat={self.config.model.remat} accumulation={self.config.accumulation}"


def counts_of(config: Config, heads: Sequence[str]) -> Counts:
    """Returns how many parameters a run has, given its heads; without those of a teacher."""
    model = make_model(config.model, tuple(heads), config.adapted)
    whole = abstract_params(config.model, tuple(heads))
    if not isinstance(model, AdaptedModel):
        return Counts(count_parameters(whole))
    base = {part: x for part, x in whole.items() if part not in config.adapted.whole}
    in_codes = config.adapter.base_dtype == "int8" or config.model.quantization.stored
    width = 1 if in_codes else np.dtype(config.model.param_dtype).itemsize
    return Counts(count_parameters(abstract_adapter(model)), count_parameters(base), width)


def candidates(config: Config, heads: Sequence[str], devices: Sequence[jax.Device], chip: Chip) -> list[Candidate]:
    """Returns the layouts that may fit, the fastest first by the estimate.

    The axes expert and sequence stay those of the config.

    Args:
        config: the config, with the size of the vocabulary.
        heads: the heads of its model.
        devices: the devices.
        chip: their figures.

    Raises:
        FlagError: no layout can fit; the message says by how much the smallest one does not.
    """
    model = LanguageModel(config.model, tuple(heads))
    counts = counts_of(config, heads)
    rows = {
        name: jax.ShapeDtypeStruct((config.batch_size, config.task.length), np.int32)
        for name in ("tokens", "encoder_tokens", "decoder_tokens")
    }
    flops = float(train_flops(model, rows, frozen=counts.frozen > 0))
    if config.teacher.place:
        teacher = open_pretrained(config.teacher.place)
        wanted = teacher_config(config, teacher.config)
        counts = counts._replace(teacher=count_parameters(abstract_params(wanted, teacher.heads)))
        # A forward pass, without the two products of each gradient.
        flops += float(train_flops(LanguageModel(wanted, teacher.heads), rows)) / 3
    found = [
        Candidate(each, *_estimate(each, counts, flops, mesh, chip)) for each, mesh in _layouts(config, list(devices))
    ]
    if not found:
        raise FlagError(
            f"--mesh=auto: no mesh of {len(devices)} devices divides {config.batch_size} rows and the model; change "
            "--batch_size or --topology"
        )
    fitting = [each for each in found if each.memory <= _ROOM * chip.memory]
    if not fitting:
        least = min(found, key=lambda each: each.memory)
        raise FlagError(
            f"--mesh=auto: even {least.name} needs about {least.memory / 2**30:.1f} GiB on each device, which has "
            f"{chip.memory / 2**30:.0f}; take a larger --topology, a smaller --batch_size or a smaller model"
        )
    return sorted(fitting, key=lambda each: each.seconds)


def _layouts(config: Config, devices: list[jax.Device]) -> Iterator[tuple[Config, jax.sharding.Mesh]]:
    """Yields the config with every mesh, remat and number of microbatches that divide it, and that mesh."""
    count = len(devices) // (config.parallel.expert * config.parallel.sequence)
    sizes = [size for size in range(1, count + 1) if count % size == 0]
    for fsdp, tensor in itertools.product(sizes, sizes):
        if count % (fsdp * tensor) or tensor > 16:
            continue
        fields = {"parallel.data": count // fsdp // tensor, "parallel.fsdp": fsdp, "parallel.tensor": tensor}
        for accumulation in (1, 2, 4, 8, 16, 32):
            if config.batch_size % accumulation:
                continue
            made = replace(config, fields | {"accumulation": accumulation})
            try:
                mesh = make_mesh(made.parallel, devices)
                check_mesh(made, mesh)
            except FlagError:
                continue
            yield from ((replace(made, {"model.remat": remat}), mesh) for remat in _KEPT)


def _estimate(config: Config, counts: Counts, flops: float, mesh: jax.sharding.Mesh, chip: Chip) -> tuple[float, float]:
    """Returns the seconds of a step and the bytes of a device, both estimated.

    Products take their time at the peak, and the links carry what `least_sent` counts. XLA on a TPU gathers and
    scatters by sums, which send twice the bytes, where a group extends over three sides of the torus (jax 0.10.2,
    libtpu 0.0.42: 4x4x4, not 2x2x2).
    """
    model, parallel = config.model, config.parallel
    embed, mlp, again = _KEPT[model.remat]
    width = 2 if model.dtype == "bfloat16" else 4
    split = parallel.fsdp * parallel.tensor * parallel.expert
    tokens = config.batch_size * config.task.length / (parallel.data * parallel.fsdp * parallel.sequence)
    part = tokens / config.accumulation
    layer = embed * model.embed_dim + mlp * model.mlp_dim * (2 if model.gated_mlp else 1)
    logits = part * model.vocab_size * 8 / parallel.tensor
    if config.task.vocab_chunk:
        logits *= min(1.0, config.task.vocab_chunk / config.task.length)
    kept = part * layer * width * model.num_layers / (1 if model.remat == "full" else parallel.tensor)
    # Parameters, two moments and gradients in float32, what is not trained, what the layers keep, logits, and one
    # layer's working set.
    memory = (
        (16 * counts.trained + counts.width * counts.frozen + width * counts.teacher) / split
        + kept
        + logits
        + part * 14 * model.embed_dim * width
    )
    sent = least_sent(config, parallel.sizes(), counts)
    if torus_sides(mesh, ("fsdp",)) == _SUMMED and parallel.fsdp > 2**_SUMMED:
        sent["fsdp"] *= 2
    products, links = flops * (1 + again) / mesh.size / chip.flops, sum(sent.values()) / chip.links
    # Links and products work at the same time in part.
    return max(products, links) + 0.2 * min(products, links) + 1e-4 * config.accumulation, memory


def least_sent(config: Config, sizes: Mapping[str, int], counts: Counts) -> dict[str, float]:
    """Returns the bytes that a device must send in a step, by axis of the mesh; rings of devices send them.

    Along fsdp, each microbatch gathers the parameters in the forward and in the backward pass and scatters the sum of
    their gradients, all in the compute dtype; an adapter's base has no gradients, and a teacher no backward pass. Codes
    of a base are gathered as such. Along data, the gradients are summed once, those of several microbatches in float32.
    Along tensor, the activations of each layer are summed twice in both passes, and along sequence its keys and values
    go round once in the forward pass, and with their gradients, in float32, in the backward pass. A layer that is
    computed again in the backward pass sums the activations of its attention again.

    Args:
        config: of the run.
        sizes: of the mesh's axes by name.
        counts: the parameters.
    """
    model, width = config.model, 2 if config.model.dtype == "bfloat16" else 4
    tokens = config.batch_size * config.task.length / (sizes["data"] * sizes["fsdp"] * sizes["sequence"])
    sums = 5 if model.remat == "full" else 4
    kept_heads = 2 * model.kv_heads * model.width_of_head / sizes["tensor"]
    rounds = tokens * (sizes["sequence"] - 1) * kept_heads * (2 * width + 4) * model.num_layers
    split = sizes["fsdp"] * sizes["tensor"] * sizes["expert"]
    own = counts.trained / split
    gathered = 3 * width * own + (2 * min(width, counts.width) * counts.frozen + width * counts.teacher) / split
    return {
        "fsdp": config.accumulation * gathered * (sizes["fsdp"] - 1),
        "data": 2 * (width if config.accumulation == 1 else 4) * own * (1 - 1 / sizes["data"]),
        "tensor": 2 * sums * tokens * model.embed_dim * width * model.num_layers * (1 - 1 / sizes["tensor"]),
        "sequence": rounds,
    }
