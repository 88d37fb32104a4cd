"""A subject: one row that a model reads, and one number of its output, of which the methods of this room say why.

subject = next_token(model, "The capital of France is")          a decoder's likeliest token, or the one that is given
subject = masked_token(model, "The [MASK] sees the river.")      an encoder's
subject = decision(model, {"text": "A fine film."})              the label of a classifier
subject = answer(model, {"question": "...", "context": "..."})   the span of an answer
subjects = sentence(model, "The house", target)                  each token of a text that is generated
subject = likeness(model, "A fine film.", "A good movie.")       the cosine of the vectors of two texts
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmjax.analysis.attention import token_texts
from lmjax.analysis.inside import role_tokens
from lmjax.analysis.values import HIDDEN, VECTOR, Ask, Unit, value
from lmjax.errors import FlagError
from lmjax.evaluation.predicted import as_documents, encoded
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.fill_mask import encode_masked, mask_text
from lmjax.inference.generate.generate import generate
from lmjax.inference.loaded import LoadedModel
from lmjax.inference.predict import shortened
from lmjax.inference.texts import Text
from lmjax.model.language_model import LanguageModel
from lmjax.nearest import choose
from lmjax.objectives.classification import Classification
from lmjax.objectives.multiple_choice import MultipleChoice
from lmjax.objectives.question_answering import CONTEXT_IDS, QuestionAnswering
from lmjax.objectives.regression import Regression

PyTree = Any


class Token(NamedTuple):
    """A token that may have had a part in the number.

    Attributes:
        side: prefix of the fields of its side, such as "encoder_".
        position: in its row.
        text: as it is shown.
        kept: whether it stays when tokens are left out: special tokens, and the mask that is predicted.
    """

    side: str
    position: int
    text: str
    kept: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """One row and one number of the output for it.

    Attributes:
        loaded: the model.
        fields: of the row, `[1, length]` each.
        ask: the number.
        name: what the number is about, such as a label.
        against: what it is compared with; empty: nothing.
    """

    loaded: LoadedModel
    fields: Mapping[str, np.ndarray]
    ask: Ask
    name: str
    against: str = ""

    @functools.cached_property
    def tokens(self) -> tuple[Token, ...]:
        """Returns the tokens that can have a part in the number: those read before it, if the model is causal."""
        loaded, found = self.loaded, []
        family = loaded.config.family
        special = role_tokens(loaded)
        for side in family.sides:
            ids = self.fields[f"{side.prefix}tokens"][0]
            real = self.fields[f"{side.prefix}segment_ids"][0] > 0
            if side.causal and self.ask.kind == "logits":
                before = np.arange(len(ids)) <= int(self.ask.position)
                real = real & (before | (self.fields["prefix"][0] > 0 if "prefix" in self.fields else False))
            places = np.flatnonzero(real)
            for place, text in zip(places, token_texts(loaded, ids[places]), strict=True):
                found.append(Token(side.prefix, int(place), text, int(ids[place]) in special))
        return tuple(found)

    @functools.cached_property
    def free(self) -> np.ndarray:
        """Returns the numbers of the tokens that may be left out, int `[free tokens]`.

        Raises:
            FlagError: there is none.
        """
        found = np.flatnonzero([not token.kept for token in self.tokens])
        if not len(found):
            raise FlagError("--text: has special tokens only; give it a word")
        return found

    @functools.cached_property
    def value(self) -> float:
        """Returns the number for the whole row."""
        return float(values(self.loaded, self.fields, self.ask)[0])

    @property
    def probability(self) -> float | None:
        """Returns the probability that belongs to log-odds; None: the number has another unit."""
        plain = self.ask.unit == "log-odds" and int(self.ask.against) < 0 and self.ask.kind not in _NO_CHOICE
        return float(1 / (1 + np.exp(-self.value))) if plain else None


# Kinds whose number is no log-odds of one choice.
_NO_CHOICE = (VECTOR, HIDDEN, *QuestionAnswering.heads, *MultipleChoice.heads)


def next_token(
    loaded: LoadedModel, prompt: Text, token: str | int | None = None, against: str | int | None = None
) -> Subject:
    """Returns the subject of the token after a prompt.

    Args:
        loaded: a decoder; or an encoder-decoder, whose first token is asked about.
        prompt: what it reads.
        token: the token, as an id or as a text that begins with it; None: the likeliest.
        against: another token: the number is the difference of both logits.

    Raises:
        FlagError: the model predicts no next token, or cannot read the prompt.
    """
    loaded.check_vocabulary()
    family = loaded.config.family
    if not family.causal:
        raise FlagError(f"a next token needs a decoder, and this is a {family.label}; put a mask into the text")
    fields = _row(loaded.rows([prompt]))
    at = int(np.sum(fields[f"{family.predicts}segment_ids"])) - 1
    return _token(loaded, fields, at, token, against)


def masked_token(
    loaded: LoadedModel, text: str, token: str | int | None = None, against: str | int | None = None, number: int = 0
) -> Subject:
    """Returns the subject of a masked token of a text; arguments as of `next_token`, `number`: which of the masks.

    Raises:
        FlagError: the model fills no masks, or the text has none.
    """
    loaded.check_vocabulary()
    if loaded.config.family.causal:
        raise FlagError(f"only an encoder fills masks, and this is a {loaded.config.family.label}")
    row = loaded.prompts.around(encode_masked(loaded.tokenizer, text))
    places = [i for i, each in enumerate(row) if each == loaded.tokenizer.mask_id]
    if not 0 <= number < len(places):
        raise FlagError(
            f"{text[:80]!r} has {len(places)} {mask_text(loaded.tokenizer)}; write it where a token is missing"
        )
    return _token(loaded, _row(loaded.rows([row])), places[number], token, against)


def decision(
    loaded: LoadedModel, record: Mapping[str, Any], label: str | None = None, against: str | None = None
) -> Subject:
    """Returns the subject of a classifier's label for a record, or of a predicted number.

    Args:
        loaded: a model that was fine-tuned for classification or regression.
        record: `text`, and `text2` for a pair.
        label: the label, or the name of the number; None: the likeliest, the first number.
        against: another label: the number is the difference of both logits.

    Raises:
        FlagError: the model is no such model, or has no such label.
        DataError: the record lacks a text.
    """
    task = loaded.task
    if not isinstance(task, Classification | Regression):
        raise FlagError(f"a decision needs a classifier, and this model was fine-tuned for {task.name}")
    number = isinstance(task, Regression)
    names = list(task.config.targets if number else task.config.labels)
    fields = _record_rows(loaded, record)[0]
    logits = _outputs(loaded, fields)["classifier"][0]
    index = int(np.argmax(logits)) if label is None else _place(label, names)
    unit: Unit = "logit" if number or task.config.kind == "multiple" else "log-odds"
    other = -1 if against is None else _place(against, names)
    return Subject(loaded, fields, Ask("classifier", unit, index=index, against=other), names[index], against or "")


def answer(loaded: LoadedModel, record: Mapping[str, Any], span: tuple[int, int] | None = None) -> Subject:
    """Returns the subject of the answer to a question: the sum of the log-odds of its first and its last token.

    Args:
        loaded: a model that was fine-tuned for question answering.
        record: `question` and `context`.
        span: the positions of the first and the last token in the row; None: the likeliest answer.

    Raises:
        FlagError: the model answers no questions.
    """
    task = loaded.task
    if not isinstance(task, QuestionAnswering):
        raise FlagError(f"an answer needs a model for question_answering, and this one was fine-tuned for {task.name}")
    found = []
    for fields in _record_rows(loaded, {"answers": [], "starts": []} | dict(record)):
        inside = fields.pop(CONTEXT_IDS)[0] > 0
        outputs = _outputs(loaded, fields)
        start, end = (np.where(inside, outputs[side][0], -np.inf) for side in ("start", "end"))
        length = np.subtract.outer(np.arange(len(end)), np.arange(len(start)))
        sums = np.where((length >= 0) & (length < task.config.max_answer), end[:, None] + start[None], -np.inf)
        last, first = np.unravel_index(int(np.argmax(sums)), sums.shape)
        found.append((float(sums.max()), fields, (int(first), int(last))))
    _, fields, best = max(found, key=lambda each: each[0])
    first, last = best if span is None else span
    text = "".join(token_texts(loaded, fields["tokens"][0, first : last + 1])).replace("▁", " ").strip()
    return Subject(loaded, fields, Ask("span", position=first, last=last), text)


def sentence(loaded: LoadedModel, prompt: Text, target: Text | None = None, max_new_tokens: int = 16) -> list[Subject]:
    """Returns a subject for each token that follows a prompt, in one row.

    Args:
        loaded: a decoder or an encoder-decoder.
        prompt: what it reads first.
        target: what follows; None: what the model generates greedily.
        max_new_tokens: of what it generates.

    Raises:
        FlagError: the model generates no text, or a text is too long.
    """
    loaded.check_vocabulary()
    family = loaded.config.family
    if not family.causal:
        raise FlagError(f"a sentence is generated by a decoder, and this is a {family.label}")
    given = loaded.ids(prompt, "prompt")
    if target is None:
        written = generate(loaded, [list(given)], GenerateConfig(max_new_tokens=max_new_tokens))[0][0].ids
        written = written[len(loaded.prompts.forced) :] if family.paired else written
    else:
        written = loaded.ids(target, "target", around=False)
    if not written:
        raise FlagError("the model generates nothing after this prompt; give the text that follows")
    fields = loaded.rows([given], [list(written)]) if family.paired else loaded.rows([[*given, *written]])
    fields = _row(fields)
    first = int(np.sum(fields[f"{family.predicts}segment_ids"])) - len(written)
    if "prefix" in fields:
        # Only the prompt is read in both directions.
        fields["prefix"] = np.where(np.arange(fields["prefix"].shape[1]) < first, fields["prefix"], 0)
    return [_token(loaded, fields, first + i - 1, int(token)) for i, token in enumerate(written)]


def likeness(loaded: LoadedModel, text: Text, other: Text) -> Subject:
    """Returns the subject of the cosine of a text's vector and that of another text.

    Raises:
        FlagError: the model is an encoder-decoder, or cannot read a text.
    """
    if loaded.config.family.paired:
        raise FlagError("an encoder-decoder has no vectors of texts; take an encoder or a decoder")
    kind = VECTOR if VECTOR in loaded.model.heads else HIDDEN
    found = _outputs(loaded, fields := _row(loaded.rows([other])))[kind]
    vector = found[0] if kind == VECTOR else found[0][fields["segment_ids"][0] > 0].mean(axis=0)
    shown = other if isinstance(other, str) else " ".join(token_texts(loaded, other))
    return Subject(loaded, _row(loaded.rows([text])), Ask(kind, "logit", vector=vector), f"likeness to {shown!r}")


def token_id(loaded: LoadedModel, token: str | int) -> int:
    """Returns the id of a token, which is given as an id or as a text that begins with it.

    Raises:
        FlagError: there is no such id, or the text is empty.
    """
    if isinstance(token, str):
        ids = loaded.tokenizer.encode(token)
        if not ids:
            raise FlagError(f"{token!r} has no tokens; give a word")
        return int(ids[0])
    return loaded.ids([token], "token", around=False)[0]


def values(loaded: LoadedModel, fields: Mapping[str, np.ndarray], ask: Ask) -> np.ndarray:
    """Returns float64 `[batch]`, the number of a subject for each row of a batch."""
    with loaded.on_devices():
        return np.asarray(_values(loaded.model, loaded.params, dict(fields), ask), np.float64)


@functools.partial(jax.jit, static_argnames="model")
def _values(model: LanguageModel, params: PyTree, fields: Mapping[str, jax.Array], ask: Ask) -> jax.Array:
    return value(model, params, model.apply({"params": params}, fields), fields, ask)


@functools.partial(jax.jit, static_argnames="model")
def _all_outputs(model: LanguageModel, params: PyTree, fields: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    found = model.apply({"params": params}, fields, method=LanguageModel.outputs)
    return jax.tree.map(lambda x: x.astype(jnp.float32), found)


def _outputs(loaded: LoadedModel, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns all outputs of the model for a batch by name."""
    with loaded.on_devices():
        return jax.device_get(_all_outputs(loaded.model, loaded.params, dict(fields)))


