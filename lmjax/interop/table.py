"""A family's table of names: which tensors of a checkpoint are which parameters of ours.

A table is written once, for a layer `{i}` and an expert `{e}`, and names more than a given model has: rows whose
parameters it lacks fall away. So a family needs no rule about biases, heads or sizes of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Container, Iterable, Mapping, Set
from typing import Any

import numpy as np

from lmjax.interop.fields import Fields
from lmjax.interop.layouts import Layout, Matrix, PerExpert, Same, Shape
from lmjax.model.config import ModelConfig
from lmjax.model.heads import HEADS
from lmjax.model.parameter_paths import BACKBONE, EMBEDDING, UNROLLED


@dataclasses.dataclass(frozen=True)
class Row:
    """Some parameters of ours, the tensors of theirs that hold them, and how.

    Attributes:
        ours: paths of the parameters.
        theirs: names of the tensors.
        layout: how.
        given: path of a parameter; in models without it, the row falls away.
        unless: the same in models with it.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout
    given: str = ""
    unless: str = ""

    def applies(self, layer: int, paths: Container[str]) -> bool:
        """Returns whether the other parameters of a layer are those that this row is for."""
        given, unless = self.given.format(i=layer), self.unless.format(i=layer)
        return (not given or given in paths) and unless not in paths


@dataclasses.dataclass(frozen=True)
class TokenizerForm:
    """What transformers takes for granted of the tokenizers of a family.

    Attributes:
        before: roles of the special tokens in front of a text, in a tokenizer that lmjax trained.
        after: the same behind a text.
        types: whether the tokenizer also gives token types.
        own_pipeline: whether transformers reads the tokenizer as the family's own byte-level BPE, whatever its files
            say, so that no other can be written for it.
        kind: the tokenizer class of folders whose files name none; empty: as `lmjax.data.special_tokens` has it.
    """

    before: tuple[str, ...] = ("bos",)
    after: tuple[str, ...] = ()
    types: bool = False
    own_pipeline: bool = False
    kind: str = ""


# The usual forms: of decoders, of encoders, and of encoder-decoders.
DECODER = TokenizerForm()
ENCODER = TokenizerForm(("cls",), ("sep",))
PAIRED = TokenizerForm((), ("eos",))


