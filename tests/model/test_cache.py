"""The cache: reading a text in parts gives the same logits as reading it at once, also with padding and packing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.model.cache import init_cache
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel, init_params
from lmjax.model.positions.rope import rope_frequencies
from tests.thinned import thinned

pytestmark = pytest.mark.long

CONFIG = ModelConfig(
    architecture="decoder", vocab_size=24, embed_dim=16, num_heads=4, mlp_dim=16, num_layers=2, max_length=32,
    scan_layers=False, init_std=0.4, attention={"kernel": "plain"},
)  # fmt: skip
T5 = {"architecture": "encoder_decoder", "positions": "relative", "norm": "rmsnorm"}
ROPE = {"positions": "rope", "norm": "rmsnorm"}
WINDOW = {"attention.window": 3}
MODELS = {
    "learned": {},
    "sinusoidal": {"positions": "sinusoidal"},
    "rope": ROPE,
    "rope_partial_gqa": ROPE | {"num_kv_heads": 2, "rope": {"fraction": 0.5}},
    "rope_yarn_mqa": ROPE | {"num_kv_heads": 1, "rope": {"scaling": "yarn", "factor": 2.0, "original_length": 16}},
    "rope_dynamic": ROPE | {"rope": {"scaling": "dynamic", "factor": 4.0, "original_length": 20}},
    "alibi": {"positions": "alibi"},
    "relative": {"positions": "relative", "relative": {"buckets": 8, "max_distance": 12}},
    "relative_per_layer": {"positions": "relative", "relative": {"buckets": 8, "max_distance": 12, "per_layer": True}},
    "none": {"positions": "none"},
    "window": ROPE | WINDOW,
    "window_learned": WINDOW,
    "window_relative": {"positions": "relative", "relative": {"buckets": 8, "max_distance": 12}} | WINDOW,
    "alternating": ROPE
    | WINDOW
    | {"attention.global_every": 2, "rope": {"local_theta": 100.0}, "attention.qk_norm": "head"},
    "window_sinks": ROPE | WINDOW | {"attention.sink_tokens": 2},
    "alibi_window_sink_logits": {"positions": "alibi", "attention.sink_logits": True} | WINDOW,
    "shared_layers": ROPE | {"share_layers": True},
    "parallel": ROPE | {"block": "parallel", "attention.softcap": 5.0},
    "experts": ROPE | {"moe": {"num_experts": 4, "top_k": 2}},
    "blockwise": ROPE | WINDOW | {"attention.kernel": "blockwise"},
    "xla": ROPE | WINDOW | {"attention.kernel": "xla"},
    "t5": T5,
    "bart": {"architecture": "encoder_decoder", "norm_position": "post", "embedding.norm": True},
    "cross_rope_window": T5 | ROPE | WINDOW | {"cross_positions": "rope"},
    "cross_relative_per_layer": T5 | {"cross_positions": "relative", "relative": {"per_layer": True}},
    "local_encoder": T5 | WINDOW | {"attention.decoder_window": False, "attention.global_block": 2},
}
LENGTH = 12


def _model(**fields):
    """Returns a model, and parameters that all have an effect on its output."""
    model = LanguageModel(ModelConfig.model_validate(CONFIG.model_dump() | fields))
    shapes = nn.unbox(jax.eval_shape(functools.partial(init_params, model), jax.random.key(0)))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0.1, 0.4, x.shape), jnp.float32), shapes)


def _rows(model, segments, positions):
    """Returns a batch of `[rows, LENGTH]` fields; in an encoder-decoder the encoder has other rows."""
    rng = np.random.default_rng(1)
    fields = {"tokens": rng.integers(0, 24, segments.shape), "positions": positions, "segment_ids": segments}
    if model.config.architecture != "encoder_decoder":
        return fields
    asked = np.array([[1, 1, 1, 2, 2, 0], [1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 2, 2]])[: len(segments)]
    places = np.array([[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3], [0, 0, 0, 1, 0, 1]])[: len(segments)]
    encoder = {"tokens": rng.integers(0, 24, asked.shape), "positions": places, "segment_ids": asked}
    return {f"decoder_{k}": v for k, v in fields.items()} | {f"encoder_{k}": v for k, v in encoder.items()}


def _cut(batch, start, stop):
    """Returns some columns of the decoder's fields, and the whole fields of the encoder."""
    return {k: v if k.startswith("encoder_") else v[:, start:stop] for k, v in batch.items()}


@functools.partial(jax.jit, static_argnums=0)
def _read(model, params, piece, cache):
    """Returns the logits `[rows, tokens, vocab]` of a part, and the new cache; compiled once for each shape."""
    hidden, cache = model.apply({"params": params}, piece, cache, method="extend")
    return model.apply({"params": params}, hidden, method="logits"), cache


