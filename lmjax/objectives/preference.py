"""Base classes of the objectives that learn from preferences: two answers to a prompt share a row, each a segment.

A decoder reads prompt and answer in each segment. An encoder-decoder reads the prompt in its encoder, once for each
answer, and the answers in its decoder. Only the tokens of an answer and the one that ends it are predicted; an answer
that was cut has no such end.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field

from lmjax.data.chat import ChatTemplate
from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.encoding import Encoder
from lmjax.data.preferences import CHOSEN, PROMPT, REJECTED, AnswersEncoder, PreferenceFormat, messages_of
from lmjax.data.store import Store
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import FlagError
from lmjax.model.traits import Family
from lmjax.objectives.base import Batch, Features, Forward, Objective, ObjectiveConfig, Rows
from lmjax.objectives.losses import target_log_probs
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import pad, rooms, side
from lmjax.objectives.sums import LossSum, Mean

_log = logging.getLogger(__name__)


class PreferenceConfig(ObjectiveConfig):
    """The settings that every objective on preferences has."""

    chat: bool = Field(
        False, description="prompts are conversations, or messages of the user, in the tokenizer's chat template"
    )
    prompt: tuple[tuple[int, ...], ...] = Field(
        (),
        description="the ids before a prompt, after it, at the start of a decoder's row, and those that end an answer;"
        " none: those of the model given with --init_from, or else the usual ones",
    )


def shares(length: int, around: int, prompt: int, answers: Sequence[int]) -> tuple[int, list[int]]:
    """Returns how many tokens of a prompt and of each answer are kept, if each answer stands behind the prompt.

    Answers get half of the row, or what their prompts leave; then the prompts get the rest.

    Args:
        length: tokens in the row.
        around: tokens for each answer besides it and the prompt.
        prompt: tokens of the prompt.
        answers: tokens of each answer.
    """
    count = len(answers)
    kept = rooms(answers, max(length // 2, length - count * (around + prompt)))
    return max(0, min(prompt, (length - sum(kept)) // count - around)), kept


def settings_of(name: str, form: PromptFormat) -> dict[str, Any]:
    """Returns the fields of `PreferenceConfig` for a run from a model with a prompt format.

    Args:
        name: of the objective, for messages.
        form: the format.

    Raises:
        FlagError: its prompts have bidirectional attention, or nothing ends its answers.
    """
    if form.bidirectional or not form.stop:
        said = "reads prompts with bidirectional attention" if form.bidirectional else "has no token that ends answers"
        raise FlagError(f"--objective={name}: the model of --init_from {said}; start from another one")
    ids = (form.before, form.after, (*form.start, *form.forced), form.stop)
    return PreferenceConfig(prompt=ids, chat=form.chat).model_dump(exclude_unset=True)


def answer_format(config: PreferenceConfig, tokenizer: Vocabulary, family: Family) -> PromptFormat:
    """Returns the ids around a prompt: those of the settings, or else EOS after a source, or BOS before a text."""
    t = tokenizer
    if config.prompt:
        before, after, start, stop = config.prompt
    elif family.paired:
        before, after, start, stop = (), (t.eos_id,), (t.pad_id,), (t.eos_id,)
    else:
        before, after, start, stop = (t.bos_id,), (), (), (t.eos_id,)
    written = set(stop)
    if config.chat:
        template = ChatTemplate.of(t)
        # The template puts all ids around a prompt but those at the end of an encoder's row.
        before, stop = (), tuple(dict.fromkeys((*template.stop, *stop)))
        written = {*stop, *template.written}
    never = tuple(sorted(t.special_ids - written))
    return PromptFormat(before=before, after=after, start=start, stop=stop, never=never, chat=config.chat)


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerRows(Rows):
    """The rows of all records, in the order of the file.

    Attributes:
        store: the records.
        objective: makes the rows.
        references: float32 `[rows, 2]`, the log-probabilities that the reference gives to the answers; None: they are
            not computed yet, and the rows have NaN in their place.
    """

    store: Store
    objective: "Preference"
    references: np.ndarray | None = None

    def __len__(self) -> int:
        return self.store.num_documents

    def documents(self, index: int) -> list[int]:
        """Returns the record of a row."""
        return [index]

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the two answers as segments, `targets`, `answer_ids` and `row_weights`, as `Preference.record`."""
        del rng
        found = self.objective.record(self.store, index)
        if self.objective.refers:
            unknown = np.full(2, np.nan, np.float32)
            found["references"] = unknown if self.references is None else self.references[index]
        return found


