"""The settings of text generation, and which of them can be combined."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lmjax.inference.generate.beam import BeamConfig
from lmjax.inference.generate.processors import ProcessorConfig
from lmjax.inference.generate.requests import SMALLEST
from lmjax.inference.generate.sampling import SamplingConfig
from lmjax.inference.generate.unmask import UnmaskConfig
from lmjax.model.key_value import CacheType
from lmjax.schema import Schema
from lmjax.streams import SEEDS


class GenerateConfig(Schema):
    """Settings of text generation; the default is greedy decoding."""

    max_new_tokens: int = Field(64, ge=1, description="The most tokens that are generated for a prompt.")
    sampling: SamplingConfig = Field(SamplingConfig(), description="Temperature and filters of sampling.")
    processors: ProcessorConfig = Field(ProcessorConfig(), description="Penalties and bans.")
    beams: BeamConfig | None = Field(None, description="Beam search; none: greedy decoding or sampling.")
    unmask: UnmaskConfig = Field(UnmaskConfig(), description="How an encoder of masked diffusion replaces masks.")
    stop: tuple[str, ...] = Field((), description="Strings that end a text; they are not part of it.")
    stop_ids: tuple[int, ...] = Field((), description="Ids that end a text, in addition to the model's own.")
    regex: str | None = Field(None, description="A regular expression for the whole text.")
    json_schema: str | None = Field(None, description="A JSON schema, as JSON, for the whole text.")
    draft_tokens: int = Field(
        4, ge=1, le=64, description="Tokens that a draft model or prompt lookup guesses, to be checked in one pass."
    )
    lookup: int = Field(
        0,
        ge=0,
        le=SMALLEST,
        description="Guess the tokens that followed an earlier occurrence of this many last tokens; 0: off.",
    )
    seed: int = Field(0, ge=0, lt=SEEDS, description="Seed of random draws; prompt i has seed + i.")
    batch_size: int = Field(8, ge=1, description="Prompts in a batch.")
    cache: CacheType = Field("compute", description="Type of cached keys and values: int8 takes one byte each.")
    window: int | None = Field(
        None,
        ge=2,
        description="Keep the keys and values of the first `sinks` and of this many last tokens, so that texts of any"
        " length are read and written in constant memory (Xiao et al. 2024, arXiv:2309.17453); none: of all tokens.",
    )
    sinks: int = Field(4, ge=0, description="With a window, the first tokens that are kept.")
    prefill_chunk: int = Field(512, ge=16, description="Tokens of a prompt that are read in one pass.")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """Raises ValueError, with the field, its value and the remedy, for choices that exclude each other."""
        if "" in self.stop:
            raise ValueError("stop='' would end every text before it begins; give the string that ends it")
        constrained = self.regex is not None or self.json_schema is not None
        if self.regex is not None and self.json_schema is not None:
            raise ValueError("regex and json_schema are both given; a text is constrained by one of them")
        if self.beams is not None:
            others = {
                f"temperature={self.sampling.temperature}": self.sampling.temperature > 0,
                "regex or json_schema": constrained,
                "stop strings (stop_ids go)": bool(self.stop),
                f"lookup={self.lookup}": self.lookup > 0,
            }
            if clash := [name for name, given in others.items() if given]:
                raise ValueError(f"beams={self.beams.beams} and {clash[0]} cannot be combined; leave one out")
        if self.window is not None:
            history = self.processors.model_dump(exclude_defaults=True).keys() & {
                "repetition_penalty",
                "no_repeat_ngram",
            }
            others = {
                "beams": self.beams is not None,
                f"lookup={self.lookup}": self.lookup > 0,
                f"{min(history, default='')}, which reads the whole text": bool(history),
            }
            if clash := [name for name, given in others.items() if given]:
                raise ValueError(f"window={self.window} and {clash[0]} cannot be combined; leave one out")
        if self.lookup and constrained:
            raise ValueError(f"lookup={self.lookup} and regex or json_schema cannot be combined; leave one out")
        return self
