"""What each layer, head and MLP says about the output: the logit lens, and direct logit attribution.

The lens reads the residual stream after each layer as if it were the last one (nostalgebraist 2020, "interpreting
GPT: the logit lens"): final norm and head follow directly. Direct attribution splits a logit into the sum of what the
heads and MLPs write to the residual stream (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"),
with the final norm's divisor kept as it is for the whole stream.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.analysis.attention import token_texts
from lmjax.analysis.inside import patch, record, shapes
from lmjax.analysis.subject import Subject
from lmjax.analysis.values import Ask, value
from lmjax.errors import FlagError
from lmjax.model.config import ModelConfig
from lmjax.model.intercept import record as recorded
from lmjax.model.intercept import replace
from lmjax.model.language_model import LanguageModel

PyTree = Any


class Lens(NamedTuple):
    """What the residual stream says after the inputs and after each layer.

    Attributes:
        layers: their names, `[layers + 1]`.
        values: float64 `[layers + 1]`, the number of the subject.
        tokens: names of the tokens of the row that were read, `[tokens]`.
        likeliest: the likeliest token at each of them, `[layers + 1]` lists; empty: the number is not about a token.
        shares: float64 `[layers + 1, tokens]`, its probability.
    """

    layers: tuple[str, ...]
    values: np.ndarray
    tokens: tuple[str, ...]
    likeliest: tuple[tuple[str, ...], ...]
    shares: np.ndarray


class Direct(NamedTuple):
    """The parts of a logit, or of the difference of two.

    Attributes:
        heads: float64 `[layers, heads]`; with norms on the outputs of branches, of whole attentions, `[layers, 1]`.
        cross: the same of cross-attention, `[layers, 0]` without.
        mlp: float64 `[layers]`.
        inputs: of the input embeddings.
        constant: of biases.
        total: the logit, the sum of all parts.
    """

    heads: np.ndarray
    cross: np.ndarray
    mlp: np.ndarray
    inputs: float
    constant: float
    total: float


def logit_lens(subject: Subject) -> Lens:
    """Returns what a subject's number, and the likeliest tokens, would be if the model ended after each layer."""
    loaded, prefix = subject.loaded, subject.loaded.config.family.predicts
    names = stream_names(loaded.config, prefix)
    with loaded.on_devices():
        arguments = (loaded.model, loaded.params, dict(subject.fields), subject.ask, names)
        numbers, ids, shares = jax.device_get(_lens(*arguments, loaded.tokenizer.vocab_size))
    real = subject.fields[f"{prefix}segment_ids"][0] > 0
    rows = tuple(tuple(token_texts(loaded, row[real])) for row in ids) if len(ids) else ()
    tokens = tuple(token_texts(loaded, subject.fields[f"{prefix}tokens"][0][real]))
    layers = ("inputs", *(f"layer {i}" for i in range(len(names) - 1)))
    return Lens(layers, numbers.astype(np.float64), tokens, rows, shares[:, real] if len(ids) else shares)


