"""Attribution: how much each token of a row adds to a number of the model's output, by several methods.

| method | what a token's attribution is |
|---|---|
| `gradient` | gradient x input (Shrikumar et al. 2016, arXiv:1605.01713, section 2) |
| `integrated` | integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365, section 3) |
| `smoothgrad` | the mean of gradient x input at noisy inputs (Smilkov et al. 2017, arXiv:1706.03825, section 3) |
| `occlusion` | the fall of the number without the token (Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2) |
| `lime` | its weight in a ridge regression over rows with replaced tokens (Ribeiro et al. 2016, arXiv:1602.04938) |
| `shap` | its Shapley value, by Kernel SHAP (Lundberg and Lee 2017, arXiv:1705.07874, section 4.1) |
| `random` | a random number, with which the others are compared |

Inputs are the rows of the token table, before positions and types are added. A token that is replaced has the vector of
the baseline in its place, and keeps its position; special tokens are never replaced. Signs matter: a negative token
makes the number smaller.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.analysis.subject import Subject
from lmjax.analysis.values import Ask, value
from lmjax.errors import FlagError
from lmjax.evaluation.intervals import required
from lmjax.model import intercept
from lmjax.model.language_model import LanguageModel
from lmjax.nearest import choose
from lmjax.parallel.mesh import batch_shards
from lmjax.schema import Schema
from lmjax.streams import global_stream, prng_key, random_stream

PyTree = Any
Vectors = Mapping[str, jax.Array]

# Rows that are computed together.
_ROWS = 16
# The most points of integrated gradients, and those of a model whose products round their inputs to integers. Its
# gradient is that of the products without rounding, and sums to the change of the number only up to the rounding, so
# that more points do not close the gap (all-MiniLM-L6-v2 with int8_activations: 2e-3 with 64 and with 1024, and the
# same order of the tokens with 16; 2026-11-29).
_MOST_POINTS, _ROUNDED_POINTS = 1024, 64


class AttributionConfig(Schema):
    """Settings of the methods."""

    baseline: Literal["auto", "mask", "pad", "zero"] = Field(
        "auto",
        description="the vector of a replaced token: that of the mask or of padding, or zeros; auto: the mask's if the "
        "tokenizer has one, else zeros",
    )
    tolerance: float = Field(
        1e-3,
        gt=0,
        description="integrated gradients double their points until the completeness gap is at most this, or up to 1024"
        " points; up to 64 in a model that rounds activations",
    )
    samples: int = Field(
        0, ge=0, description="noisy inputs of smoothgrad (0: 32), rows of lime and shap (0: 64 + 8 for each token)"
    )
    noise: float = Field(0.15, gt=0, description="smoothgrad's deviation, as a share of the range of the inputs")
    ridge: float = Field(1.0, gt=0, description="lime's penalty on squared weights")
    width: float = Field(0.25, gt=0, description="lime's kernel width, for the cosine distance to the whole row")
    seed: int = Field(0, ge=0, description="of random draws")


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What the tokens of a subject add to its number.

    Attributes:
        method: its name.
        scores: float64 `[tokens]`, in the order of `Subject.tokens`.
        value: the number for the whole row.
        baseline: the number with all free tokens replaced.
        gap: the distance of the sum of the scores from `value - baseline`, which is 0 for integrated gradients and
            Shapley values; None: the method promises no sum.
        passes: rows that were computed.
    """

    method: str
    scores: np.ndarray
    value: float
    baseline: float
    gap: float | None
    passes: int


def attribute(subject: Subject, method: str, config: AttributionConfig | None = None) -> Attribution:
    """Returns the attributions of the tokens of a subject.

    Args:
        subject: the row and the number.
        method: a name in the table above.
        config: settings; None: the defaults.

    Raises:
        FlagError: no such method, no token that can be left out, or a package of a method is not installed.
    """
    if method not in METHODS:
        raise FlagError(f"--method: {choose('method', method, list(METHODS))}")
    rows = Replaced(subject, AttributionConfig() if config is None else config)
    baseline = float(rows(np.zeros((1, len(subject.free)), bool))[0])
    scores, sums = METHODS[method](rows)
    gap = abs(float(scores.sum()) - (subject.value - baseline)) if sums else None
    return Attribution(method, scores, subject.value, baseline, gap, rows.passes)


