"""The likelihoods of the tokens of a text are those of which its score is the sum."""

import dataclasses

import numpy as np
import pytest

from lmjax.errors import FlagError
from lmjax.inference.score.score import rolling
from lmjax.inference.score.tokens import by_token
from lmjax.objectives.masked_diffusion import MaskedDiffusionConfig
from tests.inference.scoring import log_probs, tiny

# The second text is longer than the rows of the model, so that it is read in windows.
TEXTS = ["The old king goes", "The young king goes under the old tree. A queen sees the river house, never the houses"]


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder_decoder"])
def test_tokens_sum_to_the_score_of_their_text(family):
    loaded = tiny(family)
    found = by_token(loaded, TEXTS)
    for text, own, whole in zip(TEXTS, found, rolling(loaded, TEXTS), strict=True):
        assert own.ids == loaded.tokenizer.encode(text)
        assert len(own.log_likelihoods) == len(own.ids) == whole.tokens
        assert own.log_likelihoods.sum() == pytest.approx(whole.log_likelihood, abs=1e-3)
    assert len(found[1].ids) > loaded.config.max_length


def test_a_model_that_writes_by_unmasking_masks_one_token_at_a_time():
    plain = tiny("encoder")
    loaded = dataclasses.replace(plain, tasks={"masked_diffusion": MaskedDiffusionConfig()})
    assert loaded.unmasks
    (found,) = by_token(loaded, TEXTS[:1])
    row = loaded.prompts.around([found.ids[0], loaded.tokenizer.mask_id, *found.ids[2:]])
    assert found.log_likelihoods[1] == pytest.approx(log_probs(loaded, {"tokens": row})[2, found.ids[1]], abs=1e-4)
    np.testing.assert_allclose(found.log_likelihoods, by_token(plain, TEXTS[:1])[0].log_likelihoods, atol=1e-6)


def test_a_list_of_texts_is_needed():
    with pytest.raises(FlagError, match="is one text; give a list"):
        by_token(tiny("decoder"), TEXTS[0])
