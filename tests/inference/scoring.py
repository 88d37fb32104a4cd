"""Tiny models for the tests of scoring, mask filling and evaluation."""

import functools

import flax.linen as nn
import jax
import numpy as np

from lmjax.data.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer
from lmjax.inference.loaded import LoadedModel, PromptFormat
from lmjax.model.config import ModelConfig
from lmjax.model.groups import RopeConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.parallel.mesh import ParallelConfig, make_mesh

TEXT = (
    "The young king goes under the old tree. A queen sees the river house, never the houses; kings and queens, singing "
    "and going."
)
SIZES = {"embed_dim": 16, "num_heads": 2, "mlp_dim": 24, "num_layers": 1, "max_length": 16}


@functools.cache
def tokenizer() -> Tokenizer:
    """180 ids; " king" is one token, "houses" are two."""
    return train_tokenizer([TEXT] * 20, TokenizerConfig(vocab_size=180, byte_fallback=False))


def prompts(architecture: str) -> PromptFormat:
    t = tokenizer()
    if architecture == "encoder":
        return PromptFormat(before=(t.cls_id,), after=(t.sep_id,))
    if architecture == "decoder":
        return PromptFormat(before=(t.bos_id,), stop=(t.eos_id,))
    return PromptFormat(after=(t.eos_id,), start=(t.pad_id,), stop=(t.eos_id,))


@functools.cache
def tiny(architecture: str, positions: str = "learned", devices: int = 1, tensor: int = 1, **fields) -> LoadedModel:
    """Returns a model with noisy parameters: with zero biases and small kernels, a missing part would not show."""
    values = SIZES | {"rope": RopeConfig(theta=100.0)} | fields
    config = ModelConfig(architecture=architecture, positions=positions, vocab_size=192, scan_layers=False, **values)
    model = LanguageModel(config, ("masked_lm",) if architecture == "encoder" else ())
    shapes = nn.unbox(jax.eval_shape(lambda: init_params(model, jax.random.key(0))))
    rng = np.random.default_rng(0)
    mesh = make_mesh(ParallelConfig(tensor=tensor), jax.devices()[:devices])
    copied = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = jax.tree.map(lambda x: jax.device_put(rng.normal(0.1, 0.4, x.shape).astype(np.float32), copied), shapes)
    return LoadedModel(model, params, tokenizer(), prompts(architecture), mesh)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, batch):
    return model.apply({"params": params}, model.apply({"params": params}, batch), method="logits")


def log_probs(loaded: LoadedModel, fields: dict[str, list[int]], room: int = 24) -> np.ndarray:
    """Returns float64 log-probabilities `[length, vocab]` from one forward pass over one row, padded at its end."""
    batch = {}
    for name, ids in fields.items():
        length = min(room, loaded.config.max_length) if loaded.config.positions == "learned" else room
        batch[name] = np.array([ids + [0] * (length - len(ids))], np.int32)
        real = np.arange(length) < len(ids)
        batch[name.replace("tokens", "segment_ids")] = real[None].astype(np.int32)
    logits = np.asarray(_logits(loaded.model, jax.device_get(loaded.params), batch), np.float64)[0]
    largest = logits.max(-1, keepdims=True)
    return logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
