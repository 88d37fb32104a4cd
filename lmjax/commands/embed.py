"""`lmjax embed`: vectors of texts or words, what is near them, and a picture."""

from __future__ import annotations

import importlib.util
import pathlib
import shlex
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags

from lmjax.analysis.figures import new_axes, plain
from lmjax.analysis.page import Part, page
from lmjax.analysis.vectors import (
    analogy,
    neighbours,
    odd_one_out,
    project,
    scatter,
    token_vectors,
    word_vectors,
    write_projector,
)
from lmjax.commands.models import named, opened, prepare
from lmjax.commands.prompts import new_file, unspeakable
from lmjax.commands.texts import read_texts
from lmjax.errors import FlagError
from lmjax.inference.embed import embed
from lmjax.inference.loaded import LoadedModel
from lmjax.phases import phase


def main(values: flags.FlagValues) -> np.ndarray:
    """Returns the vectors, float32 `[texts, width]`."""
    place = values[named(values, "embed")].value
    given = [values["near"].value or "", *values["analogy"].value, *values["odd"].value]
    if wrong := next((found for text in given if (found := unspeakable(text))), ""):
        raise FlagError(f"--near, --analogy and --odd: {wrong}")
    _check(values)
    output = new_file(values["output"].value, kind="folder")
    texts = read_texts(values["data"].value, "data", values["text_field"].value)
    prepare()
    loaded = opened(values, place)
    with phase("computing the vectors"):
        names, vectors = _vectors(loaded, values, texts)
    _tell(loaded, values, names, vectors)
    if output is not None:
        _write(output, values, place, names, vectors)
        print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers written to {output}")
    elif not (values["near"].value or values["analogy"].value or values["odd"].value):
        print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers; see --near=TEXT and --output=DIR")
    return vectors


def _check(values: flags.FlagValues) -> None:
    """Raises FlagError for flags that do not fit together."""
    kind, data = values["of"].value, values["data"].value
    if kind == "tokens" and data:
        raise FlagError(f"--of=tokens and --data={data}: the tokens are those of the vocabulary; leave out --data")
    if kind != "tokens" and not data and not values["odd"].value:
        raise FlagError("lmjax embed needs --data=FILE, the texts or words, or --of=tokens")
    if values["analogy"].value and len(values["analogy"].value) != 3:
        raise FlagError(f"--analogy={','.join(values['analogy'].value)}: give three, as --analogy=man,king,woman")
    if values["odd"].value and len(values["odd"].value) < 3:
        raise FlagError(f"--odd={','.join(values['odd'].value)}: give three or more")


def _vectors(loaded: LoadedModel, values: flags.FlagValues, texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns what the vectors belong to, and the vectors."""
    if values["of"].value == "tokens":
        names, vectors = token_vectors(loaded)
        return names[: values["most"].value], vectors[: values["most"].value]
    names = list(dict.fromkeys([*texts, *values["odd"].value])) if values["odd"].value else list(texts)
    return names, _of(loaded, values, names)


def _of(loaded: LoadedModel, values: flags.FlagValues, texts: Sequence[str]) -> np.ndarray:
    """Returns the vectors of texts or words."""
    if values["of"].value == "texts":
        return embed(loaded, list(texts), batch_size=values["batch_size"].value)
    return word_vectors(loaded, texts)


def _tell(loaded: LoadedModel, values: flags.FlagValues, names: Sequence[str], vectors: np.ndarray) -> None:
    """Prints neighbours, an analogy, and the odd one out."""
    count = values["count"].value
    if near := values["near"].value:
        without = [names.index(near)] if near in names else []
        for i, cosine in neighbours(vectors, _of(loaded, values, [near])[0], count, without):
            print(f"{cosine:.3f}  {names[i]}")
    if three := values["analogy"].value:
        for i, cosine in analogy(vectors, *(_place(name, names, "analogy") for name in three), count):
            print(f"{cosine:.3f}  {names[i]}")
    if odd := values["odd"].value:
        print(odd[odd_one_out(vectors[[_place(name, names, "odd") for name in odd]])])


def _place(name: str, names: Sequence[str], flag: str) -> int:
    """Returns the number of a name; raises FlagError if it is not there."""
    if name not in names:
        raise FlagError(f"--{flag}: {name!r} is not among the {len(names):,} texts or words; add it to --data")
    return list(names).index(name)


def _write(
    output: pathlib.Path, values: flags.FlagValues, place: str, names: Sequence[str], vectors: np.ndarray
) -> None:
    """Writes the vectors, the picture, and the files of the projector."""
    method = values["projection"].value
    points = project(vectors, method)
    output.mkdir()
    np.save(output / "vectors.npy", vectors)
    write_projector(output, vectors, names)
    part = Part("picture", f"Two dimensions by {method}; each point tells its name.", scatter(points, names))
    facts = [("model", place), ("vectors", f"{len(vectors):,}"), ("width", str(vectors.shape[1]))]
    command = shlex.join(["lmjax", "embed", *(a for a in sys.argv[2:] if sys.argv[1:2] == ["embed"])])
    (output / "picture.html").write_text(page("Vectors", facts, [part], command), encoding="utf-8")
    if importlib.util.find_spec("matplotlib"):
        figure, axes = new_axes(9, 6)
        axes.plot(*points.T, "o", markersize=3, alpha=0.6)
        for (x, y), name in zip(points[:60], plain(names[:60]), strict=True):
            axes.annotate(name[:28], (x, y), fontsize=7)
        axes.set_axis_off()
        figure.savefig(output / "picture.png", dpi=150)