@dataclasses.dataclass(frozen=True)
class Family:
    """Checkpoints that share a `model_type`.

    Attributes:
        read: from their config.json to the fields of a ModelConfig.
        write: from a ModelConfig to their config.json; what it cannot say is found by reading it again.
        table: the rows.
        heads: by the class named under `architectures`, the heads of ours that such a checkpoint has; the first that
            has all heads of a model is written.
        base: what stands before the names of everything but the heads, except in a checkpoint of the bare model.
        bare: classes of bare models.
        copies: tensors that some checkpoints repeat, and what they repeat.
        constants: tensors that checkpoints may hold though they are a function of the config, and the function.
        ignored: patterns (fnmatch) of tensors that hold no parameter, such as position ids.
        generation: fields of generation by which texts are written where neither file says them.
        aliases: classes by the names that they had in transformers before 3, and the names of today.
        tokenizer: what is taken for granted of its tokenizers.
    """

    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    table: tuple[Row, ...]
    heads: Mapping[str, tuple[str, ...]]
    base: str = ""
    bare: tuple[str, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: Mapping[str, Callable[[ModelConfig], np.ndarray]] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    generation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: TokenizerForm = DECODER

    def rename(self, tensor: str, *, bare: bool) -> str:
        """Returns the name of a tensor, in a checkpoint of the bare model without the base."""
        return tensor.removeprefix(self.base) if bare else tensor

    def names(self, found: Iterable[str]) -> dict[str, str]:
        """Returns what this table calls the tensors of a checkpoint, by their names there.

        Files of a model with a head may lack the base, and those of the bare model may have it, as transformers
        allows: a name that is none of this table's is tried with the base, and without it. Where two tensors would
        get one name, the one that has it already keeps it.
        """
        found = set(found)
        known = self._pattern.fullmatch
        names = {}
        for name in sorted(found):
            others = (f"{self.base}{name}", name.removeprefix(self.base))
            names[name] = next((x for x in others if not known(name) and known(x) and x not in found), name)
        return names

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Returns what matches the name of any tensor of the table, of any layer and expert."""
        named = {name for row in self.table for name in row.theirs} | {*self.copies, *self.constants}
        escaped = (re.escape(name).replace(r"\{i\}", r"\d+").replace(r"\{e\}", r"\d+") for name in sorted(named))
        return re.compile("|".join(escaped))

    def of_a_head(self, tensor: str) -> bool:
        """Returns whether a tensor of the table stands behind the hidden states, and in no layer."""
        rows = (row for row in self.table if tensor in row.theirs)
        return any(not row.ours[0].startswith((f"{BACKBONE}/", f"{EMBEDDING}/")) for row in rows)

    def has_head(self, head: str, tensors: Container[str]) -> bool:
        """Returns whether a checkpoint with these tensors has a head."""
        subtree = HEADS[head].subtree
        return any(row.ours[0].startswith(f"{subtree}/") and row.theirs[0] in tensors for row in self.table)

    def ends(self, paths: Set[str]) -> set[str]:
        """Returns the tensors outside of layers that a model with these parameters has."""
        return {name for row in self.table if paths >= set(row.ours) for name in row.theirs}

    def expand(self, shapes: Mapping[str, Shape]) -> list[Row]:
        """Returns the rows of one model, layers and experts written out.

        Args:
            shapes: of its parameters by path, layers not stacked.
        """
        rows = [r for row in self.table for r in _expanded(row, shapes)]
        covered = [path for row in rows for path in row.ours]
        assert sorted(covered) == sorted(shapes), sorted(set(covered) ^ set(shapes))
        return rows


def _expanded(row: Row, shapes: Mapping[str, Shape]) -> Iterable[Row]:
    numbers = (int(n) for path in shapes for n in re.findall(rf"{UNROLLED}(\d+)/", path))
    for layer in range(1 + max(numbers, default=0) if "{i}" in row.ours[0] else 1):
        ours = tuple(path.format(i=layer) for path in row.ours)
        present = [path in shapes for path in ours]
        # Layers may differ, as those with experts and those without.
        if not any(present) or not row.applies(layer, shapes):
            continue
        assert all(present), ours
        names = tuple(t.replace("{i}", str(layer)) for t in row.theirs)
        if isinstance(row.layout, PerExpert):
            names = tuple(t.format(e=e) for t in names for e in range(shapes[ours[0]][0]))
        yield Row(ours, names, row.layout)


def tensor(ours: str, theirs: str, **layout: Any) -> tuple[Row, ...]:
    """Returns the row of one array as it is."""
    return (Row((ours,), (theirs,), Same(**layout)),)


def linear(ours: str | tuple[str, ...], theirs: str, inputs: int = 1, **layout: Any) -> tuple[Row, ...]:
    """Returns the rows of one or several Dense layers that are one layer of theirs: kernel and bias.

    Args:
        ours: paths of the layers.
        theirs: name of theirs.
        inputs: dimensions of our kernels that are summed over: 2 for attention's `out`.
        **layout: as of `layouts.Matrix`.
    """
    paths = (ours,) if isinstance(ours, str) else ours
    return (
        Row(tuple(f"{p}/kernel" for p in paths), (f"{theirs}.weight",), Matrix(inputs, **layout)),
        Row(tuple(f"{p}/bias" for p in paths), (f"{theirs}.bias",), Matrix(0, **layout)),
    )


def norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """Returns the rows of a normalisation: scale and bias."""
    return (*tensor(f"{ours}/scale", f"{theirs}.weight"), *tensor(f"{ours}/bias", f"{theirs}.bias"))


def attention(ours: str, theirs: str, names: tuple[str, str, str, str], out: str | None = None) -> tuple[Row, ...]:
    """Returns the rows of an attention whose projections are layers of their own.

    Args:
        ours: path of the attention.
        theirs: what their names begin with, a dot included.
        names: of query, key, value and output.
        out: what the output's name begins with, if something else.
    """
    inner = zip(("query", "key", "value"), names[:3], strict=True)
    return (
        *(row for mine, name in inner for row in linear(f"{ours}/{mine}", f"{theirs}{name}")),
        *linear(f"{ours}/out", f"{theirs if out is None else out}{names[3]}", inputs=2),
    )


def experts(ours: str, theirs: str) -> tuple[Row, ...]:
    """Returns the row of one projection of all experts; `theirs` holds `{e}`."""
    return (Row((f"{ours}/kernel",), (f"{theirs}.weight",), PerExpert()),)
