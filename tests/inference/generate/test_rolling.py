"""A window with attention sinks: the plain computation's logits, in a cache of constant size."""

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest

import lmjax.model.attention as attention_file
from lmjax.errors import FlagError
from lmjax.inference.generate import rolling
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate, stream
from lmjax.model.positions.rope import Rotation, rope
from tests.inference.writers import MODELS, ROPE, some_prompts, writer
from tests.thinned import thinned

SINKS, WINDOW, LENGTH = 2, 5, 24
MODELS["deep"] = ("decoder", ROPE | {"num_layers": 2, "num_kv_heads": 1}, {})
MODELS["bare"] = ("decoder", {"positions": "none", "num_layers": 2}, {})
MODELS["alibi"] = ("decoder", {"positions": "alibi", "num_layers": 2}, {})
MODELS["by bucket"] = ("decoder", {"positions": "relative"}, {})
MODELS["sine"] = ("decoder", {"positions": "sinusoidal"}, {})
READ = thinned([("deep", "compute"), ("by bucket", "compute"), ("alibi", "compute"), ("window", "compute"),
                ("deep", "int8"), ("sine", "compute")], 2)  # fmt: skip


def read_one_by_one(loaded, tokens):
    """Returns the logits after each token."""
    cache = rolling.empty_cache(loaded.config, SINKS, WINDOW)
    found = []
    for token in tokens:
        chunk = np.full(4, token, np.int32)
        logits, cache = rolling.read(loaded.params, chunk, np.int32(1), cache, model=loaded.model)
        found.append(np.asarray(logits[0]))
    assert int(cache.filled) == len(tokens)
    assert all(x.shape[-2] == SINKS + WINDOW for layer in cache.layers for x in jax.tree.leaves(layer))
    return np.stack(found)


