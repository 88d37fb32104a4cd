"""A model that is ready for inference: parameters on devices, a tokenizer, and the conversion of texts into rows."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import flax.linen as nn
import jax
import numpy as np

from lmjax.axes import RULES
from lmjax.data.chat import ChatTemplate
from lmjax.data.messages import USER, read_messages
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.inference.defaults import GenerationDefaults
from lmjax.inference.forward import ModelOutput, forward
from lmjax.inference.row_lengths import check_length, longest_row, row_length
from lmjax.inference.texts import Text, Texts, as_list, is_conversation
from lmjax.model.config import ModelConfig
from lmjax.model.language_model import LanguageModel
from lmjax.objectives.base import ObjectiveConfig
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.records import RecordTask
from lmjax.objectives.registry import OBJECTIVES, unmasks
from lmjax.objectives.rows import side
from lmjax.parallel.gather import over_processes
from lmjax.parallel.mesh import batch_sharding, batch_shards
from lmjax.schema import Schema

PyTree = Any
# The longest row of a task whose model has positions without a limit and does not say what it was trained on.
_LONGEST = 512


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its devices: the first argument of every function of `lmjax.inference`.

    Attributes:
        model: the Flax module, with unrolled layers.
        params: its parameters, on `mesh`.
        tokenizer: converts text to ids and back.
        prompts: the ids that are put before and after a text, and other ids with a role in prompts.
        mesh: the devices.
        defaults: generation settings of the model's folder, used for what a call does not set.
        tasks: settings of the objectives that it was fine-tuned on, by name; empty: none that is known.
        length: the most tokens in a row that it was trained on; None: not known.
        shown: names of labels in its Hugging Face config.json where its task has others: LABEL_0 for 0.
        together: whether all processes have the model and call each function with the same arguments, so that each
            computes a share of the texts or records, and all have all results; else each process is alone.
    """

    model: LanguageModel
    params: PyTree
    tokenizer: Vocabulary
    prompts: PromptFormat
    mesh: jax.sharding.Mesh
    defaults: GenerationDefaults = dataclasses.field(default_factory=GenerationDefaults)
    tasks: Mapping[str, ObjectiveConfig] = dataclasses.field(default_factory=dict)
    length: int | None = None
    shown: Mapping[str, str] = dataclasses.field(default_factory=dict)
    together: bool = False

    @property
    def config(self) -> ModelConfig:
        """Returns the architecture."""
        return self.model.config

    @property
    def has_task(self) -> bool:
        """Returns whether the model was fine-tuned for a task on records."""
        return has_record_task(self.tasks)

    @property
    def unmasks(self) -> bool:
        """Returns whether the model is an encoder that writes text by replacing masks, and bounds its likelihood."""
        return unmasks(self.tasks)

    @functools.cached_property
    def task(self) -> RecordTask:
        """Returns the task on records that the model was fine-tuned for; the same object at each call.

        Raises:
            FlagError: there is none.
        """
        # One object, because compiled programs are found by the task among their arguments.
        return record_task(self.tasks, self.tokenizer, self.config, self.length)

    @contextlib.contextmanager
    def on_devices(self) -> Iterator[None]:
        """Activates the model's mesh and the sharding rules of its axes for what is traced inside the context."""
        with jax.set_mesh(self.mesh), nn.logical_axis_rules(RULES):
            yield

    def each(self, items: Sequence[Any], compute: Callable[[Sequence[Any]], Sequence[Any]]) -> list[Any]:
        """Returns `compute(items)`, JSON values, of which each process computes a share if they run together."""
        return over_processes(items, compute) if self.together else list(compute(items))

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
        """Returns the arrays of one forward pass over texts; each text is a row of its own.

        Args:
            texts: one or several. A text is encoded as a prompt, with the ids that the prompt format puts before and
                after it; a list of ids is used as it is. A decoder that was trained with a bidirectional prefix
                treats the whole text as prefix.
            targets: only for an encoder-decoder: one text or list of ids for each of `texts`, which the decoder reads
                after its start ids; no other ids are added. None: the decoder reads its start ids only.
            output_hidden_states: also return the hidden states of every layer.
            output_attentions: also return the attention weights of every layer; their size grows with the square of
                the length.

        Raises:
            FlagError: a value that is not a text, an id outside the vocabulary, a text that is too long, or targets
                for a model without an encoder.
        """
        fields, count = self.rows(texts, targets), len(as_list(texts, "texts"))
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

    def rows(self, texts: Texts, targets: Texts | None = None) -> dict[str, np.ndarray]:
        """Returns the fields of a batch, `[batch, length]` each, padded with empty rows so that the mesh divides it.

        Arguments and errors as of a call.
        """
        texts = [self.ids(text, f"texts[{i}]") for i, text in enumerate(as_list(texts, "texts"))]
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
        """Returns the ids that a decoder reads for each of `count` targets: its start ids, then the target."""
        begun = (*self.prompts.start, *self.prompts.forced)
        if not begun:
            raise FlagError("prompts.start: is empty, but the decoder of an encoder-decoder needs it; give one id")
        if targets is None:
            return [begun] * count
        listed = as_list(targets, "targets")
        if len(listed) != count:
            raise FlagError(f"targets: there are {len(listed)} for {count} texts; give one for each text")
        return [(*begun, *self.ids(text, f"targets[{i}]", around=False)) for i, text in enumerate(listed)]

    def _length(self, longest: int, *, decoder: bool) -> int:
        """Returns the row length for texts of at most `longest` tokens: a power of two, so that programs are reused."""
        return row_length(longest, longest_row(self.config, decoder=decoder))

    @overload
    def encode(self, texts: str) -> list[int]: ...

    @overload
    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def encode(self, texts: str | Sequence[str]) -> list[int] | list[list[int]]:
        """Returns the ids of a text as a prompt (such as [CLS] text [SEP]), or a list of them for several texts."""
        if isinstance(texts, str):
            return self.prompts.around(self.tokenizer.encode(texts))
        listed = as_list(texts, "texts")
        if wrong := [text for text in listed if not isinstance(text, str)]:
            raise FlagError(f"{wrong[0]!r} is not a text; encode takes a text or a list of texts")
        return [self.prompts.around(ids) for ids in self.tokenizer.encode_batch(listed)]

    @overload
    def decode(self, ids: Sequence[int]) -> str: ...

    @overload
    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...

    def decode(self, ids: Sequence[int] | Sequence[Sequence[int]]) -> str | list[str]:
        """Returns the text of ids, or a list of texts for several rows of ids; special tokens are left out."""
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise FlagError(f"{ids!r} is not a list of ids; decode takes a list of ids, or several")
        rows = list(ids)
        if rows and isinstance(rows[0], Iterable):
            return [self.decode(row) for row in rows]
        if wrong := [i for i in rows if not _is_id(i, self.tokenizer.vocab_size)]:
            raise FlagError(
                f"{wrong[0]!r} is not an id of the tokenizer; ids go from 0 to {self.tokenizer.vocab_size - 1}"
            )
        return self.tokenizer.decode([int(i) for i in rows])

    def ids(self, text: Text, name: str, *, around: bool = True) -> tuple[int, ...]:
        """Returns the ids of a text or of a conversation, or given ids unchanged.

        Args:
            text: a text that is not blank, at least one id, or messages of which the last one is to be answered.
            name: the name of the argument in error messages.
            around: whether to add the ids that the prompt format puts before and after a text.

        Raises:
            FlagError: it is neither a text nor ids, has no tokens, or has an id outside the vocabulary.
            DataError: it is no conversation, or the chat template refuses it.
        """
        if isinstance(text, str) and not text.strip():
            raise FlagError(f"{name} is empty; write what the text begins with")
        if isinstance(text, str) and self.prompts.chat and around:
            text = [{"role": USER, "content": text}]
        if is_conversation(text):
            messages = read_messages(name, list(map(dict, text)), answered=False)
            ids = [*ChatTemplate.of(self.tokenizer).prompt(messages, name), *self.prompts.after]
        elif isinstance(text, str):
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
    """Raises FlagError if `loaded` is not a loaded model (such as its folder), or `config` has the wrong type.

    Args:
        loaded: should be a `LoadedModel`.
        config: should be an instance of `kind`; None is accepted.
        kind: the expected class of the config.
    """
    if not isinstance(loaded, LoadedModel):
        raise FlagError(
            f"the model is {str(loaded)[:80]!r}, a {type(loaded).__name__}; give what lmjax.load_model(PLACE) returns"
        )
    if config is not None and not isinstance(config, kind):
        raise FlagError(f"config is {str(config)[:80]!r}, a {type(config).__name__}; give a {kind.__name__}(...)")


