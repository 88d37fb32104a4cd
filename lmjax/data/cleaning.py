"""What is left out of training data: copies, and documents whose text a filter finds.

| setting | which training documents are left out |
|---|---|
| dedup=exact | those that are equal, but for white space around them, to an earlier or to a held-out document |
| dedup=loose | those with the words of one, whatever their case, punctuation and white space |
| dedup=near | also those of whose runs of five words most are those of one |
| filter.words, filter.patterns | those in which a word, or a regular expression, of a file is found |
| filter.model | those to which a classifier gives a label |
| filter.languages | those in other languages, or in one that is not clear |

Of a pair or a record, its texts are compared, and not its label. The held-out data stays as it is. `runs.cleaning` does
this, because a classifier is a model.
"""

from typing import Literal

import pydantic

from lmjax.schema import Schema

Dedup = Literal["none", "exact", "loose", "near"]


class FilterConfig(Schema):
    """Which training documents are left out for what their texts say."""

    words: str = pydantic.Field(
        "", description="a file of words, one a line: documents with one of them are left out; case does not matter"
    )
    patterns: str = pydantic.Field("", description="the same, a file of regular expressions")
    model: str = pydantic.Field(
        "", description="a run or a Hugging Face folder that classifies texts; documents with its label are left out"
    )
    label: str = pydantic.Field("", description="the label of `model`; empty: its last one")
    threshold: float = pydantic.Field(
        0.5, gt=0, le=1, description="the probability of the label from which on a document is left out"
    )
    languages: tuple[str, ...] = pydantic.Field(
        (), description="codes such as en: documents in other languages, or in an unclear one, are left out"
    )

    @pydantic.model_validator(mode="after")
    def _label_of_a_model(self):
        if self.label and not self.model:
            raise ValueError(f"label={self.label!r} is a label of filter.model; give that too")
        return self

    @property
    def given(self) -> bool:
        """Returns whether anything is filtered."""
        return bool(self.words or self.patterns or self.model or self.languages)
