"""The batch has the fewest slots that its texts need, and what it holds stays the same when their number changes."""

import jax
import numpy as np
import pytest

from lmjax.inference.generate import decode
from lmjax.inference.generate.requests import Request
from lmjax.inference.generate.writing import pieces
from lmjax.serving import slots
from lmjax.serving.reading import narrow_pieces, widths
from lmjax.serving.slots import Slots, resized
from tests.inference.writers import some_prompts, writer


def test_sizes_grow_by_half_up_to_the_capacity(monkeypatch):
    monkeypatch.setattr(slots, "_SMALLEST", 256)
    assert Slots(2, 1152).sizes == [256, 384, 576, 896, 1152]
    assert Slots(2, 300).sizes == [300]


def test_the_batch_grows_with_its_longest_text_and_shrinks_with_room_to_spare(monkeypatch):
    monkeypatch.setattr(slots, "_SMALLEST", 8)
    monkeypatch.setattr(slots, "_BLOCK", 4)
    rows = Slots(3, 40)
    assert rows.sizes == [8, 12, 20, 32, 40]

    def at(size):
        rows.now = size
        return size

    assert at(rows.join(0, 6)) == 8
    assert [at(rows.step()) for _ in range(4)] == [8, 8, 12, 12], "slots 7 and 8 are there, 9 and 10 need more"
    assert at(rows.join(1, 12)) == 20, "its next token takes slot 13"
    rows.end(np.array([False, True, False]))
    assert at(rows.step()) == 20, "a step never makes it smaller"
    assert at(rows.join(2, 3)) == 20, "11 slots and a seventh do not fit into 12"
    rows.end(np.array([True, False, False]))
    assert at(rows.join(1, 9)) == 12
    rows.end(np.array([False, True, True]))
    assert at(rows.join(0, 4)) == 8
    assert [at(rows.step()) for _ in range(60)][-1] == 40, "there is no larger size"


def test_a_prompt_is_read_in_whole_chunks_after_a_narrow_piece():
    assert widths(128) == [32, 64, 96, 128]
    assert widths(16) == [16]
    assert widths(40) == [16, 32, 40]
    for length, known, wanted in (
        (1, 0, [32]),
        (70, 0, [96]),
        (128, 0, [128]),
        (129, 0, [32, 128]),
        (300, 20, [32, 128, 128]),
    ):
        prompt = list(range(100, 100 + length))
        found = narrow_pieces(prompt, known, 128, 7)
        assert [piece["tokens"].shape[1] for piece in found] == wanted
        tokens, positions, segments = (
            np.concatenate([piece[name] for piece in found], 1)[0] for name in ("tokens", "positions", "segment_ids")
        )
        assert tokens[segments > 0].tolist() == prompt[known:]
        assert set(tokens[segments == 0]) <= {7}
        assert positions[segments > 0].tolist() == list(range(known, length))
        assert not positions[segments == 0].any()


@pytest.mark.parametrize("name", ["rope", "window"])
@pytest.mark.parametrize("kind", ["compute", "int8"])
def test_a_resized_cache_gives_the_same_logits(name, kind):
    loaded = writer(name, max_length=64)
    model, ids = loaded.model, some_prompts(14)[0]
    (piece,) = pieces(loaded, [Request(0, 0, tuple(ids))], 16)

    def logits(sizes):
        found, cache = decode.prefill(loaded.params, piece, model=model, capacity=sizes[0], kind=kind)
        for i, size in enumerate(sizes[1:]):
            cache = resized(cache, model, size, release=i % 2 == 1)
            assert cache.capacity == size
            last = np.argmax(np.asarray(found), -1)[:, None].astype(np.int32)
            fields = decode.row_fields(model, last, np.full((1, 1), len(ids) + i, np.int32))
            found, cache = decode.extend(loaded.params, fields, cache, model=model)
        return np.asarray(found)

    np.testing.assert_allclose(logits([20, 48, 24, 20, 64]), logits([64, 64, 64, 64, 64]), atol=1e-5, rtol=1e-5)


def test_released_buffers_are_deleted():
    loaded = writer("rope")
    cache = loaded.model.empty_cache(2, 16)
    cache = jax.tree.map(jax.numpy.array, cache)
    resized(cache, loaded.model, 32)
    assert not cache.layers[0]["attention"].key.is_deleted()
    resized(cache, loaded.model, 32, release=True)
    assert cache.layers[0]["attention"].key.is_deleted()