def _token(
    loaded: LoadedModel,
    fields: Mapping[str, np.ndarray],
    position: int,
    token: str | int | None = None,
    against: str | int | None = None,
) -> Subject:
    """Returns the subject of a token that is predicted at a position."""
    if token is None:
        token = int(np.argmax(_outputs(loaded, fields)["logits"][0, position, : loaded.tokenizer.vocab_size]))
    index, other = token_id(loaded, token), -1 if against is None else token_id(loaded, against)
    name, *rest = token_texts(loaded, [index, *([other] if other >= 0 else [])])
    return Subject(loaded, fields, Ask("logits", position=position, index=index, against=other), name, *rest)


def _row(fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the first row of a batch as a batch."""
    return {name: x[:1] for name, x in fields.items()}


def _record_rows(loaded: LoadedModel, record: Mapping[str, Any]) -> list[dict[str, np.ndarray]]:
    """Returns the rows of a record, each as a batch."""
    (token_record,) = encoded(loaded, as_documents([record], loaded.task, gold=False), gold=False)
    rows = loaded.task.reads(token_record, loaded.prompts, loaded.task.length)
    return [{name: x[None] for name, x in shortened(row, loaded.task.length).items()} for row in rows]


def _place(label: str, names: Sequence[str]) -> int:
    """Returns the number of a label; raises FlagError if there is none of this name."""
    if label not in names:
        raise FlagError(f"label={label!r}: {choose('label', label, names)}")
    return list(names).index(label)
