"""Missing tokens of texts."""

from __future__ import annotations

from typing import Any

from lmjax.errors import FlagError
from lmjax.inference.generate.fill_mask import encode_masked, fill_mask
from lmjax.inference.score.rows import RowConfig
from lmjax.pipelines.base import Pipeline, check_texts


class FillMask(Pipeline):
    """The likeliest tokens for each mask of a text."""

    def check(self) -> None:
        """Raises FlagError unless the model is an encoder that predicts tokens."""
        if self.loaded.config.family.causal:
            raise FlagError(f"fill-mask needs an encoder, and this is a {self.loaded.config.family.label}")
        self.loaded.check_vocabulary()

    def results(self, inputs: list[str], *, top_k: int = 5) -> list[Any]:
        """Returns for each text {"score", "token", "token_str", "sequence"} of the `top_k` likeliest tokens.

        A text with several masks has a list for each mask, in whose sequences the other masks remain.
        """
        check_texts(inputs)
        tokenizer, results = self.loaded.tokenizer, []
        # A special token has no text; a folder of Hugging Face names it.
        names = getattr(tokenizer, "names", {})
        special = {i: names.get(f"{role}_token", "") for role, i in tokenizer.role_ids.items()}
        for text, masks in zip(inputs, fill_mask(self.loaded, inputs, top_k, RowConfig()), strict=True):
            ids = self.loaded.prompts.around(encode_masked(tokenizer, text))
            places = [i for i, token in enumerate(ids) if token == tokenizer.mask_id]
            found = []
            for place, fillings in zip(places, masks, strict=True):
                whole = [(f, [*ids[:place], f.id, *ids[place + 1 :]]) for f in fillings]
                found.append(
                    [
                        {
                            "score": f.probability,
                            "token": f.id,
                            "token_str": f.text or special.get(f.id, ""),
                            "sequence": tokenizer.decode(row),
                        }
                        for f, row in whole
                    ]
                )
            results.append(found[0] if len(found) == 1 else found)
        return results
