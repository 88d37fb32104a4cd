"""Causes inside a model: activations of one row in the place of those of another, and heads or neurons without effect.

Patching tells which activations carry what differs between two rows (Meng et al. 2022, arXiv:2202.05262, section 2.1;
Zhang and Nanda 2024, arXiv:2309.16042). Ablation tells what the output loses without a part (Michel et al. 2019,
arXiv:1905.10650, section 3).

| what | a column of a grid is |
|---|---|
| `residual`, `attention`, `cross_attention`, `mlp` | a position, whose activation is changed |
| `heads`, `cross_heads` | a head, at all positions |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.analysis.attention import token_texts
from lmjax.analysis.inside import record, shapes
from lmjax.analysis.subject import Subject
from lmjax.analysis.values import Ask, value
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.texts import Text
from lmjax.model import intercept
from lmjax.model.language_model import LanguageModel
from lmjax.nearest import choose
from lmjax.parallel.mesh import batch_shards

PyTree = Any
Fields = Mapping[str, np.ndarray]

_ENDS = {
    "residual": "",
    "attention": "/attention",
    "cross_attention": "/cross_attention",
    "mlp": "/mlp",
    "heads": "/attention/heads",
    "cross_heads": "/cross_attention/heads",
    "neurons": "/mlp/hidden",
}
KINDS = tuple(kind for kind in _ENDS if kind != "neurons")
# Rows that are computed together.
_ROWS = 16


class Grid(NamedTuple):
    """The number of a subject for each layer and column that was changed.

    Attributes:
        values: float64 `[layers, columns]`.
        columns: their names: tokens, or numbers of heads.
        whole: the number of the subject itself; of a patching, of the clean row.
        changed: of a patching, the number for the corrupted row; None: of an ablation.
    """

    values: np.ndarray
    columns: tuple[str, ...]
    whole: float
    changed: float | None = None

    @property
    def effects(self) -> np.ndarray:
        """Returns the share of the difference that a patch restores, or by how much the number falls when ablated.

        Raises:
            FlagError: both rows of a patching have the same number.
        """
        if self.changed is None:
            return self.whole - self.values
        if abs(self.whole - self.changed) < 1e-6:
            raise FlagError("the clean and the corrupted text have the same number; nothing can be restored")
        return (self.values - self.changed) / (self.whole - self.changed)


def patching(clean: Subject, corrupted: Subject, what: str = "residual", side: str | None = None) -> Grid:
    """Returns the number of the clean subject for the corrupted row, with one activation of the clean row at a time.

    Args:
        clean: the row from which activations are taken, and the number.
        corrupted: the row in which they are put; its own number is not used.
        what: which activations, in the table above.
        side: "encoder_" or "decoder_" of an encoder-decoder; None: the side that predicts.

    Raises:
        FlagError: the rows have different numbers of tokens, or the model has no such activations.
    """
    loaded, prefix = clean.loaded, _side(clean, side)
    counts = [{name: int((x > 0).sum()) for name, x in _segments(s.fields).items()} for s in (clean, corrupted)]
    if counts[0] != counts[1]:
        both = " and ".join(str(max(each.values())) for each in counts)
        raise FlagError(f"the clean and the corrupted text have {both} tokens; give texts with as many tokens")
    names = _names(loaded, clean.fields, prefix, what)
    given = record(loaded, clean.fields, names)
    tokens = corrupted.fields[f"{prefix}tokens"][0][: counts[0][f"{prefix}segment_ids"]]
    columns = token_texts(loaded, tokens) if "heads" not in what else None
    changed = _grid(clean, corrupted.fields, given, what, columns)
    start = blended(clean, corrupted.fields, given, what, np.zeros((1, len(names), 1), bool))[0]
    return Grid(*changed, clean.value, float(start))


def ablation(
    subject: Subject,
    what: str = "heads",
    side: str | None = None,
    texts: Sequence[Text] | None = None,
) -> Grid:
    """Returns the number of a subject with one activation at a time set to 0, or to its mean.

    Args:
        subject: the row and the number.
        what: which activations, in the table above; not `residual`.
        side: as for `patching`.
        texts: over whose tokens the means are taken; None: zeros.

    Raises:
        FlagError: the model has no such activations.
    """
    prefix = _side(subject, side)
    names = _names(subject.loaded, subject.fields, prefix, what)
    given = _means(subject, names, prefix, texts)
    tokens = subject.fields[f"{prefix}tokens"][0][subject.fields[f"{prefix}segment_ids"][0] > 0]
    columns = token_texts(subject.loaded, tokens) if "heads" not in what else None
    return Grid(*_grid(subject, subject.fields, given, what, columns), subject.value)


def without_heads(subject: Subject, heads: Sequence[tuple[int, int]], side: str | None = None) -> float:
    """Returns the number of a subject with some heads set to 0 together, each given as (layer, head)."""
    prefix = _side(subject, side)
    names = _names(subject.loaded, subject.fields, prefix, "heads")
    given = _means(subject, names, prefix, None)
    masks = np.zeros((1, len(names), subject.loaded.config.num_heads), bool)
    for layer, head in heads:
        if not (0 <= layer < masks.shape[1] and 0 <= head < masks.shape[2]):
            raise FlagError(f"head {layer}.{head}: there are {masks.shape[1]} layers of {masks.shape[2]} heads, from 0")
        masks[0, layer, head] = True
    return float(blended(subject, subject.fields, given, "heads", masks)[0])


def neurons(subject: Subject, layer: int, side: str | None = None) -> np.ndarray:
    """Returns float64 `[mlp]`: by how much the number falls with each neuron of a layer's MLP set to 0.

    Raises:
        FlagError: there is no such layer, or it has experts.
    """
    prefix = _side(subject, side)
    every = _names(subject.loaded, subject.fields, prefix, "neurons")
    name = f"{prefix.replace('_', '/')}layer_{layer}/mlp/hidden"
    if name not in every:
        raise FlagError(f"layer={layer}: has no MLP; choose one of {len(every)} layers, from 0")
    given = _means(subject, [name], prefix, None)
    masks = np.eye(given[name].shape[-1], dtype=bool)[:, None]
    return subject.value - blended(subject, subject.fields, given, "neurons", masks)


def blended(subject: Subject, fields: Fields, given: Fields, what: str, masks: np.ndarray) -> np.ndarray:
    """Returns float64 `[rows]`: the number of a subject for copies of a row with some activations replaced.

    Args:
        subject: the number.
        fields: of the row.
        given: by name, the new activations of one row.
        what: which activations these are.
        masks: bool `[rows, names, columns]`, which columns of each activation are replaced.
    """
    loaded, found = subject.loaded, []
    size = _ROWS + -_ROWS % batch_shards(loaded.mesh)
    axis = 2 if what in ("heads", "cross_heads", "neurons") else 1
    with loaded.on_devices():
        for start in range(0, len(masks), size):
            part = masks[start : start + size]
            part = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), bool)])
            found.append(
                jax.device_get(
                    _blended(loaded.model, loaded.params, dict(fields), subject.ask, dict(given), part, axis)
                )
            )
    return np.concatenate(found)[: len(masks)].astype(np.float64)


@functools.partial(jax.jit, static_argnames=("model", "axis"))
def _blended(
    model: LanguageModel,
    params: PyTree,
    fields: Mapping[str, jax.Array],
    ask: Ask,
    given: Mapping[str, jax.Array],
    masks: jax.Array,
    axis: int,
) -> jax.Array:
    """Returns float32 `[rows]`, the result of `blended`; `axis`: of the columns in an activation."""
    rows = len(masks)
    copies = {name: jnp.repeat(x, rows, axis=0) for name, x in fields.items()}

    def change(mask: jax.Array, new: jax.Array) -> Callable[[jax.Array], jax.Array]:
        def changed(x: jax.Array) -> jax.Array:
            # Columns beyond those of the mask are padding.
            wide = jnp.pad(mask, ((0, 0), (0, x.shape[axis] - mask.shape[1])))
            return jnp.where(
                wide.reshape(rows, *(-1 if i == axis else 1 for i in range(1, x.ndim))), new.astype(x.dtype), x
            )

        return changed

    changes = {name: change(masks[:, i], given[name]) for i, name in enumerate(sorted(given, key=_layer))}
    return value(model, params, intercept.replace(model, params, copies, changes), copies, ask)


def _layer(name: str) -> int:
    """Returns the number of the layer of an activation."""
    return int(name.partition("layer_")[2].partition("/")[0])


def _grid(
    subject: Subject, fields: Fields, given: Fields, what: str, columns: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the numbers `[layers, columns]` with one cell replaced each, and the names of the columns."""
    if columns is None:
        columns = [str(i) for i in range(subject.loaded.config.num_heads)]
    masks = np.eye(len(given) * len(columns), dtype=bool).reshape(-1, len(given), len(columns))
    found = blended(subject, fields, given, what, masks)
    return found.reshape(len(given), len(columns)), tuple(columns)