class Replaced:
    """The number of a subject as a function of its free tokens: which of them are there, or how far from the baseline.

    Attributes:
        passes: rows that were computed.
    """

    def __init__(self, subject: Subject, config: AttributionConfig):
        self.subject, self.config = subject, config
        self.passes = 0
        loaded = subject.loaded
        self._size = _ROWS + -_ROWS % batch_shards(loaded.mesh)
        self.vectors = _inputs(subject, subject.fields)
        self.base = {name: np.array(x) for name, x in self.vectors.items()}
        kind = config.baseline
        if kind == "auto":
            kind = "mask" if "mask" in loaded.tokenizer.role_ids else "zero"
        fills = self._fills(kind)
        for number in subject.free:
            side, position = subject.tokens[number][:2]
            name = _name(side)
            self.base[name][position] = fills[name][position]

    def _fills(self, kind: str) -> dict[str, np.ndarray]:
        """Returns by name the vectors that replace those of each token, `[length, width]`."""
        if kind == "zero":
            return {name: np.zeros_like(x) for name, x in self.vectors.items()}
        token = getattr(self.subject.loaded.tokenizer, f"{kind}_id")
        fields = {
            name: np.full_like(x, token) if name.endswith("tokens") else x for name, x in self.subject.fields.items()
        }
        return _inputs(self.subject, fields)

    def __call__(self, there: np.ndarray) -> np.ndarray:
        """Returns float64 `[rows]`, the number with some free tokens replaced.

        Args:
            there: bool `[rows, free tokens]`, whether each is there.
        """
        subject, found = self.subject, []
        masks = {name: np.ones((len(there), len(x)), bool) for name, x in self.vectors.items()}
        for i, number in enumerate(subject.free):
            side, position = subject.tokens[number][:2]
            masks[_name(side)][:, position] = there[:, i]
        for start in range(0, len(there), self._size):
            part = {name: _filled(x[start : start + self._size], self._size) for name, x in masks.items()}
            found.append(self._run(_masked, self.vectors, self.base, part))
        self.passes += len(there)
        return np.concatenate(found)[: len(there)].astype(np.float64)

    def gradients(self, shares: np.ndarray, base: Vectors, noise: float = 0.0) -> np.ndarray:
        """Returns float64 `[rows, tokens]`: gradients times the distance of the inputs from a base.

        Args:
            shares: `[rows]`: where between the base (0) and the inputs (1) the gradient of each row is.
            base: `[length, width]` by name.
            noise: the deviation of noise that is added to each row.
        """
        subject, found = self.subject, []
        for start in range(0, len(shares), self._size):
            part = _filled(np.asarray(shares[start : start + self._size], np.float32), self._size)
            key = jax.random.fold_in(prng_key(self.config.seed, "smoothgrad"), start)
            dots = self._run(_gradients, self.vectors, base, part, np.float32(noise), key)
            at = [dots[_name(token.side)][:, token.position] for token in subject.tokens]
            found.append(np.stack(at, axis=1))
        self.passes += len(shares)
        return np.concatenate(found)[: len(shares)].astype(np.float64)

    def _run(self, program: Callable[..., PyTree], *arguments: Any) -> PyTree:
        loaded = self.subject.loaded
        with loaded.on_devices():
            return jax.device_get(
                program(loaded.model, loaded.params, dict(self.subject.fields), self.subject.ask, *arguments)
            )


def gradient_x_input(rows: Replaced) -> tuple[np.ndarray, bool]:
    """Returns the scores of gradient x input, whose sum promises nothing."""
    zeros = {name: np.zeros_like(x) for name, x in rows.vectors.items()}
    return rows.gradients(np.ones(1), zeros)[0], False


def integrated_gradients(rows: Replaced) -> tuple[np.ndarray, bool]:
    """Returns the scores of integrated gradients on the straight line from the baseline, by Gauss and Legendre's rule.

    The points are doubled until the scores sum to the difference of the two ends, within the tolerance.
    """
    nothing = np.zeros((1, len(rows.subject.free)), bool)
    wanted, count = rows.subject.value - float(rows(nothing)[0]), 16
    rounds = rows.subject.loaded.config.quantization.activations != "none"
    most = _ROUNDED_POINTS if rounds else _MOST_POINTS
    while True:
        points, weights = np.polynomial.legendre.leggauss(count)
        scores = (weights / 2) @ rows.gradients((points + 1) / 2, rows.base)
        if abs(scores.sum() - wanted) <= rows.config.tolerance or count >= most:
            return scores, True
        count *= 2


def smoothgrad(rows: Replaced) -> tuple[np.ndarray, bool]:
    """Returns the means of gradient x input at noisy inputs."""
    zeros = {name: np.zeros_like(x) for name, x in rows.vectors.items()}
    spread = max(float(x.max() - x.min()) for x in rows.vectors.values())
    count = rows.config.samples or 32
    return rows.gradients(np.ones(count), zeros, rows.config.noise * spread).mean(axis=0), False


def occlusion(rows: Replaced) -> tuple[np.ndarray, bool]:
    """Returns by how much the number falls when each free token is replaced."""
    return _spread(rows, rows.subject.value - rows(~np.eye(len(rows.subject.free), dtype=bool))), False


def lime(rows: Replaced) -> tuple[np.ndarray, bool]:
    """Returns the weights of a ridge regression from which tokens are there to the number, by scikit-learn."""
    linear = required("sklearn.linear_model", "explain")
    count = len(rows.subject.free)
    rng = random_stream(rows.config.seed, "lime")
    there = rng.random((rows.config.samples or 64 + 8 * count, count)) < 0.5
    there[0] = True
    distance = 1 - np.sqrt(there.mean(axis=1))
    model = linear.Ridge(alpha=rows.config.ridge)
    model.fit(there, rows(there), sample_weight=np.exp(-((distance / rows.config.width) ** 2)))
    return _spread(rows, model.coef_), False