@dataclasses.dataclass(frozen=True)
class Preference(Objective):
    """An objective on the log-probabilities of two answers to a prompt.

    Attributes:
        paired: whether one of the answers is better than the other.
    """

    config: PreferenceConfig
    paired: ClassVar[bool] = True
    architectures: ClassVar[tuple[str, ...]] = ("decoder", "encoder_decoder")
    columns: ClassVar[tuple[Column, ...]] = (Column(PROMPT), Column(CHOSEN), Column(REJECTED))
    # The rate is that of the code of DPO's and SimPO's authors for models of 7 billion parameters, to be raised for
    # smaller ones; a pair shares a row, which is longer for that.
    recipe: ClassVar[Mapping[str, Any]] = {
        "epochs": 1.0,
        "batch_size": 32,
        "task.length": 512,
        "optimizer.learning_rate": 1e-6,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_share": 0.1,
        "optimizer.weight_decay": 0.0,
        "evaluation.every": 100,
    }

    @classmethod
    def record_format(cls, config: PreferenceConfig) -> PreferenceFormat:
        """Returns the format of preferences."""
        return PreferenceFormat(chat=config.chat)

    @classmethod
    def encoder(cls, config: PreferenceConfig, tokenizer: Vocabulary) -> Encoder | None:
        """Returns what renders conversations, or None for texts."""
        return AnswersEncoder(ChatTemplate.of(tokenizer)) if config.chat else None

    @classmethod
    def running_text(cls, config: PreferenceConfig, document: Document) -> str:
        """Returns the prompt and the answers."""
        prompt, *answers = document.segments
        return "\n".join([*(m.content for m in messages_of(prompt)), *answers] if config.chat else [prompt, *answers])

    @classmethod
    def penalised_by(cls, config: PreferenceConfig) -> tuple[str, ...]:
        """Returns none: the loss compares sums of log-probabilities."""
        del config
        return ()

    @classmethod
    def continued(cls, form: Callable[[], PromptFormat]) -> dict[str, Any]:
        """Returns the ids around the prompts of the model that the run starts from, and whether it answers messages.

        Raises:
            FlagError: its prompts have bidirectional attention, or nothing ends its answers.
        """
        return settings_of(cls.name, form())

    def prompt_format(self) -> PromptFormat:
        """Returns the ids around a prompt, as `answer_format`."""
        return answer_format(self.config, self.tokenizer, self.family)

    @functools.cached_property
    def form(self) -> PromptFormat:
        """Returns the prompt format, computed once."""
        return self.prompt_format()

    def sample(self, store: Store, room: int) -> None:
        """Returns None: the answers of a trained model are sampled by `lmjax generate`."""
        del store, room

    def rows(self, store: Store, seed: int) -> Rows:
        """Returns one row for each record; logs what is cut.

        Raises:
            FlagError: a row is too short for any prompt.
        """
        del seed
        form = self.form
        least = 2 * (len(form.before) + len(form.after) + 4)
        if self.length < least:
            raise FlagError(
                f"--config.task.length={self.length}: two answers share a row, each with its prompt; give at least "
                f"{least}, or better more than the tokens of two prompts and their answers"
            )
        cut = [self._cut(store, i) for i in range(store.num_documents)]
        short, ended, equal = (sum(column) for column in zip(*cut, strict=True))
        if short or ended:
            _log.warning(
                "%s: of %d records %d prompts lose their beginning and %d have answers that lose their end, because "
                "two answers and their prompts share a row of %d tokens (task.length, task.target_length)%s",
                self.name, len(cut), short, ended, self.length,
                f"; {equal} teach nothing, because their answers are equal up to there" if equal else "",
            )  # fmt: skip
        return AnswerRows(store, self)

    def answers(self, store: Store, index: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Returns the ids of a record's prompt, and of the two answers of its row with the ids that end them."""
        prompt, *answers = (store.texts(index, name)[0] for name in (PROMPT, CHOSEN, REJECTED))
        return prompt, [self.ended(answer) for answer in answers]

    def ended(self, answer: np.ndarray) -> np.ndarray:
        """Returns the ids of an answer with the one that ends it, which those of a chat template have already."""
        return answer if self.config.chat else np.append(answer, np.int32(self.form.stop[0]))

    def fitted(self, prompt: int, answers: Sequence[int]) -> tuple[int, list[int]]:
        """Returns how many tokens of a prompt and of its answers are kept, given their numbers."""
        form = self.form
        around = len(form.before) + len(form.after)
        if self.family.paired:
            kept = rooms(answers, self.target_length - len(answers) * (len(form.start) - 1))
            return max(0, min(prompt, self.length // len(answers) - around)), kept
        # The last token of a segment is predicted and not read.
        return shares(self.length, around - 1, prompt, answers)

    def _cut(self, store: Store, index: int) -> tuple[bool, bool, bool]:
        """Returns whether a record's prompt is cut, whether an answer is, and whether the answers are equal then."""
        prompt, answers = self.answers(store, index)
        sizes = [len(answer) for answer in answers]
        kept, rest = self.fitted(len(prompt), sizes)
        equal = self.paired and np.array_equal(*(a[:size] for a, size in zip(answers, rest, strict=True)))
        return kept < len(prompt), rest != sizes, equal

    def record(self, store: Store, index: int) -> Features:
        """Returns the features of a record without those of the reference: a prompt that is cut keeps its end.

        `answer_ids`, int32 of the shape of `targets`, is 1 or 2 for the tokens of an answer, and 0 for all others.
        """
        prompt, answers = self.answers(store, index)
        kept, sizes = self.fitted(len(prompt), [len(answer) for answer in answers])
        answers = [answer[:size] for answer, size in zip(answers, sizes, strict=True)]
        source = np.array(self.form.around(prompt[len(prompt) - kept :]), np.int32)
        begun = np.array(self.form.start, np.int32) if self.family.paired else source
        whole = [np.concatenate([begun, answer]) for answer in answers]
        owners = [(np.arange(1, len(ids)) >= len(begun)) * number for number, ids in enumerate(whole, 1)]
        inputs, pad_id = [ids[:-1] for ids in whole], self.tokenizer.pad_id
        length = self.target_length if self.family.paired else self.length
        row = {
            "targets": pad(np.concatenate([ids[1:] for ids in whole]), length, pad_id),
            "answer_ids": pad(np.concatenate(owners), length),
            "row_weights": np.float32(1),
        }
        if self.family.paired:
            return row | side([source] * 2, self.length, pad_id, "encoder_") | side(inputs, length, pad_id, "decoder_")
        return row | side(inputs, length, pad_id)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the number of records."""
        return {self.name: jnp.sum(batch["row_weights"])}

    def log_probs(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns the log-probabilities of the answers of each row, and the numbers of their tokens, `[batch, 2]`.

        An answer without tokens, as in rows that do not count, has one token of probability 1.
        """
        weights = (batch["answer_ids"][..., None] == jnp.array([[[1, 2]]])).astype(jnp.float32)
        found = target_log_probs(forward.hidden, forward.logits, batch["targets"], weights, chunk=self.vocab_chunk)
        return found, jnp.maximum(jnp.sum(weights, axis=1), 1.0)

    def log_ratios(self, forward: Forward, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Returns by how much the model finds each answer likelier than the reference, in nats, and token numbers."""
        found, counts = self.log_probs(forward, batch)
        counted = batch["row_weights"][:, None] > 0
        return jnp.where(counted, found - batch["references"], 0.0), counts


def pair_sums(losses: jax.Array, rewards: jax.Array, weights: jax.Array, shown: Mapping[str, jax.Array]) -> LossSum:
    """Returns the sums over pairs; a preference is predicted right if the better answer has the larger reward.

    Args:
        losses: float32 `[batch]`.
        rewards: float32 `[batch, 2]`.
        weights: float32 `[batch]`; a row of weight 0 is left out, even if its values are NaN or infinite.
        shown: float32 `[batch]` by name, of which the means are shown beside that of the margins.
    """
    margins = rewards[:, 0] - rewards[:, 1]

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights)

    means = {name: Mean(total(values), jnp.sum(weights)) for name, values in {"margin": margins, **shown}.items()}
    return LossSum(total(losses), jnp.sum(weights), total(margins > 0), jnp.zeros((), jnp.float32), means)
