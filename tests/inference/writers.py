"""Tiny models that generate text, and the expected texts, computed by full forward passes without a cache."""

import dataclasses
import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import numpy as np

from lmjax.inference.generate.generate import Generation
from lmjax.inference.loaded import LoadedModel
from lmjax.model.config import ModelConfig
from lmjax.model.groups import RopeConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from tests.inference.scoring import prompts, tokenizer

WIDTH = 64
SIZES = {"embed_dim": 16, "num_heads": 2, "mlp_dim": 24, "num_layers": 1, "max_length": 64, "vocab_size": 192}
ROPE = {"positions": "rope", "norm": "rmsnorm"}
# A model is (architecture, fields, differences in its prompt format).
MODELS = {
    "rope": ("decoder", ROPE, {}),
    # Not a power of two: the longest prompts get columns of exactly this number.
    "learned": ("decoder", {"max_length": 24}, {}),
    # One local and one global layer.
    "window": (
        "decoder",
        ROPE | {"attention.window": 7, "num_layers": 2, "attention.global_every": 2, "num_kv_heads": 1},
        {},
    ),
    "prefix": ("decoder", ROPE | {"num_layers": 2}, {"bidirectional": True}),
    "both": ("encoder_decoder", {"positions": "relative"}, {"forced": (150, 120)}),
}


@functools.cache
def writer(name: str, seed: int = 0, tensor: int = 1, **more) -> LoadedModel:
    """Returns a model of MODELS; it is cached by its arguments, so that it is compiled once."""
    architecture, fields, form = MODELS[name]
    values = SIZES | {"head.tied": False, "rope": RopeConfig(theta=100.0)} | fields | more
    config = ModelConfig(architecture=architecture, scan_layers=False, **values)
    model = LanguageModel(config)
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    rng = np.random.default_rng(seed)
    mesh = make_mesh(ParallelConfig(tensor=tensor), jax.devices()[:tensor])
    copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def noise(path, leaf):
        scale = 0.2 if len(leaf.shape) < 2 else 1 if "table" in str(path) else 2 / np.sqrt(np.prod(leaf.shape[:-1]))
        return jax.device_put(rng.normal("scale" in str(path), scale, leaf.shape).astype(np.float32), copied)

    params = jax.tree_util.tree_map_with_path(noise, shapes)
    return LoadedModel(model, params, tokenizer(), dataclasses.replace(prompts(architecture), **form), mesh)


def some_prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Returns prompts of tokens that are text."""
    rng = np.random.default_rng(seed)
    return [rng.integers(110, 180, n).tolist() for n in lengths]


@functools.partial(jax.jit, static_argnums=0)
def _whole(model, params, batch):
    logits = model.apply({"params": params}, model.apply({"params": params}, batch), method="logits")
    return jax.nn.log_softmax(logits)


def log_probs(loaded: LoadedModel, prompts: Sequence[list[int]], texts: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Returns the log-probabilities `[tokens, vocab]` that predict each token of the texts, from one forward pass.

    Padding is after the rows, unlike in the decode loop, where it is before them.
    """
    form, both = loaded.prompts, loaded.config.architecture == "encoder_decoder"
    starts = [list(form.start) if both else prompt for prompt in prompts]
    width = loaded.config.max_length if loaded.config.positions == "learned" else WIDTH
    # The last token is generated, but never read.
    read = _rows([[*start, *text[:-1]] for start, text in zip(starts, texts, strict=True)], width)
    batch = {"decoder_" * both + name: x for name, x in read.items()}
    if both:
        batch |= {f"encoder_{name}": x for name, x in _rows(prompts, width).items()}
    if form.bidirectional:
        batch["prefix"] = _rows(prompts, width)["segment_ids"]
    found = np.asarray(_whole(loaded.model, jax.device_get(loaded.params), batch))
    return [x[len(s) - 1 : len(s) - 1 + len(t)] for x, s, t in zip(found, starts, texts, strict=True)]


def _rows(rows: Sequence[Sequence[int]], width: int) -> dict[str, np.ndarray]:
    tokens = np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32)
    real = np.arange(width)[None] < np.array([len(row) for row in rows])[:, None]
    return {"tokens": tokens, "segment_ids": real.astype(np.int32)}


def check_greedy(
    loaded: LoadedModel, prompts: Sequence[list[int]], found: Sequence[Generation], limit: int, stop: tuple[int, ...]
) -> None:
    """Fails unless each text is the likeliest token after the likeliest token, up to a stop id or the limit."""
    both = loaded.config.architecture == "encoder_decoder"
    forced = loaded.prompts.forced if both else ()
    expected = log_probs(loaded, prompts, [each.ids for each in found])
    for each, rows in zip(found, expected, strict=True):
        assert np.isfinite(rows).all()
        assert each.ids[: len(forced)] == forced
        own = slice(len(forced), None)
        assert each.ids[own] == tuple(rows[own].argmax(-1).tolist())
        np.testing.assert_allclose(
            each.score, sum(r[i] for r, i in zip(rows[own], each.ids[own], strict=True)), rtol=1e-4
        )
        assert not set(each.ids[:-1]) & set(stop)
        assert each.finished == ("stop" if each.ids[-1] in stop else "length")
        assert len(each.ids) == limit or each.finished == "stop"
