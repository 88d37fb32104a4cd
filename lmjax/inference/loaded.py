"""A model that is ready to write and to score: parameters on devices, a tokenizer, and how a text becomes a row."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax

from lmjax.axes import RULES
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel

PyTree = Any


@dataclasses.dataclass(frozen=True)
class PromptFormat:
    """What stands around a text in the rows that a model was trained on.

    Attributes:
        before: ids in front of a text.
        after: ids behind it; a decoder's prompt ends with them, if its rows were source and target.
        start: ids that an encoder-decoder's decoder reads first.
        forced: ids that it then writes whatever it thinks, such as the target's language; a decoder forces none.
        stop: ids that end what is written.
        never: ids that are never written: they stand for no text, or the tokenizer does not know them.
        never_first: ids that are not written first, behind those that are forced.
        never_words: several ids each, that are never written behind one another.
        last: ids of which one is written where the limit is reached, whatever the model thinks.
        bidirectional: a decoder's prompt is a prefix, all of which its tokens see (prefix language models).
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    forced: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    never_words: tuple[tuple[int, ...], ...] = ()
    last: tuple[int, ...] = ()
    bidirectional: bool = False

    def around(self, ids: Sequence[int]) -> list[int]:
        """Returns the ids of a text with what stands around them."""
        return [*self.before, *ids, *self.after]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its devices; what every function of `lmjax.inference` takes first.

    Attributes:
        model: the Flax module, its layers unrolled.
        params: its parameters, on `mesh`.
        tokenizer: text to ids and back.
        prompts: what stands around a text.
        mesh: the devices.
        defaults: how it writes unless asked otherwise.
    """

    model: LanguageModel
    params: PyTree
    tokenizer: Vocabulary
    prompts: PromptFormat
    mesh: jax.sharding.Mesh
    defaults: GenerationDefaults = dataclasses.field(default_factory=GenerationDefaults)

    @property
    def config(self) -> ModelConfig:
        """Returns the architecture."""
        return self.model.config

    @contextlib.contextmanager
    def on_devices(self) -> Iterator[None]:
        """Lets the mesh of the model and the rules of its axes hold for what is traced inside."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(RULES):
            yield

    def check_vocabulary(self) -> None:
        """Raises FlagError if the model predicts no tokens."""
        if not self.model.has_vocabulary:
            encoder = self.config.architecture == "encoder"
            needed = "a masked_lm head" if encoder else "vocabulary logits, and no classifier in their place"
            raise FlagError(
                f"this {self.config.architecture.replace('_', '-')} with heads={self.model.heads} predicts no tokens; "
                f"take a model with {needed}"
            )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text with what stands around it in a row."""
        return self.prompts.around(self.tokenizer.encode(text))
