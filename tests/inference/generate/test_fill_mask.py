"""Mask filling: the likeliest tokens at the mask's position, for every tokenizer and for rows with several texts."""

import dataclasses
import re

import numpy as np
import pytest

from lmjax.data.fast_tokenizer import load_tokenizer
from lmjax.errors import FlagError
from lmjax.inference.generate.fill_mask import _likeliest, encode_masked, fill_mask
from lmjax.inference.score.rows import RowConfig
from lmjax.interop.tokenizer_export import export_tokenizer
from tests.inference.scoring import log_probs, tiny, tokenizer

SMALL = RowConfig(row_length=16, batch_tokens=64)
TEXTS = ["The old [MASK].", "A [MASK] sees the [MASK]", "[MASK]", "The house goes [MASK] the tree."]


def test_the_likeliest_tokens_of_every_mask():
    """Three texts share a row; each result equals that of the text alone, with both masks of a text masked."""
    loaded, t = tiny("encoder"), tokenizer()
    found = fill_mask(loaded, TEXTS, 3, SMALL)
    assert [len(masks) for masks in found] == [1, 2, 1, 1]
    for text, masks in zip(TEXTS, found, strict=True):
        row = [t.cls_id, *encode_masked(t, text), t.sep_id]
        at = np.flatnonzero(np.array(row) == t.mask_id)
        for place, fillings in zip(at, masks, strict=True):
            expected = log_probs(loaded, {"tokens": row})[place]
            assert [f.id for f in fillings] == np.argsort(-expected)[:3].tolist(), (
                "pick texts whose likeliest ids are tokens"
            )
            np.testing.assert_allclose([f.probability for f in fillings], np.exp(np.sort(expected)[:-4:-1]), rtol=1e-4)
            assert all(f.text == t.decode([f.id]) for f in fillings)


def test_every_token_can_be_listed_and_no_row_without_one():
    """The model's vocabulary has 192 rows for 180 ids; the softmax runs over all rows."""
    loaded, t = tiny("encoder"), tokenizer()
    ((found,),) = fill_mask(loaded, ["The old [MASK]."], t.vocab_size, SMALL)
    assert sorted(f.id for f in found) == list(range(t.vocab_size))
    assert sum(f.probability for f in found) < 1
    with pytest.raises(FlagError, match=f"top_k={t.vocab_size + 1}: must be from 1 to {t.vocab_size}, "):
        fill_mask(loaded, ["[MASK]"], t.vocab_size + 1, SMALL)


def test_other_counts_of_tokens_are_the_same_program():
    """A server must not compile for each count that a request names."""
    loaded = tiny("encoder")
    ((eight,),) = fill_mask(loaded, TEXTS[:1], 8, SMALL)
    before = _likeliest._cache_size()
    for count in range(1, 8):
        assert fill_mask(loaded, TEXTS[:1], count, SMALL) == [[eight[:count]]]
    assert _likeliest._cache_size() == before


def test_the_space_in_front_of_a_mask_is_the_masked_tokens():
    """As in training, where the masked token " king" includes its space."""
    t = tokenizer()
    the, goes = t.encode("The"), t.encode(" goes")
    assert t.encode("The king goes") == [*the, *t.encode(" king"), *goes]
    assert encode_masked(t, "The [MASK] goes") == [*the, t.mask_id, *goes]


def test_an_exported_tokenizer_has_the_same_masks(tmp_path):
    """Hugging Face's tokenizers encode text that spells a special token as that token."""
    export_tokenizer(tokenizer(), tmp_path, "bert", 16)
    fast = load_tokenizer(str(tmp_path))
    ids = encode_masked(fast, "The [MASK] goes")
    assert ids.count(fast.mask_id) == 1
    assert ids[-1:] == fast.encode(" goes")


def test_mistakes_are_named():
    encoder = tiny("encoder")
    with pytest.raises(FlagError, match=re.escape("texts[1]: 'The king' has no [MASK]; write it")):
        fill_mask(encoder, ["[MASK]", "The king"])
    with pytest.raises(FlagError, match=r"texts\[0\]: \d+ tokens, but the model reads at most 16"):
        fill_mask(encoder, ["[MASK]" * 20])
    with pytest.raises(FlagError, match="only an encoder fills masks, and this is a decoder"):
        fill_mask(tiny("decoder"), ["[MASK]"])
    with pytest.raises(FlagError, match="top_k=0"):
        fill_mask(encoder, ["[MASK]"], 0)
    with pytest.raises(FlagError, match="a model with a masked_lm head"):
        fill_mask(dataclasses.replace(encoder, model=encoder.model.clone(heads=())), ["[MASK]"])
