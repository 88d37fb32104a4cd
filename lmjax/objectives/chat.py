"""Chat: predicts what the assistant writes in a conversation, and the token that ends it.

The loss is on the tokens of the assistant alone (Ouyang et al. 2022, arXiv:2203.02155, section 3.5; Zhou et al. 2023,
arXiv:2305.11206, section 3), in all turns of a conversation. A decoder reads the whole conversation in one row. An
encoder-decoder reads the conversation up to a turn of the assistant in its encoder, and predicts this turn.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from lmjax.data.chat import MESSAGES, SPEAKERS, TRAINED, ChatEncoder, ChatFormat, ChatTemplate, span_mask
from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.packing import pack
from lmjax.data.record_format import RecordFormat
from lmjax.data.special_tokens import read_template
from lmjax.data.store import Store
from lmjax.data.vocabulary import Vocabulary
from lmjax.errors import DataError
from lmjax.objectives.base import Features, ObjectiveConfig, Rows
from lmjax.objectives.prompts import PromptFormat
from lmjax.objectives.rows import PackedPieces, pad, side
from lmjax.objectives.samples import WORDS, Sample, framed
from lmjax.objectives.token_prediction import SourceToTarget
from lmjax.paths import expanded

_log = logging.getLogger(__name__)


class ChatConfig(ObjectiveConfig):
    """Settings of the chat objective."""

    template: str = Field(
        "", description="a file with a chat template (jinja2); none: that of the tokenizer, or else lmjax's own"
    )


@dataclasses.dataclass(frozen=True)
class PackedConversations(PackedPieces, Rows):
    """Packed conversations for a decoder, each up to its last predicted token; a longer one loses its end."""

    objective: "Chat"

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns `tokens`, `positions`, `segment_ids`, `targets` and `weights`; the assistant's tokens have weight 1.

        The weights of all other targets, and of padding, are 0.
        """
        del rng
        o, pieces, masks = self.objective, [], []
        for document, _, length in self.bounds(index):
            pieces.append(self.store.tokens(document, 0, length + 1))
            masks.append(span_mask(o.spans(self.store, document), length + 1))
        return {
            **side([piece[:-1] for piece in pieces], o.length, o.tokenizer.pad_id),
            "targets": pad(np.concatenate([piece[1:] for piece in pieces]), o.length, o.tokenizer.pad_id),
            "weights": pad(np.concatenate([mask[1:] for mask in masks]), o.length, dtype=np.float32),
        }


@dataclasses.dataclass(frozen=True)
class PackedTurns(PackedPieces, Rows):
    """Packed turns of the assistant for an encoder-decoder: a long source loses its beginning, a long target its end.

    Attributes:
        turns: int64 `[turns, 3]`: the conversation of each turn, its first token and the one after it.
        objective: makes the rows.
    """

    turns: np.ndarray
    objective: "Chat"

    def documents(self, index: int) -> list[int]:
        """Returns the conversation of each turn in row `index`."""
        return self.turns[self.plan.row(index)[0], 0].tolist()

    def features(self, index: int, rng: np.random.Generator) -> Features:
        """Returns the features that `rows.source_target` makes."""
        del rng
        o, pairs = self.objective, []
        for turn, _, _ in self.bounds(index):
            document, start, end = self.turns[turn].tolist()
            kept = min(start, o.length - 1)
            source = self.store.tokens(document, start - kept, kept)
            target = self.store.tokens(document, start, min(end - start, o.target_length))
            pairs.append((np.append(source, o.tokenizer.eos_id), target))
        return o.row(pairs)


