"""Vectors of texts and of words: their neighbours, analogies, the odd one out, and a picture of all of them."""

from __future__ import annotations

import html
import pathlib
from collections.abc import Sequence

import numpy as np

from lmjax.errors import FlagError
from lmjax.evaluation.intervals import required
from lmjax.inference.loaded import LoadedModel
from lmjax.model.parameter_paths import EMBEDDING

# The most words whose names are drawn in a picture.
_NAMED = 60
# About the width of a letter and the height of a line in a picture.
_LETTER, _LINE = 6.2, 12


def word_vectors(loaded: LoadedModel, words: Sequence[str]) -> np.ndarray:
    """Returns float32 `[words, table width]`: the rows of the token table, means over the tokens of a word.

    A word is encoded after a space, as in the middle of a text.

    Raises:
        FlagError: a word has no tokens.
    """
    table, found = np.asarray(loaded.params[EMBEDDING]["table"], np.float32), []
    for word in words:
        ids = loaded.tokenizer.encode(f" {word.strip()}")
        if not ids:
            raise FlagError(f"{word!r} has no tokens; give a word")
        found.append(table[np.asarray(ids)].mean(axis=0))
    return np.stack(found)


def token_vectors(loaded: LoadedModel) -> tuple[list[str], np.ndarray]:
    """Returns the tokens of the vocabulary that are text, without a space before them, and their rows of the table."""
    ids = loaded.tokenizer.text_ids
    texts = [loaded.tokenizer.pieces[i].decode(errors="replace").strip() for i in ids]
    kept = [i for i, text in enumerate(texts) if text]
    return [texts[i] for i in kept], np.asarray(loaded.params[EMBEDDING]["table"], np.float32)[ids[kept]]


def cosines(vectors: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Returns float64 `[vectors, queries]`, the cosines of vectors `[vectors, width]` and `[queries, width]`."""
    x, y = _unit(vectors), _unit(to)
    return x @ y.T


def neighbours(
    vectors: np.ndarray, query: np.ndarray, count: int, without: Sequence[int] = ()
) -> list[tuple[int, float]]:
    """Returns the numbers of the vectors with the largest cosines with a query `[width]`, and these cosines."""
    found = cosines(vectors, query[None])[:, 0]
    found[list(without)] = -np.inf
    order = np.argsort(-found, kind="stable")[:count]
    return [(int(i), float(found[i])) for i in order if np.isfinite(found[i])]


def analogy(vectors: np.ndarray, first: int, second: int, third: int, count: int = 5) -> list[tuple[int, float]]:
    """Returns what is to the third as the second is to the first, by 3CosAdd, and the sums of cosines.

    The three themselves are left out (Levy and Goldberg 2014, "Linguistic Regularities in Sparse and Explicit Word
    Representations", equation 3).
    """
    x = _unit(vectors)
    found = x @ (x[second] - x[first] + x[third])
    found[[first, second, third]] = -np.inf
    order = np.argsort(-found, kind="stable")[:count]
    return [(int(i), float(found[i])) for i in order if np.isfinite(found[i])]


def odd_one_out(vectors: np.ndarray) -> int:
    """Returns the number of the vector with the least cosine with the mean of all, each of unit length."""
    x = _unit(vectors)
    return int(np.argmin(x @ x.mean(axis=0)))


def project(vectors: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Returns float64 `[vectors, 2]`.

    Args:
        vectors: `[vectors, width]`.
        method: pca; or with cosines, tsne (van der Maaten and Hinton 2008) or umap (McInnes et al. 2018,
            arXiv:1802.03426, by umap-learn).
        seed: of tsne and umap.

    Raises:
        FlagError: there are fewer than three vectors, or a library is not installed.
    """
    if len(vectors) < 3:
        raise FlagError(f"a picture needs at least three vectors, and there are {len(vectors)}")
    if method == "tsne":
        manifold = required("sklearn.manifold", "explain")
        perplexity = min(30.0, (len(vectors) - 1) / 3)
        made = manifold.TSNE(2, perplexity=perplexity, metric="cosine", init="random", random_state=seed % 2**32)
        return made.fit_transform(np.asarray(vectors, np.float64)).astype(np.float64)
    if method == "umap":
        library = required("umap", "umap")
        near = min(15, len(vectors) - 1)
        # From random places, because the spectral start needs more vectors than dimensions; one job gives one result.
        made = library.UMAP(near, metric="cosine", init="random", random_state=seed % 2**32, n_jobs=1)
        return made.fit_transform(np.asarray(vectors, np.float64)).astype(np.float64)
    x = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    # The sign of a component is arbitrary: its largest number is positive here.
    u = u * np.sign(u[np.abs(u).argmax(axis=0), np.arange(u.shape[1])])[None]
    found = (u * s[None])[:, :2]
    return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def scatter(points: np.ndarray, names: Sequence[str]) -> str:
    """Returns a picture of points `[points, 2]` as SVG; each tells its name when it is pointed at.

    The names of some are written beside them where they cover no other name.
    """
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.maximum(high - low, 1e-12)
    named = np.linspace(0, len(points) - 1, min(_NAMED, len(points))).astype(int)
    marks, boxes = [], []
    for i, (x, y) in enumerate(scaled):
        place = f"{20 + 860 * x:.1f}", f"{20 + 560 * (1 - y):.1f}"
        short = names[i] if len(names[i]) <= 28 else f"{names[i][:27]}…"
        marks.append(
            f'<circle cx="{place[0]}" cy="{place[1]}" r="4" fill="rgb(var(--up))" fill-opacity="0.7">'
            f"<title>{html.escape(names[i])}</title></circle>"
        )
        if i in named:
            anchor, left = ("end", float(place[0]) - 7) if x > 0.75 else ("start", float(place[0]) + 7)
            width = _LETTER * len(short)
            box = np.array([left - width * (anchor == "end"), float(place[1]), width])
            if any(abs(box[1] - b[1]) < _LINE and box[0] < b[0] + b[2] and b[0] < box[0] + box[2] for b in boxes):
                continue
            boxes.append(box)
            marks.append(
                f'<text x="{left:.1f}" y="{box[1] + 4:.1f}" text-anchor="{anchor}">{html.escape(short)}</text>'
            )
    return f'<svg viewBox="0 0 900 600" width="900" role="img">{"".join(marks)}</svg>'


def write_projector(folder: pathlib.Path, vectors: np.ndarray, names: Sequence[str]) -> None:
    """Writes the files of TensorBoard's projector: vectors, names and the config that names both.

    `tensorboard --logdir=FOLDER` shows them; https://projector.tensorflow.org takes the two TSV files.
    """
    rows = ("\t".join(f"{x:.6g}" for x in row) for row in vectors)
    (folder / "vectors.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = (" ".join(name.split()) or "(empty)" for name in names)
    (folder / "metadata.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = (
        'embeddings {\n  tensor_name: "vectors"\n  tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"\n}\n'
    )
    (folder / "projector_config.pbtxt").write_text(config, encoding="utf-8")


def _unit(vectors: np.ndarray) -> np.ndarray:
    x = np.asarray(vectors, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
