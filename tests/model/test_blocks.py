"""Keys of blocks of tokens, and tokens that see all others, against loops in float64 and against transformers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import axes
from lmjax.errors import FlagError
from lmjax.model import intercept
from lmjax.model.blocks import Blocks
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel
from lmjax.model.parameters import flat, unflat
from lmjax.model.positions.relative import relative_bucket
from lmjax.parallel.mesh import ParallelConfig, make_mesh
from tests.thinned import thinned

# Segments with two blocks and a rest, with none, with one; padding; and a row of one segment.
SEGMENTS = np.array([[1] * 7 + [2] * 2 + [3] * 4 + [0] * 3, [4] * 16])
PLACES = np.array([[*range(7), *range(2), *range(4), *range(3)], [*range(16)]])
BLOCKS = [
    [(1, 0, range(3)), (1, 1, range(3, 7)), (3, 0, range(9, 13))],
    [(4, i, range(3 * i, 3 * i + 3 + (i == 4))) for i in range(5)],
]
SIZE = 3


def test_blocks_are_those_of_each_segment():
    found = Blocks.of(jnp.asarray(PLACES), jnp.asarray(SEGMENTS), SIZE, 2)
    x = np.random.default_rng(0).normal(size=(2, 16, 4)).astype(np.float32)
    sums = np.asarray(found.sums(jnp.asarray(x)))
    for row, blocks in enumerate(BLOCKS):
        assert found.segments[row].tolist() == [s for s, *_ in blocks] + [-1] * (5 - len(blocks))
        for i, (_, number, tokens) in enumerate(blocks):
            np.testing.assert_allclose(sums[row, i], x[row, list(tokens)].sum(0), atol=1e-5)
            assert int(found.numbers[row, i]) == number
            assert (found.own[row, list(tokens)] == number).all()


def reference(config, params, x, blocks):
    """Returns the attention branch in float64, token by token, for its input `[batch, length, embed]`."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
    window, size, first = config.attention.window, config.attention.global_block, config.attention.global_tokens
    y = np.zeros(x.shape)

    def turned(vector, position):
        if config.positions != "rope":
            return vector
        half = len(vector) // 2
        angle = position * config.rope.theta ** -(np.arange(half) / half)
        a, b = vector[:half], vector[half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    def bias(name, distance, head):
        if config.positions != "relative":
            return 0.0
        bucket = relative_bucket(np.array(distance), config.relative.buckets, config.relative.max_distance, False)
        return p[f"{name}/table"][int(bucket), head]

    def projected(name, vector, head):
        return vector @ p[f"layer_0/attention/{name}/kernel"][:, head] + p[f"layer_0/attention/{name}/bias"][head]

    for row, i in np.ndindex(SEGMENTS.shape):
        if SEGMENTS[row, i] == 0:
            continue
        own = next((n for s, n, tokens in blocks[row] if i in tokens), None)
        keys = []
        for segment, number, tokens in blocks[row] if size else []:
            if segment == SEGMENTS[row, i]:
                total = x[row, list(tokens)].sum(0)
                normed = (
                    total / np.sqrt((total**2).mean() + config.norm_epsilon) * p["layer_0/attention/block_norm/scale"]
                )
                keys.append((normed, number * size + size // 2, ("block_relative_bias", number - own)))
        for j in np.flatnonzero(SEGMENTS[row] == SEGMENTS[row, i]):
            if abs(i - j) < window or PLACES[row, i] < first or PLACES[row, j] < first:
                keys.append((x[row, j], PLACES[row, j], ("relative_bias", j - i)))
        for head in range(config.num_heads):
            query = turned(projected("query", x[row, i], head), PLACES[row, i])
            scores = np.array([query @ turned(projected("key", s, head), at) * config.score_scale + bias(*d, head)
                               for s, at, d in keys])  # fmt: skip
            weights = np.exp(scores - scores.max())
            mixed = weights @ np.array([projected("value", s, head) for s, *_ in keys]) / weights.sum()
            y[row, i] += mixed @ p["layer_0/attention/out/kernel"][head]
        y[row, i] += p["layer_0/attention/out/bias"]
    return y


@pytest.mark.parametrize(
    ("positions", "fields", "kernel"),
    thinned(
        [
            ("relative", {"global_block": SIZE}, "plain"),
            ("relative", {"global_block": SIZE}, "xla"),
            ("rope", {"global_block": SIZE, "global_tokens": 1}, "blockwise"),
            ("rope", {"global_block": SIZE, "global_tokens": 1}, "plain"),
            ("relative", {"global_tokens": 2}, "blockwise"),
        ],
        2,
    ),
)
def test_attention_is_that_of_loops(build, positions, fields, kernel, monkeypatch):
    monkeypatch.setattr("lmjax.model.kernels.softmax.BLOCK", 4)
    given = {f"attention.{name}": x for name, x in ({"window": 2, "kernel": kernel} | fields).items()}
    model, params = build(
        "encoder", positions=positions, num_layers=1, norm="rmsnorm", scan_layers=False,
        biases=("query", "key", "value", "out"), **given,
    )  # fmt: skip
    batch = {"tokens": np.arange(32).reshape(2, 16), "positions": PLACES, "segment_ids": SEGMENTS}
    names = ["layer_0/attention_norm", "layer_0/attention"]
    _, found = intercept.record(model, params, batch, names)
    x, y = (np.asarray(found[name], np.float64) for name in names)
    stack = {path.removeprefix("backbone/stack/"): leaf for path, leaf in flat(params).items()}
    real = SEGMENTS > 0
    np.testing.assert_allclose(y[real], reference(model.config, stack, x, BLOCKS)[real], atol=2e-5)


def test_rows_over_devices_are_refused(every_device):
    mesh = make_mesh(ParallelConfig(sequence=2), jax.devices()[:2])
    rules = nn.logical_axis_rules(axes.SEQUENCE_RULES["ring"])
    with jax.set_mesh(mesh), rules, pytest.raises(FlagError, match="global_block=3: the keys of blocks"):
        Blocks.of(jnp.asarray(PLACES), None, SIZE, 2)


@pytest.mark.parametrize("length", [13, 16])
def test_encoder_of_long_t5(length):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LongT5Config(
        vocab_size=32, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, local_radius=2, global_block_size=SIZE,
        encoder_attention_type="transient-global", relative_attention_num_buckets=8,
        relative_attention_max_distance=12, feed_forward_proj="gated-gelu", dropout_rate=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = transformers.LongT5EncoderModel(theirs).eval()
    for parameter in peer.parameters():
        parameter.data.normal_(0.2, 0.5)
    weights = {name: x.detach().numpy() for name, x in peer.state_dict().items()}
    config = ModelConfig(
        architecture="encoder", vocab_size=32, embed_dim=16, num_heads=4, mlp_dim=24, num_layers=2, max_length=16,
        norm="rmsnorm", norm_epsilon=1e-6, biases=(), mlp="geglu_new", positions="relative", scan_layers=False,
        relative={"buckets": 8, "max_distance": 12}, attention={"scale": 1.0, "window": 3, "global_block": SIZE},
    )  # fmt: skip
    ours = {"embedding/table": weights["shared.weight"]}
    ours["backbone/stack/final_norm/scale"] = weights["encoder.final_layer_norm.weight"]
    for i in range(2):
        there, here = f"encoder.block.{i}.layer.", f"backbone/stack/layer_{i}/"
        inner = f"{there}0.TransientGlobalSelfAttention."
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            ours[f"{here}attention/{name}/kernel"] = weights[f"{inner}{short}.weight"].T.reshape(16, 4, 4)
        ours[f"{here}attention/out/kernel"] = weights[f"{inner}o.weight"].T.reshape(4, 4, 16)
        ours[f"{here}attention/block_norm/scale"] = weights[f"{inner}global_input_layer_norm.weight"]
        ours[f"{here}attention_norm/scale"] = weights[f"{there}0.layer_norm.weight"]
        ours[f"{here}mlp_norm/scale"] = weights[f"{there}1.layer_norm.weight"]
        for name, short in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")):
            ours[f"{here}mlp/{name}/kernel"] = weights[f"{there}1.DenseReluDense.{short}.weight"].T
    inner = "encoder.block.0.layer.0.TransientGlobalSelfAttention."
    ours["backbone/stack/relative_bias/table"] = weights[f"{inner}relative_attention_bias.weight"]
    ours["backbone/stack/block_relative_bias/table"] = weights[f"{inner}global_relative_attention_bias.weight"]
    tokens = np.random.default_rng(0).integers(0, 32, (2, 16))
    real = (np.arange(16) < np.array([[length], [16]])).astype(int)
    with torch.no_grad():
        expected = peer(torch.tensor(tokens), attention_mask=torch.tensor(real)).last_hidden_state.numpy()
    model = LanguageModel(config)
    found = model.apply({"params": unflat(ours)}, {"tokens": tokens, "segment_ids": real})
    np.testing.assert_allclose(found[real > 0], expected[real > 0], atol=2e-5)


def test_encoder_of_longformer():
    """With one set of projections for both kinds of tokens, where the checkpoints have two that begin alike."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LongformerConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=40, attention_window=[4, 4], type_vocab_size=1, pad_token_id=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    peer = transformers.LongformerModel(theirs, add_pooling_layer=False).eval()
    for parameter in peer.parameters():
        parameter.data.normal_(0.1, 0.4)
    weights = {name: x.detach().numpy() for name, x in peer.state_dict().items()}
    for name in [name for name in weights if "_global" in name]:
        peer.state_dict()[name].copy_(torch.tensor(weights[name.replace("_global", "")]))
    config = ModelConfig(
        architecture="encoder", vocab_size=32, embed_dim=16, num_heads=4, mlp_dim=24, num_layers=2, max_length=38,
        norm_position="post", norm_epsilon=1e-12, mlp="gelu", position_offset=2, scan_layers=False,
        embedding={"types": 1, "norm": True}, attention={"window": 3, "global_tokens": 2},
    )  # fmt: skip
    ours = {
        "embedding/table": weights["embeddings.word_embeddings.weight"],
        "backbone/inputs/positions/table": weights["embeddings.position_embeddings.weight"],
        "backbone/inputs/types/table": weights["embeddings.token_type_embeddings.weight"],
        "backbone/inputs/norm/scale": weights["embeddings.LayerNorm.weight"],
        "backbone/inputs/norm/bias": weights["embeddings.LayerNorm.bias"],
    }
    for i in range(2):
        there, here = f"encoder.layer.{i}.", f"backbone/stack/layer_{i}/"
        for name in ("query", "key", "value"):
            ours[f"{here}attention/{name}/kernel"] = weights[f"{there}attention.self.{name}.weight"].T.reshape(16, 4, 4)
            ours[f"{here}attention/{name}/bias"] = weights[f"{there}attention.self.{name}.bias"].reshape(4, 4)
        ours[f"{here}attention/out/kernel"] = weights[f"{there}attention.output.dense.weight"].T.reshape(4, 4, 16)
        ours[f"{here}attention/out/bias"] = weights[f"{there}attention.output.dense.bias"]
        for name, short in (("attention_norm", "attention.output.LayerNorm"), ("mlp_norm", "output.LayerNorm")):
            ours[f"{here}{name}/scale"], ours[f"{here}{name}/bias"] = (
                weights[f"{there}{short}.{kind}"] for kind in ("weight", "bias")
            )
        for name, short in (("up", "intermediate.dense"), ("down", "output.dense")):
            ours[f"{here}mlp/{name}/kernel"] = weights[f"{there}{short}.weight"].T
            ours[f"{here}mlp/{name}/bias"] = weights[f"{there}{short}.bias"]
    tokens = np.random.default_rng(0).integers(2, 32, (2, 12))
    real = (np.arange(12) < np.array([[9], [12]])).astype(int)
    tokens = np.where(real, tokens, 1)
    flags = np.zeros((2, 12), int)
    flags[:, :2] = 1
    with torch.no_grad():
        expected = peer(
            torch.tensor(tokens), attention_mask=torch.tensor(real), global_attention_mask=torch.tensor(flags)
        ).last_hidden_state.numpy()
    found = LanguageModel(config).apply({"params": unflat(ours)}, {"tokens": tokens, "segment_ids": real})
    np.testing.assert_allclose(found[real > 0], expected[real > 0], atol=2e-5)
