"""Texts from texts: continuations, summaries and translations."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ValidationError

from lmjax.errors import FlagError
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.generate import generate
from lmjax.pipelines.base import Pipeline, check_texts


class _Generation(Pipeline):
    """What pipelines that generate have in common: options are fields of `GenerateConfig`, or one as `config`."""

    def generated(self, inputs: list[Any], options: dict[str, Any]) -> list[list[str]]:
        """Returns the generated texts of each input, the best first."""
        config = options.pop("config", None)
        try:
            # Fields that are not given are the model's own, as its folder says.
            config = GenerateConfig(**options | {"batch_size": self.batch_size}) if config is None else config
        except ValidationError as e:
            error = e.errors()[0]
            raise FlagError(f"{'.'.join(map(str, error['loc']))}={error['input']!r}: {error['msg']}") from e
        return [[each.text for each in found] for found in generate(self.loaded, inputs, config)]


class TextGeneration(_Generation):
    """Continuations of texts, or the answer in conversations, by a decoder."""

    def check(self) -> None:
        """Raises FlagError unless the model is a decoder."""
        family = self.loaded.config.family
        if not family.causal or family.paired:
            raise FlagError(f"text-generation needs a decoder, and this is an {family.label}")
        self.loaded.check_vocabulary()

    def results(
        self, inputs: list[str], *, return_full_text: bool = True, **options: Any
    ) -> list[list[dict[str, str]]]:
        """Returns for each text a list of {"generated_text"}, the best first.

        Args:
            inputs: the texts.
            return_full_text: whether results begin with the text that was given.
            options: fields of `GenerateConfig`.
        """
        check_texts(inputs)
        found = self.generated(inputs, options)
        return [
            [{"generated_text": (text if return_full_text else "") + each} for each in texts]
            for text, texts in zip(inputs, found, strict=True)
        ]


class _FromSource(_Generation):
    """Targets of sources, by an encoder-decoder, or a decoder that was trained on pairs.

    Attributes:
        key: the name of a text in the results.
    """

    key: ClassVar[str]

    def check(self) -> None:
        """Raises FlagError unless the model generates."""
        if not self.loaded.config.family.causal:
            raise FlagError(f"this {self.loaded.config.family.label} generates no texts; take an encoder-decoder")
        self.loaded.check_vocabulary()

    def results(self, inputs: list[str], *, prefix: str = "", **options: Any) -> list[dict[str, str]]:
        """Returns for each text its best result.

        Args:
            inputs: the texts.
            prefix: put before each text, such as "summarize: " for T5.
            options: fields of `GenerateConfig`.
        """
        check_texts(inputs)
        return [{self.key: texts[0]} for texts in self.generated([prefix + text for text in inputs], options)]


class Summarization(_FromSource):
    """Summaries, as {"summary_text"}."""

    key = "summary_text"


class Translation(_FromSource):
    """Translations, as {"translation_text"}."""

    key = "translation_text"
