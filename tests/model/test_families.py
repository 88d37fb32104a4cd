"""Causality, bidirectionality, cross-attention and separation of packed documents, by gradients and values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.model.groups import RelativeConfig
from lmjax.model.language_model import LanguageModel
from lmjax.model.positions import ACROSS, SCHEMES
from lmjax.model.transformer import unstack_layers

POSITIONS = tuple(SCHEMES)
# Row 0 holds B (5 tokens), A (6) and padding; row 1 holds A and C: A differs in neighbour, start and segment id.
LENGTH = 12
A_IN_ROW_0, A_IN_ROW_1 = slice(5, 11), slice(0, 6)
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0], [1] * 6 + [2] * 6])
PLACES = np.array([[*range(5), *range(6), 0], [*range(6), *range(6)]])
TOKENS = np.array([[*range(LENGTH)], [*range(5, 11), *range(20, 26)]])


def _batch(architecture):
    if architecture != "encoder_decoder":
        return {"tokens": TOKENS, "positions": PLACES, "segment_ids": SEGMENTS}
    sides = {}
    for side, tokens in (("encoder", TOKENS + 32), ("decoder", TOKENS)):
        sides |= {f"{side}_tokens": tokens, f"{side}_positions": PLACES, f"{side}_segment_ids": SEGMENTS}
    return sides


def _influence(model, params, batch):
    """Returns `[length, vocab]`: gradients of the output at each position of row 0 by the embedding of each token.

    Every token of row 0 occurs there once, so that a token id identifies a position.
    """
    row = {name: value[:1] for name, value in batch.items()}

    @jax.jit
    def gradient(table, place):
        def output(table):
            hidden = model.apply({"params": params | {"embedding": {"table": table}}}, row)
            return hidden[0, place] @ jnp.sin(jnp.arange(hidden.shape[-1]))

        return jnp.abs(jax.grad(output)(table)).sum(-1)

    return np.stack([gradient(params["embedding"]["table"], place) for place in range(LENGTH)])


@pytest.mark.parametrize(
    ("architecture", "positions"), [("encoder", "learned"), ("decoder", "rope"), ("encoder_decoder", "relative")]
)
def test_a_place_sees_what_its_family_says_and_no_neighbour(build, architecture, positions):
    model, params = build(architecture, positions=positions)
    influence = _influence(model, params, _batch(architecture))
    own = SEGMENTS[0][:, None] == SEGMENTS[0][None, :]
    seen = own if architecture == "encoder" else own & np.tri(LENGTH, dtype=bool)
    np.testing.assert_array_equal(influence[:, :LENGTH] > 0, seen, "self-attention")
    cross = own if architecture == "encoder_decoder" else np.zeros_like(own)
    np.testing.assert_array_equal(influence[:, 32 : 32 + LENGTH] > 0, cross, "cross-attention")


OWN = SEGMENTS[0][:, None] == SEGMENTS[0][None, :]
DISTANCE = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None, :]
PREFIX = np.array([1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("architecture", "fields", "seen"),
    [
        ("decoder", {"attention.window": 3}, (DISTANCE >= 0) & (DISTANCE < 3)),
        ("encoder", {"attention.window": 3}, np.abs(DISTANCE) < 3),
        (
            "decoder",
            {"attention.window": 2, "attention.sink_tokens": 1},
            (DISTANCE >= 0) & ((DISTANCE < 2) | (PLACES[:1] < 1)),
        ),
        (
            "encoder",
            {"attention.window": 2, "attention.global_tokens": 1},
            (np.abs(DISTANCE) < 2) | (PLACES[:1] < 1) | (PLACES[:1].T < 1),
        ),
        # Blocks of four tokens and their rest: B has one, and A too.
        (
            "encoder",
            {"attention.window": 1, "attention.global_block": 4},
            (SEGMENTS[0] > 0) | np.eye(LENGTH, dtype=bool),
        ),
        ("encoder_decoder", {"attention.window": 1, "attention.decoder_window": False}, DISTANCE >= 0),
        ("encoder_decoder", {"attention.window": 2, "attention.global_block": 2}, (DISTANCE >= 0) & (DISTANCE < 2)),
    ],
)
def test_a_window_hides_what_is_farther(build, architecture, fields, seen):
    model, params = build(architecture, num_layers=1, **fields)
    influence = _influence(model, params, _batch(architecture))
    np.testing.assert_array_equal(influence[:, :LENGTH] > 0, OWN & seen)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("offset", [0, 1])
def test_one_layer_in_two_has_no_window(build, scan, offset):
    """Only the last of two layers has attention: if global, all tokens have an effect, else those in its window."""
    model, params = build(
        "decoder", **{"attention.window": 2, "attention.global_every": 2, "attention.global_offset": offset}
    )
    layers = params["backbone"]["stack"]["layers"]
    # Without attention in the first layer, a position depends only on those to which it attends in the second layer.
    layers = layers | {"attention": jax.tree.map(np.copy, layers["attention"])}
    layers["attention"]["out"]["kernel"][0] = 0
    params = params | {"backbone": params["backbone"] | {"stack": params["backbone"]["stack"] | {"layers": layers}}}
    if not scan:
        params = unstack_layers(params)
        model = LanguageModel(model.config.model_copy(update={"scan_layers": False}))
    influence = _influence(model, params, _batch("decoder"))
    near = (DISTANCE >= 0) & (DISTANCE < 2)
    np.testing.assert_array_equal(influence[:, :LENGTH] > 0, OWN & (near if offset == 0 else DISTANCE >= 0))


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_a_prefix_is_seen_by_all_of_its_segment(build, architecture):
    model, params = build(architecture, positions="rope", num_layers=1)
    name = "prefix" if architecture == "decoder" else "decoder_prefix"
    batch = _batch(architecture) | {name: np.stack([PREFIX, PREFIX])}
    influence = _influence(model, params, batch)
    np.testing.assert_array_equal(influence[:, :LENGTH] > 0, OWN & ((DISTANCE >= 0) | (PREFIX > 0)))


@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("cross", [name for name in ACROSS if name != "none"])
def test_cross_positions_are_those_of_the_documents_not_of_the_row(build, forward, cross, per_layer):
    relative = RelativeConfig(per_layer=per_layer)
    model, params = build("encoder_decoder", positions="none", cross_positions=cross, relative=relative)
    if cross == "relative":
        owner = params["backbone"]["decoder"]["stack"]
        assert ("cross_relative_bias" in owner) != per_layer
        assert ("cross_relative_bias" in owner["layers"]) == per_layer
    hidden = forward(model, params, _batch("encoder_decoder"))
    np.testing.assert_allclose(hidden[0, A_IN_ROW_0], hidden[1, A_IN_ROW_1], atol=1e-5)
    tokens = {"encoder_tokens": np.arange(6)[None], "decoder_tokens": np.arange(6)[None]}
    forth = forward(model, params, tokens)
    back = forward(model, params, tokens | {"encoder_tokens": np.arange(6)[None, ::-1]})
    assert np.abs(forth - back).max() > 0.001, "the order of the memory reaches the decoder"


def test_each_side_has_its_own_kind_of_positions(build):
    _, params = build("encoder_decoder", positions="learned", decoder_positions="relative")
    assert "positions" in params["backbone"]["encoder"]["inputs"]
    assert "relative_bias" not in params["backbone"]["encoder"]["stack"]
    assert "inputs" not in params["backbone"]["decoder"]
    assert "relative_bias" in params["backbone"]["decoder"]["stack"]


def test_an_offset_starts_the_position_table_later(build, forward):
    """RoBERTa's first token has row 2 of the table; with row 0, all published positions would be off by two."""
    model, params = build("encoder", position_offset=2)
    table = params["backbone"]["inputs"]["positions"]["table"]
    assert table.shape == (18, 16)
    plain, _ = build("encoder")
    cut = params["backbone"] | {"inputs": {"positions": {"table": table[2:]}}}
    tokens = {"tokens": np.arange(16)[None]}
    expected = forward(plain, params | {"backbone": cut}, tokens)
    np.testing.assert_allclose(forward(model, params, tokens), expected, atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_another_neighbour_and_another_place_in_the_row_change_nothing(build, forward, architecture, positions):
    model, params = build(architecture, positions=positions)
    hidden = forward(model, params, _batch(architecture))
    assert np.isfinite(hidden).all(), "padding gives no NaN"
    np.testing.assert_allclose(hidden[0, A_IN_ROW_0], hidden[1, A_IN_ROW_1], atol=1e-5)


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_a_packed_document_is_the_document_alone(build, forward, architecture):
    positions = {"encoder": "learned", "decoder": "rope", "encoder_decoder": "relative"}[architecture]
    model, params = build(architecture, positions=positions)
    packed = forward(model, params, _batch(architecture))[0, A_IN_ROW_0]
    names = [name for name in _batch(architecture) if name.endswith("tokens")]
    alone = {name: _batch(architecture)[name][:1, A_IN_ROW_0] for name in names}
    np.testing.assert_allclose(forward(model, params, alone)[0], packed, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_order_matters_exactly_where_there_are_positions(build, forward, positions):
    model, params = build("encoder", positions=positions)
    tokens = np.arange(6)[None]
    # Rotated, not reversed: ALiBi depends on distances only, which are the same in a reversed row.
    turned = forward(model, params, {"tokens": np.roll(tokens, 2, axis=1)})
    same = np.allclose(forward(model, params, {"tokens": tokens}), np.roll(turned, -2, axis=1), atol=1e-5)
    assert same == (positions == "none")


def test_a_decoder_segment_with_an_empty_source_sees_no_other_source(build):
    model, params = build("encoder_decoder", positions="relative")
    batch = _batch("encoder_decoder")
    batch["encoder_segment_ids"] = np.where(SEGMENTS == 2, 0, SEGMENTS)
    influence = _influence(model, params, batch)
    np.testing.assert_array_equal(influence[A_IN_ROW_0, 32:], 0)


def test_token_types_reach_the_output_and_default_to_zero(build, forward):
    model, params = build("encoder", **{"embedding.types": 2})
    tokens = np.arange(6)[None]
    plain = forward(model, params, {"tokens": tokens})
    zeros = forward(model, params, {"tokens": tokens, "type_ids": np.zeros_like(tokens)})
    ones = forward(model, params, {"tokens": tokens, "type_ids": np.ones_like(tokens)})
    np.testing.assert_array_equal(plain, zeros)
    assert np.abs(plain - ones).max() > 0.01


def test_rows_longer_than_the_position_table_are_refused(build):
    model, params = build("decoder")
    with pytest.raises(FlagError, match=r"rows of 17 tokens.*max_length=16.*raise max_length"):
        model.apply({"params": params}, {"tokens": np.zeros((1, 17), np.int32)})


@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_embeddings_are_scaled_by_the_root_of_their_width(build, forward, architecture):
    """Only inputs are scaled: by 4 for 16 columns, so that a table times 4 without the scale gives the same."""
    fields = {"positions": "sinusoidal", "embedding.types": 0}
    scaled, params = build(architecture, **{"embedding.scale": True}, **fields)
    plain, _ = build(architecture, **{"embedding.scale": False}, **fields)
    larger = params | {"embedding": {"table": params["embedding"]["table"] * 4}}
    batch = _batch(architecture)
    found = forward(scaled, params, batch)
    np.testing.assert_allclose(found, forward(plain, larger, batch), atol=1e-5)
    assert np.abs(found - forward(plain, params, batch)).max() > 0.1


@pytest.mark.parametrize("types", [1, 2])
def test_a_model_with_one_type_has_it_for_both_texts_of_a_pair(build, forward, types):
    """RoBERTa's table has one row: an id of 1 would read past its end."""
    model, params = build("encoder", **{"embedding.types": types})
    batch = _batch("encoder")
    found, first = (forward(model, params, batch | {"type_ids": np.full_like(TOKENS, i)}) for i in (1, 0))
    assert np.isfinite(found).all()
    assert np.array_equal(found, first) == (types == 1)