@pytest.mark.parametrize(("name", "kind"), READ)
def test_a_prompt_read_in_parts_is_one_read_token_by_token(name, kind):
    """Parts of all lengths up to the window, from the first sink to far beyond the window."""
    loaded = writer(name)
    one = jax.jit(rolling._next, static_argnums=0)
    alone, parts = (rolling.empty_cache(loaded.config, SINKS, WINDOW, kind) for _ in range(2))
    (tokens,) = some_prompts(LENGTH, seed=4)
    start = 0
    for count in (1, 3, 5, 2, 5, 4, 4):
        for token in tokens[start : start + count]:
            expected, alone = one(loaded.model, loaded.params, jnp.int32(token), alone)
        piece = np.zeros(WINDOW, np.int32)
        piece[:count] = tokens[start : start + count]
        found, parts = rolling.read(loaded.params, piece, np.int32(count), parts, model=loaded.model)
        start += count
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=f"after {start} tokens")
    assert int(parts.filled) == int(alone.filled) == LENGTH == start
    for x, y in zip(jax.tree.leaves(parts), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(x, y, atol=1 if x.dtype == np.int8 else 1e-4)


@pytest.mark.parametrize(("name", "more", "loops"), [("deep", 0, 0), ("window", 0, 0), ("window", 1, 1)])
def test_one_by_one_is_for_layers_that_cannot_otherwise(name, more, loops):
    """The windows of layers hide a key of the cache if it has one slot more."""
    loaded = writer(name)
    cache = rolling.empty_cache(loaded.config, SINKS, WINDOW + more)
    traced = rolling.read.trace(loaded.params, np.zeros(4, np.int32), np.int32(4), cache, model=loaded.model)
    assert str(traced.jaxpr).count("while[") == loops


def plain_attention(config):
    """Returns an attention over a whole row in which every query sees the keys at their positions in its cache."""

    def at(x, positions):
        return np.asarray(rope(jnp.asarray(x), Rotation.build(config, jnp.asarray(positions)[None])))

    def attention(query, key, value, *, scale, **rest):
        del rest
        length, heads = query.shape[1], query.shape[2]
        away = -np.arange(length)
        query, key = at(query, away), at(key, away)  # without the rotation by their places in the row
        out = np.zeros(query.shape, np.float32)
        for i in range(length):
            kept = [j for j in range(i + 1) if j < SINKS or j > i - WINDOW]
            turned = at(query[:, i : i + 1], [len(kept) - 1])[0, 0]
            keys = at(key[:, kept], range(len(kept)))[0]
            for head in range(heads):
                of = head * key.shape[2] // heads
                scores = keys[:, of] @ turned[head] * scale
                weights = np.exp(scores - scores.max())
                out[0, i, head] = weights @ np.asarray(value)[0, kept, of] / weights.sum()
        return jnp.asarray(out)

    return attention


@pytest.mark.parametrize("name", ["deep", "bare"])
def test_logits_are_those_of_the_same_mask_and_positions(name, monkeypatch):
    loaded = writer(name)
    tokens = some_prompts(LENGTH, seed=3)[0]
    found = read_one_by_one(loaded, tokens)
    model = loaded.model
    if name == "deep":
        monkeypatch.setattr(attention_file, "attention", plain_attention(loaded.config))
    else:
        kept = loaded.config.attention.with_fields({"window": WINDOW, "sink_tokens": SINKS})
        model = model.clone(config=loaded.config.with_fields({"attention": kept}))
    variables = {"params": jax.device_get(loaded.params)}
    hidden = model.apply(variables, {"tokens": np.array([tokens])})
    expected = np.asarray(model.apply(variables, hidden, method="logits"))[0]
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_window_as_long_as_the_text_changes_nothing():
    prompts = some_prompts(5, 9)
    config = GenerateConfig(max_new_tokens=20)
    plain = generate(writer("deep"), prompts, config)
    rolled = generate(writer("deep"), prompts, config.model_copy(update={"window": 40, "sinks": 3}))
    assert [each[0].ids for each in plain] == [each[0].ids for each in rolled]
    np.testing.assert_allclose([e[0].score for e in plain], [e[0].score for e in rolled], rtol=1e-4)


def test_chunks_of_a_prompt_far_longer_than_the_window_change_nothing():
    (prompt,) = some_prompts(90)
    texts = [
        generate(writer("deep"), [prompt], GenerateConfig(max_new_tokens=9, window=8, prefill_chunk=chunk))[0][0]
        for chunk in (16, 37, 512)
    ]
    assert texts[0].ids == texts[1].ids == texts[2].ids
    assert len(texts[0].ids) == 9


def test_neither_program_nor_memory_grows_with_the_text(monkeypatch):
    """300 tokens, five times the model's rows, take the program and the arrays of 10."""
    loaded, sizes = writer("deep"), {}
    whole = rolling.RollingWriting.advance

    def advance(self, steps, allowed=None):
        whole(self, steps, allowed)
        sizes.setdefault(int(self._now.count), [x.shape for x in jax.tree.leaves(self._now)])

    monkeypatch.setattr(rolling.RollingWriting, "advance", advance)
    settings = {"window": 8, "stop_ids": (), "sampling": {"temperature": 1.0}}
    programs = []
    for new in (10, 300):
        config = GenerateConfig(max_new_tokens=new, **settings)
        (text,) = generate(loaded, some_prompts(5), config)[0]
        assert len(text.ids) == new or text.finished == "stop"
        programs.append((rolling.run._cache_size(), rolling.read._cache_size()))
    assert programs[0] == programs[1], "a longer text was compiled anew"
    first, *others = sizes.values()
    assert all(other == first for other in others)
    assert max(np.prod(shape, initial=1) for shape in first) <= 8 * (8 + 4) * 2


def test_stream_gives_the_same_text():
    config = GenerateConfig(max_new_tokens=30, window=6)
    (expected,) = generate(writer("deep"), some_prompts(5), config)[0]
    *pieces, found = stream(writer("deep"), some_prompts(5)[0], config)
    assert found.ids == expected.ids
    assert "".join(pieces) == expected.text


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("learned", {"window": 8}, "learned vector for each position"),
        ("both", {"window": 8}, "is for decoders"),
        ("prefix", {"window": 8}, "in both directions"),
        ("deep", {"window": 100}, "keep 104 tokens, and the model's rows have 64; lower --window to at most 60"),
    ],
)
def test_models_that_cannot(name, settings, said):
    with pytest.raises(FlagError, match=said):
        generate(writer(name), some_prompts(5), GenerateConfig(**settings))


@pytest.mark.parametrize("other", [{"beams": {"beams": 2}}, {"lookup": 2}, {"processors": {"no_repeat_ngram": 2}}])
def test_settings_that_read_the_whole_text(other):
    with pytest.raises(pydantic.ValidationError, match=r"window=8 and .* cannot be combined"):
        GenerateConfig(window=8, **other)