def has_record_task(tasks: Mapping[str, ObjectiveConfig]) -> bool:
    """Returns whether one of these objectives is a task on records."""
    return any(issubclass(OBJECTIVES[name], RecordTask) for name in tasks)


def record_task(
    tasks: Mapping[str, ObjectiveConfig], tokenizer: Vocabulary, config: ModelConfig, length: int | None
) -> RecordTask:
    """Returns the task on records among the objectives that a model was fine-tuned on.

    Args:
        tasks: their settings by name.
        tokenizer: of the model.
        config: of the model.
        length: the most tokens in a row that it was trained on; None: not known.

    Raises:
        FlagError: there is none.
    """
    rooms = (length, longest_row(config, decoder=config.family.causal), _LONGEST)
    length = min(room for room in rooms if room is not None)
    for name, settings in tasks.items():
        if issubclass(OBJECTIVES[name], RecordTask):
            return OBJECTIVES[name](settings, tokenizer, config.architecture, length, length, 0)
    known = ", ".join(name for name, objective in OBJECTIVES.items() if issubclass(objective, RecordTask))
    raise FlagError(
        f"this {config.family.label} was not fine-tuned to predict something for each record; train one with one of "
        f"--objective={known}"
    )


def _is_id(token: object, size: int) -> bool:
    """Returns whether a value is an integer from 0 to `size` - 1."""
    return isinstance(token, int | np.integer) and not isinstance(token, bool) and 0 <= token < size
