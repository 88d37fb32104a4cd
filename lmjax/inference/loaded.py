"""A model that is ready to write and to score: parameters on devices, a tokenizer, and how a text becomes a row."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax

from lmjax.axes import RULES
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.prompts import PromptFormat

PyTree = Any


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
            family, plain = self.config.family, "vocabulary logits, and no classifier in their place"
            needed = " and ".join(f"a {head} head" for head in family.vocabulary_heads) or plain
            raise FlagError(
                f"this {family.label} with heads={self.model.heads} predicts no tokens; take a model with {needed}"
            )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text with what stands around it in a row."""
        return self.prompts.around(self.tokenizer.encode(text))
