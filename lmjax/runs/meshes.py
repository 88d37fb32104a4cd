"""Meshes, recomputation and microbatches that may suit a run, ranked by an estimate before any is compiled."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lmjax.config import Config, replace
from lmjax.errors import FlagError
from lmjax.model.flops import train_flops
from lmjax.model.language_model import LanguageModel, abstract_params
from lmjax.model.parameters import count_parameters
from lmjax.parallel.chips import Chip
from lmjax.parallel.mesh import make_mesh
from lmjax.runs.build import check_mesh

# The estimate of memory is no more exact than this, so larger ones are left out.
_ROOM = 1.1
# Numbers of embed_dim and of mlp_dim that a layer keeps for a token, and the products that it computes again.
_KEPT = {"none": (14, 3, 0.0), "dots": (7, 1, 0.0), "full": (1, 0, 1 / 3)}


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
    count = count_parameters(abstract_params(config.model, tuple(heads)))
    rows = {
        name: jax.ShapeDtypeStruct((config.batch_size, config.task.length), np.int32)
        for name in ("tokens", "encoder_tokens", "decoder_tokens")
    }
    flops = float(train_flops(model, rows))
    found = [
        Candidate(each, *_estimate(each, count, flops, len(devices), chip)) for each in _layouts(config, list(devices))
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


def _layouts(config: Config, devices: list[jax.Device]) -> Iterator[Config]:
    """Yields the config with every mesh, remat and number of microbatches that divide it."""
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
                check_mesh(made, make_mesh(made.parallel, devices))
            except FlagError:
                continue
            yield from (replace(made, {"model.remat": remat}) for remat in _KEPT)


def _estimate(config: Config, count: int, flops: float, devices: int, chip: Chip) -> tuple[float, float]:
    """Returns the seconds of a step and the bytes of a device, both estimated.

    Products take their time at the peak; the links carry the gathered parameters and scattered gradients of fsdp, the
    summed gradients of data, and four sums of the activations of each layer for tensor.
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
    # Parameters, two moments and gradients in float32, and one layer's working set beside what the layers keep.
    memory = 16 * count / split + kept + logits + part * 14 * model.embed_dim * width
    sent = 3 * config.accumulation * width * count / parallel.tensor * (1 - 1 / parallel.fsdp)
    sent += 2 * 4 * count / split * (1 - 1 / parallel.data)
    sent += 8 * tokens * model.embed_dim * width * model.num_layers * (1 - 1 / parallel.tensor)
    # Keys and values go round once in the forward pass, and with their gradients, in float32, in the backward pass.
    kept_heads = 2 * model.kv_heads * model.width_of_head / parallel.tensor
    sent += tokens * (parallel.sequence - 1) * kept_heads * (2 * width + 4) * model.num_layers
    products, links = flops * (1 + again) / devices / chip.flops, sent / chip.links
    # Links and products work at the same time in part.
    return max(products, links) + 0.2 * min(products, links) + 1e-4 * config.accumulation, memory