@functools.partial(jax.jit, static_argnames=("model", "names", "num_ids"))
def _lens(
    model: LanguageModel,
    params: PyTree,
    fields: Mapping[str, jax.Array],
    ask: Ask,
    names: tuple[str, ...],
    num_ids: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the numbers `[layers + 1]`, and of tokens the likeliest ids and their probabilities, or empty arrays."""
    stream = recorded(model, params, fields, names)[1]
    rows = jnp.concatenate([stream[name] for name in names])
    copies = {name: jnp.repeat(x, len(names), axis=0) for name, x in fields.items()}
    hidden = replace(model, params, copies, {names[-1]: lambda _: rows})
    numbers = value(model, params, hidden, copies, ask)
    if ask.kind != "logits":
        return numbers, jnp.zeros((0, 0), jnp.int32), jnp.zeros((0, 0))

    def likeliest(states: jax.Array) -> tuple[jax.Array, jax.Array]:
        shares = jax.nn.softmax(model.apply({"params": params}, states, method="logits").astype(jnp.float32), axis=-1)
        shares = shares[:, :num_ids]
        return jnp.argmax(shares, axis=-1), jnp.max(shares, axis=-1)

    # One layer after the other, so that the logits of only one of them are in memory.
    return numbers, *jax.lax.map(likeliest, hidden)


def direct(subject: Subject) -> Direct:
    """Returns the parts of the logit of a subject's token, or of the difference of its logit and that of another.

    Raises:
        FlagError: the number is not about a token, or the residual stream is no sum of branches (norms after them).
    """
    loaded, config, ask = subject.loaded, subject.loaded.config, subject.ask.replace(unit="logit")
    if ask.kind != "logits" or config.norm_position == "post" or not config.family.causal:
        raise FlagError(
            "direct logit attribution needs the logit of a decoder's token, and no norm after the sum of a branch "
            f"(norm_position={config.norm_position}); take another method"
        )
    at, stream = int(ask.position), stream_names(config, config.family.predicts)
    normed = "_output_norm" if config.norm_position in ("sandwich", "output") else ""
    known = shapes(loaded, subject.fields)[0]
    mlps = [f"{name}/{'mlp' if f'{name}/mlp' in known else 'moe'}" for name in stream[1:]]
    mlps = [f"{name.rpartition('/')[0]}/mlp_output_norm" for name in mlps] if normed else mlps
    final = record(loaded, subject.fields, [stream[0], stream[-1], *mlps, "hidden"])
    norm = _Norm(subject, final[stream[-1]][0, at])
    total, push = _number_and_gradient(subject, final["hidden"], ask)
    # What does not depend on the hidden state, and the bias of the norm.
    constant = total - float(push @ final["hidden"][0, at]) + float(push @ norm.bias)
    found = []
    for end in ("attention", "cross_attention"):
        names = [name for each in stream[1:] if (name := f"{each}/{end}{normed}") in known]
        if normed:
            written = [x[:, at] for x in record(loaded, subject.fields, names).values()]
            heads, bias = np.array(written).reshape(len(mlps), -1, config.embed_dim), np.zeros(config.embed_dim)
        else:
            heads, bias = _of_heads(subject, names, at) if names else (np.zeros((len(mlps), 0, config.embed_dim)),) * 2
        found.append(norm(heads) @ push)
        constant += float((norm(bias) @ push).sum())
    mlp = norm(np.stack([final[name][0, at] for name in mlps])) @ push
    inputs = float(norm(final[stream[0]][0, at]) @ push)
    return Direct(*found, mlp, inputs, constant, total)


def _of_heads(subject: Subject, names: list[str], at: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each head writes to the residual stream, `[layers, heads, embed]`, and the biases `[layers, embed]`.

    Row h of a batch has the outputs of head h alone in each layer, and the last row those of none.
    """
    loaded, heads = subject.loaded, subject.loaded.config.num_heads
    given = record(loaded, subject.fields, [f"{name}/heads" for name in names])
    alone = np.concatenate([np.eye(heads), np.zeros((1, heads))])[:, None, :, None].astype(np.float32)
    rows = {name: np.repeat(x, heads + 1, axis=0) for name, x in subject.fields.items()}
    found = patch(loaded, rows, {name: x * alone for name, x in given.items()}, names)
    written = np.stack([x[:, at].astype(np.float64) for x in found.values()])
    return written[:, :-1] - written[:, -1:], written[:, -1]


def _number_and_gradient(subject: Subject, hidden: np.ndarray, ask: Ask) -> tuple[float, np.ndarray]:
    """Returns the number for hidden states, and its gradient for the one at its position, float64 `[embed]`."""
    loaded = subject.loaded
    with loaded.on_devices():
        arguments = (loaded.model, loaded.params, hidden, dict(subject.fields), ask)
        number, gradient = jax.device_get(_value_and_gradient(*arguments))
    return float(number), gradient[0, int(ask.position)].astype(np.float64)


@functools.partial(jax.jit, static_argnames="model")
def _value_and_gradient(
    model: LanguageModel, params: PyTree, hidden: jax.Array, fields: Mapping[str, jax.Array], ask: Ask
) -> tuple[jax.Array, jax.Array]:
    return jax.value_and_grad(lambda hidden: value(model, params, hidden, fields, ask)[0])(hidden)


class _Norm:
    """The final norm as a linear map: with the divisor that it has for the whole residual stream.

    Attributes:
        bias: float64 `[embed]`, what it adds.
    """

    def __init__(self, subject: Subject, stream: np.ndarray):
        """Takes the residual stream after the last layer, `[embed]`."""
        config, params = subject.loaded.config, subject.loaded.params["backbone"]
        params = (params["decoder"] if config.family.paired else params)["stack"].get("final_norm", {})
        x = stream.astype(np.float64)
        self._centred = bool(config.final_norm) and config.norm == "layernorm"
        x = x - x.mean() if self._centred else x
        self._factor = np.ones_like(x)
        if config.final_norm:
            self._factor /= np.sqrt(np.square(x).mean() + config.norm_epsilon)
        if "scale" in params:
            self._factor *= np.asarray(params["scale"], np.float64) + (1.0 if config.norm_offset else 0.0)
        self.bias = np.asarray(params["bias"], np.float64) if "bias" in params else np.zeros_like(x)

    def __call__(self, written: np.ndarray) -> np.ndarray:
        """Returns float64 vectors `[..., embed]` after the norm, without its bias."""
        y = written.astype(np.float64)
        y = y - y.mean(axis=-1, keepdims=True) if self._centred else y
        return y * self._factor.reshape(*(1,) * (y.ndim - 1), -1)


def stream_names(config: ModelConfig, prefix: str) -> tuple[str, ...]:
    """Returns the names of the residual stream: before the first layer, and after each."""
    side = prefix.replace("_", "/")
    count = config.side_layers(config.family.sides[-1].causal)
    return (f"{side}{'project_in' if config.factorised else 'inputs'}", *(f"{side}layer_{i}" for i in range(count)))