def kernel_shap(rows: Replaced) -> tuple[np.ndarray, bool]:
    """Returns Shapley values by `shap.KernelExplainer`, whose sum is the difference of the two ends."""
    shap = required("shap", "explain")
    count = len(rows.subject.free)
    explainer = shap.KernelExplainer(lambda there: rows(np.asarray(there) > 0.5), np.zeros((1, count)))
    samples = rows.config.samples or 64 + 8 * count
    with global_stream(rows.config.seed, "shap"):
        found = explainer.shap_values(np.ones((1, count)), nsamples=samples, silent=True, l1_reg=False)
    return _spread(rows, np.asarray(found).reshape(-1)), True


def random_scores(rows: Replaced) -> tuple[np.ndarray, bool]:
    """Returns random numbers for the free tokens."""
    return _spread(rows, random_stream(rows.config.seed, "random").normal(size=len(rows.subject.free))), False


METHODS: Mapping[str, Callable[[Replaced], tuple[np.ndarray, bool]]] = {
    "gradient": gradient_x_input,
    "integrated": integrated_gradients,
    "smoothgrad": smoothgrad,
    "occlusion": occlusion,
    "lime": lime,
    "shap": kernel_shap,
    "random": random_scores,
}


def _spread(rows: Replaced, scores: np.ndarray) -> np.ndarray:
    """Returns float64 `[tokens]` with the scores of the free tokens, and 0 for the others."""
    found = np.zeros(len(rows.subject.tokens))
    found[rows.subject.free] = scores
    return found


def _name(side: str) -> str:
    """Returns the name of the activation of a side's inputs."""
    return f"{side.replace('_', '/')}inputs/tokens"


def _inputs(subject: Subject, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns by name the rows of the token table for a row of fields, float32 `[length, width]`."""
    loaded = subject.loaded
    names = tuple(_name(side.prefix) for side in loaded.config.family.sides)
    with loaded.on_devices():
        found = jax.device_get(_recorded(loaded.model, loaded.params, dict(fields), names))
    return {name: x[0].astype(np.float32) for name, x in found.items()}


@functools.partial(jax.jit, static_argnames=("model", "names"))
def _recorded(
    model: LanguageModel, params: PyTree, fields: Mapping[str, jax.Array], names: tuple[str, ...]
) -> dict[str, jax.Array]:
    return intercept.record(model, params, fields, names)[1]


def _numbers(
    model: LanguageModel, params: PyTree, fields: Mapping[str, jax.Array], ask: Ask, points: Vectors
) -> jax.Array:
    """Returns float32 `[rows]`, the number for copies of a row with other inputs, `[rows, length, width]` by name."""
    rows = len(next(iter(points.values())))
    copies = {name: jnp.repeat(x, rows, axis=0) for name, x in fields.items()}
    changes = {name: lambda x, new=new: new.astype(x.dtype) for name, new in points.items()}
    return value(model, params, intercept.replace(model, params, copies, changes), copies, ask)


@functools.partial(jax.jit, static_argnames="model")
def _masked(
    model: LanguageModel,
    params: PyTree,
    fields: Mapping[str, jax.Array],
    ask: Ask,
    vectors: Vectors,
    base: Vectors,
    there: Vectors,
) -> jax.Array:
    """Returns float32 `[rows]`, the number with the inputs that are not `there` taken from the base."""
    points = {name: jnp.where(there[name][..., None], x[None], base[name][None]) for name, x in vectors.items()}
    return _numbers(model, params, fields, ask, points)


@functools.partial(jax.jit, static_argnames="model")
def _gradients(
    model: LanguageModel,
    params: PyTree,
    fields: Mapping[str, jax.Array],
    ask: Ask,
    vectors: Vectors,
    base: Vectors,
    shares: jax.Array,
    noise: jax.Array,
    key: jax.Array,
) -> dict[str, jax.Array]:
    """Returns float32 `[rows, length]` by name, the dot products of `Replaced.gradients`."""
    way = {name: x - base[name] for name, x in vectors.items()}
    points = {}
    for i, (name, x) in enumerate(way.items()):
        drawn = jax.random.normal(jax.random.fold_in(key, i), (len(shares), *x.shape))
        points[name] = base[name][None] + shares[:, None, None] * x[None] + noise * drawn
    found = jax.grad(lambda points: jnp.sum(_numbers(model, params, fields, ask, points)))(points)
    # A value in the decoder's row after the number has no part in it, so its gradient is 0.
    return {name: jnp.einsum("rle,le->rl", gradient, way[name]) for name, gradient in found.items()}


def _filled(x: np.ndarray, rows: int) -> np.ndarray:
    """Returns an array with copies of its last row after it, up to so many rows."""
    return np.concatenate([x, np.repeat(x[-1:], rows - len(x), axis=0)])