def _cached(model, params, batch, cuts, **kwargs):
    """Returns the logits of a batch that is read in several parts, and the cache."""
    rows = batch[next(k for k in batch if k in ("tokens", "decoder_tokens"))].shape[0]
    memory = {"memory_length": 6} if "encoder_tokens" in batch else {}
    cache = init_cache(model.config, rows, kwargs.pop("capacity", 16), **memory, **kwargs)
    found, start = [], 0
    for stop in cuts:
        piece = _cut(batch, start, stop)
        if start:
            piece = {k: v for k, v in piece.items() if not k.startswith("encoder_")}
        logits, cache = _read(model, params, piece, cache)
        found.append(logits)
        start = stop
    return np.concatenate(found, axis=1), cache


def _uncached(model, params, batch):
    def read(batch):
        return model.apply({"params": params}, model.apply({"params": params}, batch), method="logits")

    return np.asarray(jax.jit(read)(batch))


# A full row, a row with padding on the left, and a row of three texts that differ in segment ids only.
SEGMENTS = np.array([[1] * 12, [0] * 3 + [1] * 9, [2] * 5 + [1] * 3 + [2] * 0 + [1] * 4])
POSITIONS = np.array([[*range(12)], [0] * 3 + [*range(9)], [*range(5), *range(3), *range(3, 7)]])