def _means(subject: Subject, names: Sequence[str], prefix: str, texts: Sequence[Text] | None) -> dict[str, np.ndarray]:
    """Returns by name the means of activations over the tokens of texts, or zeros, in the form of one row."""
    loaded = subject.loaded
    if texts is None:
        known = shapes(loaded, subject.fields)[0]
        return {name: np.zeros((1, 1, *known[name][2:]), np.float32) for name in names}
    real = loaded.rows(list(texts))[f"{prefix}segment_ids"][: len(texts)] > 0
    return {name: x[real].mean(axis=0)[None, None] for name, x in record(loaded, list(texts), names).items()}


def _names(loaded: LoadedModel, fields: Fields, prefix: str, what: str) -> list[str]:
    """Returns the names of the activations of all layers; raises FlagError if there are none."""
    if what not in _ENDS:
        raise FlagError(f"what={what!r}: {choose('activation', what, KINDS)}")
    start = f"{prefix.replace('_', '/')}layer_"
    known = shapes(loaded, fields)[0]
    ends = (_ENDS[what], "/moe") if what == "mlp" else (_ENDS[what],)
    found = [name for name in known if name.startswith(start) and name.removeprefix(start).lstrip("0123456789") in ends]
    if not found:
        raise FlagError(f"what={what!r}: this {loaded.config.family.label} has no such activations")
    return found


def _side(subject: Subject, side: str | None) -> str:
    """Returns the prefix of a side; raises FlagError if the model does not have it."""
    family = subject.loaded.config.family
    prefixes = [each.prefix for each in family.sides]
    if side is not None and side not in prefixes:
        raise FlagError(f"side={side!r}: this {family.label} has {', '.join(map(repr, prefixes))}")
    return family.predicts if side is None else side


def _segments(fields: Fields) -> dict[str, np.ndarray]:
    return {name: x for name, x in fields.items() if name.endswith("segment_ids")}
