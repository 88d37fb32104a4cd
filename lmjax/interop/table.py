"""A family's table of names: which tensors of a checkpoint hold which of our parameters.

A table is written once, for a layer `{i}` and an expert `{e}`, and covers every model of the family: rows whose
parameters a model lacks are dropped. So a family needs no rules for biases, heads or sizes.
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
    """Some of our parameters, and the tensors of a checkpoint that hold them.

    Attributes:
        ours: paths of the parameters.
        theirs: names of the tensors.
        layout: the conversion between them.
        given: path of a parameter; models without it do not have this row.
        unless: path of a parameter; models with it do not have this row.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Layout
    given: str = ""
    unless: str = ""

    def applies(self, layer: int, paths: Container[str]) -> bool:
        """Returns whether a layer has the parameter `given` and not the parameter `unless`."""
        given, unless = self.given.format(i=layer), self.unless.format(i=layer)
        return (not given or given in paths) and unless not in paths


@dataclasses.dataclass(frozen=True)
class TokenizerForm:
    """What transformers assumes about the tokenizers of a family.

    Attributes:
        before: roles of the special tokens before a text, for a tokenizer that lmjax trained.
        after: roles of the special tokens after a text.
        types: whether the tokenizer also returns token types.
        own_pipeline: whether transformers ignores the files and always builds the family's own byte-level BPE, so that
            no other tokenizer can be exported.
        kind: the tokenizer class of folders whose files name none; empty: the one in `lmjax.data.special_tokens`.
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
        read: converts their config.json to the fields of a ModelConfig.
        write: converts a ModelConfig to their config.json. It need not check that the config can be expressed: export
            reads the result again and compares.
        table: the rows.
        heads: the heads of each class that `architectures` may name; export uses the first class with the model's
            heads.
        base: the prefix of the names of all tensors outside of heads; a checkpoint of the bare model lacks it.
        bare: classes of the model without heads.
        copies: tensors that some checkpoints hold twice, as {copy: original}.
        constants: tensors that checkpoints may hold although they are a function of the config, and the function.
        ignored: patterns (fnmatch) of tensors that hold no parameter, such as position ids.
        generation: defaults of generation settings that are in neither file.
        aliases: the current names of classes by their names in transformers before version 3.
        tokenizer: what transformers assumes about its tokenizers.
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
        """Returns the name of a tensor; in a checkpoint of the bare model it lacks the prefix `base`."""
        return tensor.removeprefix(self.base) if bare else tensor

    def names(self, found: Iterable[str]) -> dict[str, str]:
        """Returns the names of this table by the names of a checkpoint's tensors.

        As in transformers, files of a model with a head may lack the prefix `base`, and those of the bare model may
        have it: a name that is not in this table is tried with the prefix and without it. A name that another tensor of
        the checkpoint already has is not used.
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
        """Returns a pattern that matches the names of all tensors of the table, for any layer and expert."""
        named = {name for row in self.table for name in row.theirs} | {*self.copies, *self.constants}
        escaped = (re.escape(name).replace(r"\{i\}", r"\d+").replace(r"\{e\}", r"\d+") for name in sorted(named))
        return re.compile("|".join(escaped))

    def of_a_head(self, tensor: str) -> bool:
        """Returns whether a tensor of the table belongs to a head: neither to the layers nor to the embeddings."""
        rows = (row for row in self.table if tensor in row.theirs)
        return any(not row.ours[0].startswith((f"{BACKBONE}/", f"{EMBEDDING}/")) for row in rows)

    def has_head(self, head: str, tensors: Container[str]) -> bool:
        """Returns whether a checkpoint with these tensors has a head."""
        subtree = HEADS[head].subtree
        return any(row.ours[0].startswith(f"{subtree}/") and row.theirs[0] in tensors for row in self.table)

    def ends(self, paths: Set[str]) -> set[str]:
        """Returns the names of the tensors outside of layers, for a model with these parameters."""
        return {name for row in self.table if paths >= set(row.ours) for name in row.theirs}

    def expand(self, shapes: Mapping[str, Shape]) -> list[Row]:
        """Returns the rows of one model, with a row for each layer and a tensor for each expert.

        Args:
            shapes: of its parameters by path, with unstacked layers.
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
        # Layers may differ: some have experts, others do not.
        if not any(present) or not row.applies(layer, shapes):
            continue
        assert all(present), ours
        names = tuple(t.replace("{i}", str(layer)) for t in row.theirs)
        if isinstance(row.layout, PerExpert):
            names = tuple(t.format(e=e) for t in names for e in range(shapes[ours[0]][0]))
        yield Row(ours, names, row.layout)


def tensor(ours: str, theirs: str, **layout: Any) -> tuple[Row, ...]:
    """Returns the row of one array whose elements have the same order on both sides."""
    return (Row((ours,), (theirs,), Same(**layout)),)


def linear(ours: str | tuple[str, ...], theirs: str, inputs: int = 1, **layout: Any) -> tuple[Row, ...]:
    """Returns the rows, kernel and bias, of one or several Dense layers that are one layer in the checkpoint.

    Args:
        ours: paths of our layers.
        theirs: name of the checkpoint's layer.
        inputs: the number of input dimensions of our kernels: 2 for attention's `out`.
        **layout: as for `layouts.Matrix`.
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
    """Returns the rows of an attention layer with four separate projections.

    Args:
        ours: path of the attention.
        theirs: prefix of the checkpoint's names, with a dot at its end.
        names: of the query, key, value and output projections.
        out: prefix of the output projection, if it is another one.
    """
    inner = zip(("query", "key", "value"), names[:3], strict=True)
    return (
        *(row for mine, name in inner for row in linear(f"{ours}/{mine}", f"{theirs}{name}")),
        *linear(f"{ours}/out", f"{theirs if out is None else out}{names[3]}", inputs=2),
    )


def experts(ours: str, theirs: str) -> tuple[Row, ...]:
    """Returns the row of one projection of all experts; `theirs` contains `{e}`."""
    return (Row((f"{ours}/kernel",), (f"{theirs}.weight",), PerExpert()),)