@pytest.mark.parametrize("name", thinned(MODELS, 2))
def test_logits_are_those_of_reading_at_once(name):
    model, params = _model(**MODELS[name])
    batch = _rows(model, SEGMENTS, POSITIONS)
    expected = _uncached(model, params, batch)
    # A prompt, a second part of the same length (one program), then single tokens, which overwrite a window's slots.
    found, cache = _cached(model, params, batch, (4, 8, 9, 10, 11, 12))
    real = SEGMENTS > 0
    np.testing.assert_allclose(found[real], expected[real], atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(cache.segment_ids[:, :LENGTH], SEGMENTS)
    if "attention.window" in MODELS[name] and not MODELS[name].keys() & {
        "attention.sink_tokens",
        "attention.decoder_window",
    }:
        assert min(layer["attention"].slots for layer in cache.layers) == 3


def test_a_decoder_without_the_window_of_its_encoder_keeps_all():
    config = ModelConfig.model_validate(CONFIG.model_dump() | MODELS["local_encoder"])
    cache = jax.eval_shape(lambda: init_cache(config, 1, 16, memory_length=4))
    assert [layer["attention"].slots for layer in cache.layers] == [16, 16]


def test_what_the_cache_holds_matters():
    """The negative control: with one key changed, later logits of its row differ, and those of other rows do not."""
    model, params = _model(**ROPE)
    batch = _rows(model, SEGMENTS, POSITIONS)
    _, cache = _cached(model, params, batch, (5, 11))
    piece = _cut(batch, 11, 12)
    spoilt = cache.layers[0]["attention"]
    spoilt = spoilt.replace(value=spoilt.value.at[0, :, 7].add(1.0))
    other = cache.replace(layers=({"attention": spoilt}, cache.layers[1]))
    right, wrong = (model.apply({"params": params}, piece, c, method="extend")[0] for c in (cache, other))
    changed = np.abs(np.asarray(right - wrong)).max((1, 2))
    assert changed[0] > 1e-3
    assert (changed[1:] == 0).all()


def test_dynamic_scaling_stays_that_of_short_rows():
    """Padding must not change the rotary scaling of a row that is shorter than the original length."""
    config = CONFIG.model_copy(update=dict(ROPE))
    config = ModelConfig.model_validate(config.model_dump() | MODELS["rope_dynamic"])
    assert (rope_frequencies(config, 24)[0] != rope_frequencies(config, 1)[0]).any()
    model, params = _model(**MODELS["rope_dynamic"])
    batch = _rows(model, SEGMENTS, POSITIONS)
    wide = {k: np.pad(v, ((0, 0), (12, 0))) for k, v in batch.items()}
    found, _ = _cached(model, params, wide, (23, 24), capacity=24)
    expected = _uncached(model, params, batch)
    np.testing.assert_allclose(found[:, -1], expected[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["rope", "window", "t5"])
def test_tokens_that_were_taken_back_leave_no_trace(name):
    model, params = _model(**MODELS[name])
    batch = _rows(model, SEGMENTS, POSITIONS)
    expected = _uncached(model, params, batch)
    _, cache = _cached(model, params, batch, (6, 9), slack=3)
    side = "decoder_" if name == "t5" else ""
    wrong = {k: v for k, v in _cut(batch, 9, 12).items() if not k.startswith("encoder_")}
    wrong[f"{side}tokens"] = (wrong[f"{side}tokens"] + 5) % 24
    apply = functools.partial(model.apply, {"params": params}, method="extend")
    _, spoilt = jax.jit(apply)(wrong, cache)
    spoilt = spoilt.rewind(jnp.int32(9))
    for start in (9, 10, 11):
        piece = {k: v for k, v in _cut(batch, start, start + 1).items() if not k.startswith("encoder_")}
        hidden, spoilt = jax.jit(apply)(piece, spoilt)
        logits = model.apply({"params": params}, hidden, method="logits")
        np.testing.assert_allclose(
            logits[SEGMENTS[:, start] > 0, 0], expected[SEGMENTS[:, start] > 0, start], atol=1e-5
        )


def test_int8_keys_and_values_are_close_and_small():
    model, params = _model(**ROPE)
    batch = _rows(model, SEGMENTS, POSITIONS)
    expected = _uncached(model, params, batch)
    found, cache = _cached(model, params, batch, (5, 8, 9, 10, 11, 12), kind="int8")
    real = SEGMENTS > 0
    scale = np.abs(expected).max()
    assert 1e-6 < np.abs(found - expected)[real].max() / scale < 0.03
    stored = cache.layers[0]["attention"]
    assert stored.key.dtype == stored.value.dtype == jnp.int8


def test_rows_are_repeated_and_reordered():
    model, params = _model(**MODELS["t5"])
    batch = _rows(model, SEGMENTS, POSITIONS)
    whole, _ = _cached(model, params, batch, (5, 6))
    _, cache = _cached(model, params, batch, (5,))
    piece = {k: np.repeat(v, 2, axis=0) for k, v in _cut(batch, 5, 6).items() if not k.startswith("encoder_")}
    parents = np.array([1, 0, 2, 3, 5, 4])
    wide = cache.repeat(2).reorder(parents)
    hidden, wide = model.apply({"params": params}, piece, wide, method="extend")
    logits = model.apply({"params": params}, hidden, method="logits")
    # The two rows of each text are the same.
    np.testing.assert_allclose(logits[::2, 0], whole[:, 5], atol=1e-5)
    np.testing.assert_allclose(logits[1::2, 0], whole[:, 5], atol=1e-5)
    marked = wide.replace(positions=jnp.arange(6)[:, None] * jnp.ones_like(wide.positions))
    np.testing.assert_array_equal(marked.reorder(parents).positions[:, 0], parents)


def test_scanned_layers_have_no_cache():
    model, params = _model()
    model = LanguageModel(CONFIG.model_copy(update={"scan_layers": True}))
    with pytest.raises(ValueError, match="unrolled layers"):
        _cached(model, params, _rows(model, SEGMENTS, POSITIONS), (5,))


def _alone(model, params, batch, text, cut, **kwargs):
    """Returns the logits `[LENGTH - cut, vocab]` of a text that is read alone: up to `cut`, then token by token."""
    row = {k: v[text : text + 1] for k, v in batch.items()}
    return _cached(model, params, row, (cut, *range(cut + 1, LENGTH + 1)), capacity=12, **kwargs)[0][0, cut:]


# (row, text, tokens of it read before it is put), or the number of tokens that all rows then read. Row 1 is empty at
# first; row 0 is replaced after the end of its text, and then again before the end of its text.
SCHEDULE = ((0, 0, 4), 1, (2, 2, 7), 3, (1, 1, 7), 1, 3, (0, 2, 4), 1, 1, (0, 0, 7), 1, 3, 1)


def _joined(model, params, batch, wrong=lambda cache: cache, **kwargs):
    """Yields text, tokens read before it was put into the batch, and the logits `[tokens, vocab]` of those read after.

    `wrong` is applied to the cache whenever a row was put into it.
    """
    side = "decoder_" if "encoder_tokens" in batch else ""
    cache, now = init_cache(model.config, 3, 16, memory_length=8 if side else 0, **kwargs), {}
    for event in SCHEDULE:
        if isinstance(event, tuple):
            row, text, cut = event
            if row in now:
                yield now[row]
            alone = {k: v[text : text + 1] for k, v in batch.items()}
            other = _cached(model, params, alone, (cut,), capacity=12, **kwargs)[1]
            cache, now[row] = wrong(cache.put(row, other)), (text, cut, np.zeros((0, 24)))
            continue
        piece = {f"{side}{k}": np.zeros((3, event), np.int32) for k in ("tokens", "positions", "segment_ids")}
        for row, (text, cut, found) in now.items():
            column = cut + len(found)
            for k, x in piece.items():
                part = batch[k][text, column : column + event]
                x[row, : len(part)] = part
        logits, cache = _read(model, params, piece, cache)
        for row, (text, cut, found) in now.items():
            # Behind the end of a text all tokens are padding.
            now[row] = text, cut, np.concatenate([found, logits[row]])[: LENGTH - cut]
    yield from now.values()


LATE = ("learned", "rope_yarn_mqa", "relative", "window", "alternating", "window_sinks", "t5", "cross_rope_window")
# int8 keys and values have scales: in layers without and with a window, and in cross-attention.
LATE_INT8 = ("rope_yarn_mqa", "window_sinks", "cross_rope_window")


@pytest.mark.parametrize(("kind", "name"), [*(("compute", n) for n in LATE), *(("int8", n) for n in LATE_INT8)])
def test_rows_that_join_late_read_on_as_they_would_alone(kind, name):
    # All that a layer stores of a row is put in at once; `alternating` has two kinds of layers.
    model, params = _model(**MODELS[name] | {"num_layers": 2 if name == "alternating" else 1})
    batch = _rows(model, SEGMENTS, POSITIONS)
    texts = list(_joined(model, params, batch, kind=kind))
    lengths = sorted((text, cut, len(found)) for text, cut, found in texts)
    assert lengths == [(0, 4, 8), (0, 7, 5), (1, 7, 5), (2, 4, 2), (2, 7, 5)]
    for text, cut, found in texts:
        alone = _alone(model, params, batch, text, cut, kind=kind)[: len(found)]
        np.testing.assert_allclose(found, alone, atol=1e-5, rtol=1e-5, err_msg=f"text {text} from {cut}")


@pytest.mark.parametrize("name", ["rope", "window"])
def test_each_row_needs_its_own_number_of_slots(name):
    """The negative control: with one number of filled slots for all rows, the logits differ."""
    model, params = _model(**MODELS[name])
    batch = _rows(model, SEGMENTS, POSITIONS)

    def wrong(cache):
        return cache.replace(filled=jnp.full(3, jnp.min(cache.filled)))

    texts = _joined(model, params, batch, wrong)
    errors = [np.abs(found - _alone(model, params, batch, text, cut)[: len(found)]).max() for text, cut, found in texts]
    assert max(errors) > 1e-2


def test_a_row_that_is_free_holds_nothing():
    """Tokens in a freed row attend only to each other, and the other rows do not change."""
    model, params = _model(**MODELS["window"])
    batch = _rows(model, SEGMENTS, POSITIONS)
    _, cache = _cached(model, params, batch, (6,))
    free = cache.free(0)
    np.testing.assert_array_equal(free.filled, [0, 6, 6])
    apply = functools.partial(model.apply, {"params": params})
    piece = _cut(batch, 6, 7)
    found, before = (apply(piece, c, method="extend")[0] for c in (free, cache))
    np.testing.assert_array_equal(found[1:], before[1:])
    np.testing.assert_allclose(found[0], apply({k: v[:1] for k, v in piece.items()})[0], atol=1e-5)
    assert np.abs(found[0] - before[0]).max() > 1e-3


def test_rows_that_do_not_fit_are_refused():
    model, params = _model(**MODELS["window"])
    batch = _rows(model, SEGMENTS, POSITIONS)
    row = {k: v[:1] for k, v in batch.items()}
    running = init_cache(model.config, 3, 8)

    def read(cut=4, model=model, params=params, row=row, **kwargs):
        return _cached(model, params, row, (cut,), **{"capacity": 8} | kwargs)[1]

    running.put(2, read())
    with pytest.raises(ValueError, match=r"1 rows cannot join at row 3 of a cache of 3"):
        running.put(3, read())
    with pytest.raises(ValueError, match=r"rows of 16 slots cannot join a cache of 8"):
        running.put(0, read(capacity=16))
    with pytest.raises(ValueError, match=r"rows of 5 slots cannot join a cache of 3 slots in a layer"):
        running.put(0, read(slack=2))
    with pytest.raises(ValueError, match=r"keys of int8 .* the same kind of cache"):
        running.put(0, read(kind="int8"))
    with pytest.raises(ValueError, match="read nothing"):
        running.put(0, init_cache(model.config, 1, 8))
    both, noise = _model(**MODELS["t5"])
    row = {k: v[:1] for k, v in _rows(both, SEGMENTS, POSITIONS).items()}
    with pytest.raises(ValueError, match=r"rows of 6 tokens of memory cannot join a cache of 5"):
        init_cache(both.config, 3, 8, memory_length=5).put(0, read(model=both, params=noise, row=row))
