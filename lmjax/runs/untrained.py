"""A model with random weights, to measure the cost of an architecture before it is trained."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from lmjax.axes import RULES
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.inference.loaded import LoadedModel, PromptFormat
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.parameters import unboxed
from lmjax.parallel.mesh import on_mesh
from lmjax.runs.trained import assemble, check_parameters, inference_config, inference_mesh
from lmjax.streams import prng_key


def random_model(
    config: ModelConfig, tokenizer: Vocabulary, seed: int = 0, *, dtype: str | None = None, tensor: int = 1
) -> LoadedModel:
    """Returns a model with random weights, ready to generate and to score.

    Args:
        config: the architecture.
        tokenizer: a tokenizer with no more ids than the model has rows.
        seed: the seed of the weights.
        dtype: the dtype of parameters and compute; None: the config's compute dtype.
        tensor: the number of devices that split the model.

    Raises:
        FlagError: the tokenizer has too many ids, `tensor` does not fit, or the model does not fit its devices.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise FlagError(
            f"--tokenizer: it has {tokenizer.vocab_size} ids and the model {config.vocab_size} rows; take a smaller one"
        )
    config = inference_config(config, dtype)
    mesh = inference_mesh(config, tensor)
    heads = config.family.vocabulary_heads
    init, seeded = functools.partial(init_params, LanguageModel(config, heads)), prng_key(seed, "untrained")
    shapes = on_mesh(jax.eval_shape(init, seeded), mesh)
    check_parameters("--preset", shapes)
    placed = jax.tree.map(lambda x: x.sharding, shapes)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        params = jax.jit(lambda k: unboxed(init(k)), out_shardings=placed)(seeded)
    return assemble(config, heads, params, tokenizer, _prompts(config, tokenizer), mesh)


def _prompts(config: ModelConfig, tokenizer: Vocabulary) -> PromptFormat:
    """Returns which special tokens of the tokenizer are put around a text, and which ones end it."""

    def ids(role: str) -> tuple[int, ...]:
        return (tokenizer.role_ids[role],) if role in tokenizer.role_ids else ()

    if not config.family.causal:
        return PromptFormat(before=ids("cls"), after=ids("sep"))
    end = ids("eos")
    never = tuple(sorted(tokenizer.special_ids - set(end)))
    if not config.family.paired:
        return PromptFormat(before=ids("bos"), stop=end, never=never)
    return PromptFormat(after=end, start=(tokenizer.pad_id,), stop=end, never=never)
