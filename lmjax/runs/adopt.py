"""The parameters that a run takes from the model in `init_from`, and what it says of them at its start."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from lmjax.adapters.model import first_parameters
from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.data.matching import Matched, match_tokens, matched_rows
from lmjax.errors import FlagError
from lmjax.model.adopt import in_family, origins, source_layers
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import abstract_params
from lmjax.model.parameter_paths import BACKBONE, EMBEDDING, UNROLLED
from lmjax.model.parameters import axis_names, count_parameters, flat, overlaid, unflat
from lmjax.model.quantized import quantize_layers
from lmjax.model.transformer import stack_layers
from lmjax.runs.base import known_base
from lmjax.runs.build import Run
from lmjax.runs.learned import learned
from lmjax.runs.pretrained import Pretrained, open_pretrained
from lmjax.runs.teacher import open_teacher
from lmjax.training.fixed import Fixed

PyTree = Any
Shapes = Mapping[str, tuple[int, ...]]


class Beginning(NamedTuple):
    """What a run reads of the model that it starts from.

    Attributes:
        fixed: the arrays that it does not train, which it reads again when it resumes.
        first: returns the initial values of trained parameters, by part of the model; None: all are random.
    """

    fixed: Fixed
    first: Callable[[], dict[str, Any] | None]


def beginning(run: Run, *, progress: bool, resumed: bool) -> Beginning:
    """Returns what a run reads of the model that it starts from.

    Args:
        run: the run.
        progress: whether to print what was loaded.
        resumed: whether the run has a checkpoint, so that nothing is told of its beginning.

    Raises:
        FlagError: shapes are not those of this model, or an adapter's base lacks a part of it.
        CheckpointError: the base of an adapter is gone or has changed.
    """
    config = run.config
    if config.adapter.kind == "none":
        return Beginning(Fixed(teacher=open_teacher(run)), functools.partial(initial_parameters, run, progress))
    base, whole = known_base(config, run.workdir), set(config.adapted.whole)
    with_base = dataclasses.replace(run, config=config.with_fields({"init_from": base.place}))
    given = initial_parameters(with_base, progress, base.step, told=not resumed)
    wanted = flat(abstract_params(run.model.config, run.model.heads))
    if lacking := sorted({path.split("/")[0] for path in wanted.keys() - flat(given).keys()} - whole):
        raise FlagError(
            f"--config.adapter.whole={','.join(config.adapter.whole)}: {base.place} has no {', '.join(lacking)}, so"
            f" that there is nothing to adapt; add {','.join(lacking)}"
        )
    kept = {part: x for part, x in given.items() if part not in whole}
    if config.adapter.base_dtype == "int8":
        kept = quantize_layers(kept)
    own = {part: x for part, x in given.items() if part in whole}
    return Beginning(Fixed(kept, open_teacher(run)), lambda: overlaid(own, first_parameters(run.model, kept)))


def initial_parameters(
    run: Run, progress: bool, step: int | None = None, *, told: bool = True
) -> dict[str, Any] | None:
    """Returns the parameters of `init_from` by part of the model, or None if the config names no model to start from.

    Args:
        run: the run.
        progress: whether to print what was loaded; else it is logged, if a part is new.
        step: the checkpoint of a workdir; None: the newest.
        told: whether to say anything of it.

    Raises:
        FlagError: their shapes are not those of this model.
    """
    if not run.config.init_from:
        return None
    source = open_pretrained(run.config.init_from, step, run.config.accept_fields)
    wanted = abstract_params(run.model.config, run.model.heads)
    if absent := sorted(set(run.config.fresh) - wanted.keys()):
        raise FlagError(f"--config.fresh={absent[0]}: this model has no such part; choose from {', '.join(wanted)}")
    if _is_changed(run, source.config):
        if run.config.adapter.kind != "none":
            raise FlagError(
                f"--config.adapter.kind={run.config.adapter.kind}: an adapter needs a base of the same family, depth "
                "and vocabulary; turn it into this one first, by a run without an adapter"
            )
        return _Changed(run, source).parameters(progress)
    return _same(run, source, wanted, progress, told)


def _is_changed(run: Run, there: ModelConfig) -> bool:
    """Returns whether a run has another family, depth or vocabulary than the model that it starts from."""
    here, init = run.model.config, run.config.init
    depths = [(m.num_layers, m.num_decoder_layers) for m in (here, there)]
    return (
        here.architecture != there.architecture
        or depths[0] != depths[1]
        or bool(init.layers or init.decoder_layers)
        or init.vocabulary != "same"
    )


def _refuse_shapes(run: Run, ours: Shapes, theirs: Shapes, parts: Collection[str]) -> None:
    """Raises FlagError, with the remedy, for a parameter of these parts whose shape is another one in the source."""
    for path in sorted(ours.keys() | theirs.keys()):
        if path.split("/")[0] in parts and ours.get(path) != theirs.get(path):
            remedy = f"start this part at random with --config.fresh={path.split('/')[0]}"
            if path == f"{EMBEDDING}/table" and run.config.init.vocabulary == "same":
                remedy = "match the rows of two vocabularies with --config.init.vocabulary=pieces"
            raise FlagError(
                f"--init_from={run.config.init_from}: {path} is {theirs.get(path, 'absent')} there and "
                f"{ours.get(path, 'absent')} in this model; give --init_from without fields of the model, or {remedy}"
            )


def _same(run: Run, source: Pretrained, wanted: PyTree, progress: bool, told: bool) -> dict[str, Any]:
    """Returns the parameters of a model of the same family, depth and vocabulary."""
    own = {"scan_layers": run.config.model.scan_layers}
    here, before = (config.vocab_size - config.embedding.padding for config in (run.model.config, source.config))
    if here == before:
        # Rows without a token may be others.
        own |= {"vocab_size": run.model.config.vocab_size, "embedding.padding": run.model.config.embedding.padding}
    there = abstract_params(source.config.with_fields(own), source.heads)
    ours, theirs = ({path: x.shape for path, x in flat(tree).items()} for tree in (wanted, there))
    fresh = set(run.config.fresh)
    parts = (wanted.keys() & there.keys()) - fresh
    _refuse_shapes(run, ours, theirs, parts)
    params = source.params(run.model.config, run.mesh)
    adopted = _adopted(run, ours, theirs, wanted.keys() - parts - fresh)
    if told:
        line = _told(run, wanted, sorted(parts), adopted, sorted(there.keys() - parts))
        _tell(line, progress, wanted.keys() - parts)
    given = {part: params[part] for part in parts}
    for own, other in adopted.items():
        (part, layer), (source_part, source_layer) = own.split("/"), other.split("/")
        given.setdefault(part, {})[layer] = params[source_part][source_layer]
    return given


class _Changed:
    """The parameters of a run whose model has another family, depth or vocabulary than the one that it starts from.

    Both models are compared unrolled; the result has the form of the run's model.
    """

    def __init__(self, run: Run, source: Pretrained):
        """Finds for each parameter the one that it begins as; raises FlagError if the models do not fit."""
        config, there = run.model.config, source.config
        unrolled = {"scan_layers": False}
        self._run, self._source = run, source
        self._there = there.with_fields(unrolled)
        boxed = abstract_params(config.with_fields(unrolled), run.model.heads)
        self._shapes = flat(boxed)
        self._theirs = flat(abstract_params(self._there, source.heads))
        self._vocab = {path: names.index("vocab") for path, names in axis_names(boxed).items() if "vocab" in names}
        self._layers = source_layers(config, there, run.config.init)
        self._origins = self._kept(origins(self._shapes, self._theirs, config, there, self._layers))
        self._check()
        self._matched = self._match()

    def _kept(self, found: Mapping[str, str]) -> dict[str, str]:
        """Returns the origins without the parts that start anew, and without heads of which a parameter is missing."""
        parts = {path.split("/")[0] for path in self._shapes}
        partial = {path.split("/")[0] for path in self._shapes if path not in found} - {BACKBONE}
        fresh = set(self._run.config.fresh)
        kept = {p: origin for p, origin in found.items() if p.split("/")[0] in parts - partial - fresh}
        shapes = ({p: x.shape for p, x in tree.items()} for tree in (self._shapes, self._theirs))
        adopted = _adopted(self._run, *shapes, partial - fresh)
        heads = {p: p.replace(own, adopted[own], 1) for p in self._shapes for own in adopted if p.startswith(f"{own}/")}
        return kept | heads

    def _check(self) -> None:
        """Raises FlagError if fields differ that neither the family, the depth nor the vocabulary explains."""
        run, here = self._run, self._run.model.config
        own = {"vocab_size": here.vocab_size} if run.config.init.vocabulary != "same" else {}
        sizes = {name: getattr(here, name) for name in ("num_layers", "num_decoder_layers")}
        expected = in_family(self._there, here.architecture).with_fields(sizes | own)
        there = flat(abstract_params(expected, run.model.heads))
        ours, theirs = ({path: x.shape for path, x in tree.items()} for tree in (self._shapes, there))
        _refuse_shapes(run, ours, theirs, {p.split("/")[0] for p, origin in self._origins.items() if p in there})

    def _match(self) -> Matched | None:
        """Returns the tokens of the source that stand for those of the run; None: both have the same ids."""
        if self._run.config.init.vocabulary == "same":
            return None
        return match_tokens(load_tokenizer(str(self._source.folder)), self._run.tokenizer)

    def parameters(self, progress: bool) -> dict[str, Any]:
        """Returns the parameters by part, and tells what they begin as."""
        _tell(self._table(), progress, True)
        whole = flat(self._source.params(self._there.with_fields({"param_dtype": "float32"}), self._run.mesh))
        given = unflat({path: self._rows(path, whole[origin]) for path, origin in self._origins.items()})
        return stack_layers(given) if self._run.model.config.scan_layers else given

    def _rows(self, path: str, x: jax.Array) -> jax.Array:
        """Returns a parameter, with the rows of another vocabulary if it has an axis of tokens."""
        dtype = self._shapes[path].dtype
        if self._matched is None or path not in self._vocab:
            return x.astype(dtype)
        axis, by_pieces = self._vocab[path], self._run.config.init.vocabulary == "pieces"
        table = np.moveaxis(np.asarray(x, np.float32), axis, 0)
        rows = matched_rows(table, self._matched, self._shapes[path].shape[axis], by_pieces=by_pieces)
        return jnp.asarray(np.moveaxis(rows, 0, axis), dtype)

    def _table(self) -> str:
        """Returns a table with a row for each module: what it begins as, and its number of parameters."""
        run, sizes = self._run, {path: int(np.prod(x.shape)) for path, x in self._shapes.items()}
        rows: dict[tuple[str, str], int] = {}
        for path, size in sizes.items():
            origin = self._origins.get(path)
            row = (_module(path), "new" if origin is None else _module(origin))
            rows[row] = rows.get(row, 0) + size
        width, other = (max(len(row[i]) for row in rows) for i in range(2))
        here, there = run.model.config, self._there
        lines = [
            f"--init_from={run.config.init_from}: {there.family.label} to {here.family.label}; "
            "optimizer and step start from zero",
            *(f"  {own:<{width}}  {begin:<{other}}  {size:>13,}" for (own, begin), size in rows.items()),
        ]
        lines += [f"  layers of the {side} begin as {_listed(chosen)}" for side, chosen in self._layers.items()]
        if self._matched is not None:
            ids = self._matched.ids
            means = "the mean of " + ("their pieces" if run.config.init.vocabulary == "pieces" else "the table")
            lines.append(
                f"  {np.sum(ids >= 0):,} tokens begin as those of the same text, {np.sum(ids < 0):,} as {means}"
            )
        used = set(self._origins.values())
        if left := dict.fromkeys(_module(path) for path in self._theirs if path not in used):
            lines.append(f"  not used: {_listed(left)}")
        return "\n".join(lines)


def _listed(items: Iterable[Any]) -> str:
    return ", ".join(map(str, items))


def _module(path: str) -> str:
    """Returns the module of a parameter for the table, such as backbone/stack/layer_*/attention."""
    names = re.sub(rf"\b{UNROLLED}\d+", f"{UNROLLED}*", path).split("/")
    end = names.index(f"{UNROLLED}*") + 2 if f"{UNROLLED}*" in names else max(len(names) - 1, 1)
    return "/".join(names[:end])


def _tell(told: str, progress: bool, new: Collection[str] | bool) -> None:
    if progress:
        print(told, file=sys.stderr)
    elif new:
        logging.warning("%s", told)


def _adopted(run: Run, ours: Shapes, theirs: Shapes, new: Collection[str]) -> dict[str, str]:
    """Returns by layer of a new head, as SUBTREE/LAYER, the layer of another head that it begins with.

    Args:
        run: the run.
        ours: the shapes of its parameters by path.
        theirs: those of the model that it starts from.
        new: the parts that this model lacks.
    """
    found = {}
    for head in run.model.head_types.values():
        if head.subtree in new:
            for layer, others in head.adopts(run.model.config).items():
                own = f"{head.subtree}/{layer}"
                shapes = {path.removeprefix(own): x for path, x in ours.items() if path.startswith(f"{own}/")}
                same = (o for o in others if all(theirs.get(f"{o}{end}") == shape for end, shape in shapes.items()))
                found[own] = next(same, None)
    return {own: other for own, other in found.items() if other}


def _told(run: Run, wanted: dict[str, Any], loaded: list[str], adopted: Mapping[str, str], left: list[str]) -> str:
    """Returns a line that says what of the model was loaded, what is new, what was left, and what was reset.

    Args:
        run: the run.
        wanted: the shapes of its parameters by part.
        loaded: the parts that were loaded.
        adopted: by layer of a new part, the layer of another part of the source that it begins with.
        left: the parts that the source has and the model does not.
    """
    sizes = {part: count_parameters(tree) for part, tree in wanted.items()}
    new = [f"{part} ({sizes[part]:,} parameters)" for part in sorted(wanted.keys() - set(loaded))]
    begun = [f"{own} from {other}" for own, other in adopted.items()]
    left = [part for part in left if not any(other.startswith(f"{part}/") for other in adopted.values())]
    known = [f"{name}: {', '.join(map(str, value))}" for name, value in learned(run.config).items()]
    return "; ".join(
        [
            f"--init_from={run.config.init_from}: loaded {', '.join(loaded)} "
            f"({sum(sizes[part] for part in loaded):,} parameters)",
            *([f"new {', '.join(new)}"] if new else []),
            *([f"of these loaded {', '.join(begun)}"] if begun else []),
            *known,
            *([f"not used {', '.join(left)}"] if left else []),
            "optimizer and step start from zero",
        ]
    )
