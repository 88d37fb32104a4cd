"""A model that is ready to write and to score: parameters on devices, a tokenizer, and how a text becomes a row."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np

from lmjax.axes import RULES
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.inference.forward import ModelOutput, forward
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import side
from lmjax.parallel.mesh import batch_sharding, batch_shards
from lmjax.schema import Schema

PyTree = Any
# A text, or its ids.
Text = str | Sequence[int]
Texts = Text | Sequence[Text]

# Rows of a forward pass are no shorter; texts that are share programs.
_SHORTEST = 16


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

    def __call__(
        self,
        texts: Texts,
        *,
        targets: Texts | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> ModelOutput:
        """Returns what the model computes for texts: one forward pass, in which no text depends on another.

        Args:
            texts: one or several; each a text, which gets what stands around a text, or ids, taken as they are. A
                decoder that was trained to see a prefix from both sides sees all of a text so.
            targets: of an encoder-decoder, what its decoder reads behind its first ids, one for each text; a text has
                nothing else around it. None: the decoder reads its first ids alone.
            output_hidden_states: also return the hidden states of every layer.
            output_attentions: also return the attention weights of every layer; they grow with the square of a length.

        Raises:
            FlagError: something that is no text, an id that the model does not have, a text that is too long, or
                targets for a model without an encoder.
        """
        rows = [self.ids(text, f"texts[{i}]") for i, text in enumerate(as_list(texts, "texts"))]
        fields, count = self._rows(rows, targets), len(rows)
        given = jax.device_put(fields, batch_sharding(self.mesh))
        with self.on_devices():
            found = forward(self.model, self.params, given, output_hidden_states, output_attentions)
        found = jax.tree.map(lambda x: np.asarray(x)[:count], found)

        def read(side: str) -> dict[str, np.ndarray]:
            rows = {name: fields[f"{side}{name}"][:count] for name in ("tokens", "segment_ids")}
            return {"tokens": rows["tokens"], "mask": rows["segment_ids"] > 0}

        if "encoder" not in found:
            return ModelOutput(**read(""), **found)
        found["encoder"] = ModelOutput(**read("encoder_"), **found["encoder"])
        return ModelOutput(**read("decoder_"), **found)

    def _rows(self, texts: list[tuple[int, ...]], targets: Texts | None) -> dict[str, np.ndarray]:
        """Returns the fields of a batch, `[batch, length]` each, empty rows at its end so that the mesh divides it."""
        paired = self.config.family.paired
        if targets is not None and not paired:
            raise FlagError(
                f"targets={str(targets)[:80]!r}: only an encoder-decoder reads a second text; join the two texts"
            )
        sides = {"encoder_" if paired else "": texts}
        if paired:
            sides["decoder_"] = self._targets(targets, len(texts))
        empty = [()] * (-len(texts) % batch_shards(self.mesh))
        fields = {}
        for prefix, rows in sides.items():
            for i, row in enumerate(rows):
                place = f"{'targets' if prefix == 'decoder_' else 'texts'}[{i}]"
                check_length(self.config, len(row), 0, place, decoder=prefix != "encoder_")
            length = self._length(max(map(len, rows)), decoder=prefix != "encoder_")
            made = [side([np.asarray(row, np.int32)], length, self.tokenizer.pad_id, prefix) for row in [*rows, *empty]]
            fields |= {name: np.stack([row[name] for row in made]) for name in made[0]}
        if self.prompts.bidirectional:
            fields["prefix"] = fields["segment_ids"]
        return fields

    def _targets(self, targets: Texts | None, count: int) -> list[tuple[int, ...]]:
        """Returns what a decoder reads of each of `count` targets."""
        begun = (*self.prompts.start, *self.prompts.forced)
        if not begun:
            raise FlagError("prompts.start: is empty, and an encoder-decoder's decoder begins with it; give one id")
        if targets is None:
            return [begun] * count
        listed = as_list(targets, "targets")
        if len(listed) != count:
            raise FlagError(f"targets: there are {len(listed)} of them, and {count} texts; give one for each text")
        return [(*begun, *self.ids(text, f"targets[{i}]", around=False)) for i, text in enumerate(listed)]

    def _length(self, longest: int, *, decoder: bool) -> int:
        """Returns the length of rows for texts of at most `longest` tokens: one of few, so that programs are reused."""
        limit = longest_row(self.config, decoder=decoder)
        length = max(_SHORTEST, 1 << (longest - 1).bit_length())
        return length if limit is None else min(length, limit)

    @overload
    def encode(self, texts: str) -> list[int]: ...

    @overload
    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def encode(self, texts: str | Sequence[str]) -> list[int] | list[list[int]]:
        """Returns the ids of a text with what stands around it in a row, or a list of them for several texts."""
        if isinstance(texts, str):
            return self.prompts.around(self.tokenizer.encode(texts))
        listed = as_list(texts, "texts")
        if wrong := [text for text in listed if not isinstance(text, str)]:
            raise FlagError(f"{wrong[0]!r} is no text; encode takes a text or a list of texts")
        return [self.prompts.around(ids) for ids in self.tokenizer.encode_batch(listed)]

    @overload
    def decode(self, ids: Sequence[int]) -> str: ...

    @overload
    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...

    def decode(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> str | list[str]:
        """Returns the text of ids, or a list of texts for several rows of ids; special symbols leave nothing."""
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise FlagError(f"{ids!r} are no ids; decode takes a list of ids, or several")
        rows = list(ids)
        if rows and isinstance(rows[0], Iterable):
            return [self.decode(row) for row in rows]
        if wrong := [i for i in rows if not _is_id(i, self.tokenizer.vocab_size)]:
            raise FlagError(f"{wrong[0]!r} is no id of the tokenizer; ids go from 0 to {self.tokenizer.vocab_size - 1}")
        return self.tokenizer.decode([int(i) for i in rows])

    def ids(self, text: Text, name: str, *, around: bool = True) -> tuple[int, ...]:
        """Returns the ids of a text, or ids as they are.

        Args:
            text: a text, which is not blank, or at least one id.
            name: what messages call it.
            around: whether a text gets what stands around one.

        Raises:
            FlagError: it is neither, has no tokens, or an id that the model does not have.
        """
        if isinstance(text, str):
            if not text.strip():
                raise FlagError(f"{name} is empty; write what the text begins with")
            ids = self.tokenizer.encode(text)
            ids = self.prompts.around(ids) if around else ids
        elif isinstance(text, Sequence | np.ndarray):
            ids = text
        else:
            raise FlagError(f"{name} is {text!r}; give a text or a list of ids")
        if not len(ids):
            raise FlagError(f"{name} has no tokens; write what the text begins with")
        if odd := [i for i in ids if not _is_id(i, self.config.vocab_size)]:
            raise FlagError(
                f"{name}: id {odd[0]} is not in the vocabulary; ids go from 0 to {self.config.vocab_size - 1}"
            )
        return tuple(int(i) for i in ids)


def check_arguments(loaded: object, config: object, kind: type[Schema]) -> None:
    """Raises FlagError for what is no loaded model, such as its folder, and for a config of another kind.

    Args:
        loaded: what should be a `LoadedModel`.
        config: what should be of `kind`; None: there is none.
        kind: of the config.
    """
    if not isinstance(loaded, LoadedModel):
        raise FlagError(
            f"the model is {str(loaded)[:80]!r}, a {type(loaded).__name__}; give what lmjax.load_model(PLACE) returns"
        )
    if config is not None and not isinstance(config, kind):
        raise FlagError(f"config is {str(config)[:80]!r}, a {type(config).__name__}; give a {kind.__name__}(...)")


def check_list(values: object, name: str, what: str) -> None:
    """Raises FlagError for what is no list of several, such as one text.

    Args:
        values: what should be a list.
        name: what messages call it.
        what: it should hold.
    """
    if isinstance(values, str):
        raise FlagError(f"{name}={values[:40]!r} is one text; give a list of {what}")
    if not isinstance(values, Sequence):
        raise FlagError(f"{name}={str(values)[:40]!r} is a {type(values).__name__}; give a list of {what}")


def as_list(texts: Texts, name: str) -> list[Text]:
    """Returns texts as a list: one text, or the ids of one, is a list of one; raises FlagError for anything else.

    Args:
        texts: one or several.
        name: what messages call them.
    """
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence | np.ndarray):
        raise FlagError(f"{name} is {str(texts)[:80]!r}; give a text, or a list of texts or of lists of ids")
    if not len(texts):
        raise FlagError(f"{name}: is empty; give at least one text")
    return [texts] if isinstance(texts[0], int | np.integer) else list(texts)


def longest_row(config: ModelConfig, *, decoder: bool) -> int | None:
    """Returns the tokens that a row may have, by how the order of tokens enters; None: any number.

    Args:
        config: of the model.
        decoder: whether the row is the decoder's of an encoder-decoder, or a decoder's.
    """
    return config.scheme(decoder).limit(config)


def check_length(
    config: ModelConfig, prompt: int, new: int, place: str, *, decoder: bool = True, whose: str = "the model's"
) -> None:
    """Raises FlagError where a row would be longer than a model's rows may be.

    Args:
        config: of the model.
        prompt: tokens of the prompt.
        new: that are written behind it, at most.
        place: what the error calls the prompt.
        decoder: as for `longest_row`.
        whose: what the error calls the model.
    """
    limit = longest_row(config, decoder=decoder)
    # The last token is written and not read.
    if limit is not None and prompt + max(new - 1, 0) > limit:
        room = limit - prompt + 1
        remedy = f"shorten it, or set --max_new_tokens to at most {room}" if new and room > 0 else "shorten it"
        and_new = f" and --max_new_tokens={new}" if new else ""
        raise FlagError(f"{place} has {prompt} tokens{and_new}, and {whose} rows have {limit}; {remedy}")


def _is_id(token: object, size: int) -> bool:
    """Returns whether a value is an id of a vocabulary of so many rows."""
    return isinstance(token, int | np.integer) and not isinstance(token, bool) and 0 <= token < size
