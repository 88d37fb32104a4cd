"""Compresses a trained model, and writes the smaller one as a workdir."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from pydantic import ValidationError

from lmjax import __version__
from lmjax.compress.calibrate import Batch, batches
from lmjax.compress.layers import changed
from lmjax.compress.methods import METHODS, Method, form_of
from lmjax.compress.sensitivity import figure, sensitivity
from lmjax.compress.structure import SIZES, Smaller
from lmjax.compress.zeros import Zeros, magnitude, share_of_zeros
from lmjax.data.records import USUAL_NAMES
from lmjax.data.sources import read_unsplit
from lmjax.errors import FlagError
from lmjax.evaluation.intervals import required
from lmjax.inference.loaded import LoadedModel
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import abstract_params
from lmjax.model.parameter_paths import is_hidden_matrix, map_named
from lmjax.model.parameters import count_parameters, unboxed
from lmjax.model.quantized import QuantizationConfig, quantize_layers
from lmjax.model.rules import kernel_widths
from lmjax.model.transformer import stack_layers, unstack_layers
from lmjax.runs.best import Step
from lmjax.runs.made import write_model
from lmjax.runs.pretrained import Pretrained, open_pretrained, storage_mesh
from lmjax.runs.trained import loaded_model
from lmjax.runs.workdir import is_unused
from lmjax.training.checkpoint import saved_steps

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Compression:
    """How a model is compressed.

    Attributes:
        method: a name in `compress.methods.METHODS`.
        weights: the form of kernels; None: the usual one of the method.
        group: inputs that share a scale; None: as usual for the form.
        data: texts to calibrate with, as for `lmjax train --data`; empty: none.
        column_names: of tables without a header among them.
        texts: the most of them.
        length: the most tokens of each.
        amount: the share that becomes zero or leaves; None: half.
        pattern: "2:4" keeps two of four inputs; empty: any numbers become zero.
        scope: "global" takes the share of all kernels together; empty: of each.
        rewind: the checkpoint whose numbers the kept ones get (the lottery ticket, Frankle et al. 2020,
            arXiv:1912.05671, section 3); None: they stay as they are.
        sensitivity: a new file for a figure of what each kernel alone does to the outputs; empty: none.
    """

    method: str
    weights: str | None = None
    group: int | None = None
    data: str = ""
    column_names: tuple[str, ...] = ()
    texts: int = 128
    length: int = 128
    amount: float | None = None
    pattern: str = ""
    scope: str = ""
    rewind: int | None = None
    sensitivity: str = ""

    @property
    def chosen(self) -> Method:
        """Returns the method."""
        return METHODS[self.method]

    def check(self) -> None:
        """Raises FlagError for text that the method does not read, or the lack of it."""
        method = self.chosen
        if self.sensitivity:
            self._check_figure()
        if self.sensitivity and method.shrink:
            raise FlagError(f"--sensitivity={self.sensitivity}: --method={self.method} keeps no kernel; leave it out")
        if bool(self.data) != (method.reads or bool(self.sensitivity)):
            needs = "reads no text; leave it out" if self.data else "needs texts like those that the model reads"
            raise FlagError(f"--data={self.data}: --method={self.method} {needs}")
        if self.amount is not None and not 0 <= self.amount < 1:
            raise FlagError(f"--amount={self.amount}: is no share from 0 to below 1; give one such as 0.5")
        if self.amount is not None and not method.takes_amount:
            raise FlagError(f"--amount={self.amount}: --method={self.method} takes no share away; leave it out")
        own = {"pattern": self.pattern, "scope": self.scope, "rewind": self.rewind}
        if not method.prunes and (given := {name: x for name, x in own.items() if x not in (None, "")}):
            name, value = next(iter(given.items()))
            raise FlagError(f"--{name}={value}: --method={self.method} makes no zeros; leave it out")
        if self.pattern and (self.amount is not None or self.scope):
            raise FlagError(
                f"--pattern={self.pattern}: makes two of each four numbers zero; leave out amount and scope"
            )
        if self.scope and method.reads:
            raise FlagError(f"--scope={self.scope}: is for --method=magnitude; leave it out")

    def _check_figure(self) -> None:
        """Raises FlagError for a file that no figure can be written to."""
        path, kinds = pathlib.Path(self.sensitivity), (".svg", ".png", ".pdf")
        if path.suffix not in kinds:
            raise FlagError(f"--sensitivity={path}: is no name of a figure; end it with one of {', '.join(kinds)}")
        if path.exists() or not path.parent.is_dir():
            why = "exists already" if path.exists() else f"there is no folder {path.parent}"
            raise FlagError(f"--sensitivity={path}: {why}; choose another name")
        required("matplotlib.figure", "viz")

    @property
    def share(self) -> float:
        """Returns the share that becomes zero or leaves."""
        return 0.5 if self.amount is None else self.amount

    @property
    def zeros(self) -> Zeros:
        """Returns which numbers become zero."""
        return Zeros(self.share, bool(self.pattern), "global" if self.scope == "global" else "layer")


class Compressed(NamedTuple):
    """What a compression made.

    Attributes:
        parameters: their number before and after; codes count as their numbers.
        bytes: of the parameters in memory, before and after.
        zeros: the share of zeros in the kernels of layers; None: none were made.
    """

    parameters: tuple[int, int]
    bytes: tuple[int, int]
    zeros: float | None = None


def compress(
    place: str | os.PathLike[str],
    how: Compression,
    workdir: pathlib.Path,
    *,
    step: Step = None,
    accept_fields: Sequence[str] = (),
) -> Compressed:
    """Writes a compressed model to a new workdir, and returns what became of its size.

    Args:
        place: the model, as for `open_pretrained`.
        how: the method.
        workdir: the new workdir.
        step: the checkpoint of a workdir, as for `open_pretrained`.
        accept_fields: as for `open_pretrained`.

    Raises:
        FlagError: the method does not fit the model.
    """
    if not is_unused(workdir):
        raise FlagError(f"--to={workdir}: exists and is not empty; choose another")
    above = next(folder for folder in (workdir.absolute(), *workdir.absolute().parents) if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise FlagError(f"--to={workdir}: no folder can be made in {above}; choose another")
    how.check()
    form = form_of(how.method, how.weights, how.group)
    source = open_pretrained(place, step, accept_fields)
    config = _target(source, how, form)
    if how.rewind is not None and how.rewind not in (steps := saved_steps(source.folder)):
        there = ", ".join(map(str, steps)) or "none"
        raise FlagError(f"--rewind={how.rewind}: {source.folder} has no such checkpoint; there are {there}")
    note: dict[str, Any] = {"lmjax": __version__, "model": str(place)} | dataclasses.asdict(how)
    loaded, given = _opened(source, how)
    if how.chosen.change or how.chosen.shrink:
        before = count_parameters(loaded.params), _bytes(source)
        config, params, parts = _by_texts(source, how, config, loaded, given)
        note |= {"kept": {path: kept.tolist() for path, kept in parts.items()}} if parts else {}
    else:
        params = source.params(source.config, storage_mesh(source.config, source.heads))
        before = _sizes(params)
        params = magnitude(params, how.zeros) if how.chosen.prunes else quantize_layers(params, form)
    if how.rewind is not None:
        params = _rewound(params, open_pretrained(place, how.rewind, accept_fields))
    if how.sensitivity:
        unrolled = unstack_layers(params) if source.config.scan_layers else params
        figure(sensitivity(loaded, given, unrolled)).savefig(how.sensitivity)
    share = share_of_zeros(params) if how.chosen.prunes else None
    made = Compressed(*zip(before, _sizes(params), strict=True), share)
    fields = {"optimizer.sparsity.keep_zeros": True} if how.chosen.prunes else {}
    write_model(workdir, dataclasses.replace(source, config=config), params, note, fields)
    return made


def _rewound(params: PyTree, source: Pretrained) -> PyTree:
    """Returns the parameters of a checkpoint, with zeros where pruned ones have them."""
    mesh = storage_mesh(source.config, source.heads)
    return map_named(
        lambda names, own, early: jnp.where(own == 0, 0, early).astype(own.dtype) if is_hidden_matrix(names) else early,
        params,
        source.params(source.config, mesh),
    )


def _opened(source: Pretrained, how: Compression) -> tuple[LoadedModel | None, list[Batch]]:
    """Returns the model ready for inference, and batches of the texts; None if the method does not need it."""
    if not (how.chosen.change or how.chosen.shrink or how.sensitivity):
        return None, []
    loaded = loaded_model(source, dtype="float32")
    if not how.data:
        return loaded, []
    read = read_unsplit(how.data, False, "error", "auto", USUAL_NAMES, header=how.column_names)
    texts = (each.record if each.record is not None else (each.text, None) for each in read)
    return loaded, batches(loaded, texts, how.texts, min(how.length, source.config.max_length))


def _by_texts(
    source: Pretrained, how: Compression, config: ModelConfig, loaded: LoadedModel, given: Sequence[Batch]
) -> Smaller:
    """Returns what a method makes of a model that needs it ready for inference.

    Args:
        source: the model.
        how: the method.
        config: of the compressed model, if its sizes stay.
        loaded: the model ready for inference.
        given: batches of texts.
    """
    if how.chosen.shrink is not None:
        smaller = how.chosen.shrink(loaded, given, how.share)
        sizes = {name: getattr(smaller.config, name) for name in SIZES}
        params, parts = smaller.params, smaller.kept
        config = source.config.with_fields({k: x for k, x in sizes.items() if x != getattr(loaded.config, k)})
    else:
        setting = how.zeros if how.chosen.prunes else config.quantization
        params, parts = changed(loaded, given, how.chosen.change(setting)), {}
    params = stack_layers(params) if source.config.scan_layers else params
    placed = unboxed(abstract_params(config, source.heads))
    return Smaller(config, jax.tree.map(lambda x, own: x.astype(own.dtype), params, placed), parts)


def _bytes(source: Pretrained) -> int:
    """Returns the bytes of a model's parameters."""
    leaves = jax.tree.leaves(unboxed(abstract_params(source.config, source.heads)))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _target(source: Pretrained, how: Compression, form: QuantizationConfig) -> ModelConfig:
    """Returns the config of the compressed model; raises FlagError if the method does not fit the model."""
    there = source.config.quantization
    if there.stored:
        raise FlagError(
            f"--model={source.folder}: is compressed already (quantization.weights={there.weights}); compress the model"
            " that it was made of"
        )
    if how.chosen.change and source.config.moe.num_experts:
        raise FlagError(
            f"--method={how.method}: what each expert reads is not recorded, and {source.folder} has experts; take int8"
        )
    if how.pattern and (odd := [width for width in kernel_widths(source.config).items() if width[1] % 4]):
        raise FlagError(f"--pattern={how.pattern}: {odd[0][0]}={odd[0][1]} is no multiple of 4; give --amount instead")
    if how.chosen.weights == "none":
        return source.config
    try:
        return source.config.with_fields({"quantization": form})
    except ValidationError as e:
        wrong = e.errors()[0]["msg"].removeprefix("Value error, ")
        raise FlagError(f"--method={how.method} --group={form.group}: {wrong}") from e


def _sizes(params: PyTree) -> tuple[int, int]:
    """Returns the number of parameters and their bytes."""
    return count_parameters(params), sum(x.nbytes for x in jax.tree.leaves(params))