@dataclasses.dataclass(frozen=True)
class Chat(SourceToTarget):
    """Predicts the assistant's messages of a conversation, with the token that ends each."""

    config: ChatConfig
    name: ClassVar[str] = "chat"
    architectures: ClassVar[tuple[str, ...]] = ("decoder", "encoder_decoder")
    columns: ClassVar[tuple[Column, ...]] = (Column(MESSAGES, "texts"), Column(SPEAKERS, "strings"))
    # Those of Alpaca (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca), with smaller batches.
    recipe: ClassVar[Mapping[str, Any]] = {
        "epochs": 3.0,
        "batch_size": 32,
        "optimizer.learning_rate": 2e-5,
        "optimizer.schedule": "cosine",
        "optimizer.warmup_share": 0.03,
        "optimizer.weight_decay": 0.0,
    }

    @classmethod
    def encoder(cls, config: ChatConfig, tokenizer: Vocabulary) -> ChatEncoder:
        """Returns what renders conversations, with the template of the settings, or that of the tokenizer."""
        source = read_template(expanded(config.template)) if config.template else ""
        return ChatEncoder(ChatTemplate.of(tokenizer, source))

    @classmethod
    def record_format(cls, config: ChatConfig) -> RecordFormat:
        """Returns the format of conversations."""
        del config
        return ChatFormat()

    @classmethod
    def running_text(cls, config: ChatConfig, document: Document) -> str:
        """Returns the text of a conversation in lmjax's own template."""
        del config
        roles = [role.capitalize() for role in document.values[0][1:]]
        return "".join(f"{role}:\n{said}\n" for role, said in zip(roles, document.segments, strict=True))

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """Returns the chat template, which is that of the tokenizer."""
        return ChatTemplate.of(self.tokenizer)

    def prompt_format(self) -> PromptFormat:
        """Returns the format of a conversation, in which the template puts all ids but an encoder's last one."""
        t, stop = self.tokenizer, self.template.stop
        form = PromptFormat(stop=tuple(sorted({*stop, t.role_ids.get("eos", stop[0])})), never=self.never(), chat=True)
        return dataclasses.replace(form, after=(t.eos_id,), start=(t.pad_id,)) if self.family.paired else form

    def never(self) -> tuple[int, ...]:
        """Returns the special ids that the assistant never writes."""
        return tuple(sorted(self.tokenizer.special_ids - self.template.written - {self.tokenizer.role_ids.get("eos")}))

    def spans(self, store: Store, document: int) -> np.ndarray:
        """Returns int64 `[spans, 2]`: the first token of each of the assistant's messages, and the one after it."""
        return np.array(store.value(document, TRAINED), np.int64).reshape(-1, 2)

    def sample(self, store: Store, room: int) -> Sample | None:
        """Returns a conversation up to a turn of the assistant, for which the model writes the turn."""
        fitting = (i for i in range(store.num_documents) if len(self.spans(store, i)))
        document = next(fitting, None)
        if document is None:
            return None
        start, end = self.spans(store, document)[0].tolist()
        decode, kept = self.tokenizer.decode, min(start, max(1, room // 2))
        asked, answered = store.tokens(document, start - kept, kept), store.tokens(document, start, end - start)
        above = [framed("a held-out conversation:", decode(asked)), framed("its answer:", decode(answered))]
        return Sample(
            "\n".join(above),
            tuple(asked.tolist()),
            lambda ids: framed("written:", decode(ids)),
            count=min(WORDS, room // 3),
            sampled=self.family.continues,
        )

    def rows(self, store: Store, seed: int) -> Rows:
        """Returns packed conversations, or for an encoder-decoder packed turns; logs what is cut.

        Raises:
            DataError: the store holds no conversations, or the assistant writes nothing that fits a row.
        """
        if TRAINED not in [column.name for column in store.columns]:
            raise DataError(f"{store.path}: chat needs conversations, and this store holds other documents")
        return self._turns(store, seed) if self.family.paired else self._conversations(store, seed)

    def _conversations(self, store: Store, seed: int) -> PackedConversations:
        lengths = np.zeros(store.num_documents, np.int64)
        long = lost = 0
        for i in range(store.num_documents):
            # Nothing predicts the first token, and what follows the last predicted token is not needed.
            places = np.flatnonzero(span_mask(self.spans(store, i), int(store.lengths[i]))[1:])
            fitting = int(np.searchsorted(places, self.length))
            lengths[i] = min(places[-1] + 1, self.length) if fitting else 0
            long, lost = long + (fitting < len(places)), lost + len(places) - fitting
        self._report(store, long, f"{lost:,} of the assistant's tokens are left out", int((lengths == 0).sum()))
        # `pack` leaves out a conversation of length 0.
        plan = pack(lengths, max_piece=self.length, cost=lambda n: n, capacity=self.length, seed=seed)
        return PackedConversations(store, plan, self)

    def _turns(self, store: Store, seed: int) -> PackedTurns:
        turns = np.array(list(self._all_turns(store)), np.int64).reshape(-1, 3)
        sources, targets = turns[:, 1] + 1, turns[:, 2] - turns[:, 1]
        long = (sources > self.length) | (targets > self.target_length)
        lost = f"{int(np.maximum(sources - self.length, 0).sum()):,} tokens before a turn and "
        lost += f"{int(np.maximum(targets - self.target_length, 0).sum()):,} of the assistant's are left out"
        self._report(store, int(long.sum()), lost, int(not len(turns)))
        costs = self.row_positions(np.minimum(sources, self.length), np.minimum(targets, self.target_length))
        plan = pack(costs, max_piece=self.length, cost=lambda n: n, capacity=self.length, seed=seed)
        return PackedTurns(store, plan, turns, self)

    def _all_turns(self, store: Store) -> Iterator[tuple[int, int, int]]:
        for document in range(store.num_documents):
            yield from ((document, start, end) for start, end in self.spans(store, document).tolist())

    def _report(self, store: Store, long: int, lost: str, without: int) -> None:
        """Logs what is cut, and how many conversations have nothing that is predicted."""
        if long:
            what = "turns" if self.family.paired else "conversations"
            _log.warning("chat: %d %s do not fit rows of %d tokens: %s", long, what, self.length, lost)
        if without:
            _log.warning("chat: %d of %d conversations have no turn that fits", without, store.num_documents)
