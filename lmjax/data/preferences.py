"""Reads preferences: triples of a prompt, a better and a worse answer, and answers that are rated alone.

| field | value |
|---|---|
| prompt | a text, or a list of messages of which the last one is to be answered |
| chosen, rejected | the better and the worse answer: a text, or a list of one message of the assistant |
| completion | an answer that is rated alone, likewise |
| label | whether it is good: true or false, 1 or 0 |
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lmjax.data.chat import TemplateEncoder
from lmjax.data.documents import Document
from lmjax.data.fields import Fields, field_of
from lmjax.data.messages import ASSISTANT, USER, Message, read_messages
from lmjax.data.record_format import RecordFormat
from lmjax.errors import DataError

PROMPT, CHOSEN, REJECTED, COMPLETION, LABEL = "prompt", "chosen", "rejected", "completion", "label"
_LABELS = {"true": 1, "1": 1, "false": 0, "0": 0}
_ANSWERS = (CHOSEN, REJECTED, COMPLETION)


@dataclasses.dataclass(frozen=True)
class PreferenceFormat(RecordFormat):
    """Records with a prompt and one or two answers.

    Attributes:
        chat: whether prompts are conversations, which are read as JSON; a text is then a message of the user.
        alone: whether `completion` is another name of `chosen`, for answers that are scored one by one.
    """

    chat: bool = False
    alone: bool = False

    def arranged(self, where: str, fields: Fields) -> Fields:
        """Returns the fields, with conversations as JSON and labels as 0 or 1."""
        made = []
        for name in fields:
            value = fields[name]
            if name == PROMPT:
                value = self._prompt(where, field_of(where, fields, name, "a record needs one prompt"))
            elif name in _ANSWERS:
                value = self._answer(where, name, field_of(where, fields, name, f"a record needs one {name}"))
            elif name == LABEL:
                value = _label(where, field_of(where, fields, name, "a record needs one label"))
            made.append((CHOSEN if self.alone and name == COMPLETION and CHOSEN not in fields else name, value))
        return Fields(made)

    def checked(self, where: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the values of a record, whose texts are not empty and whose two answers differ."""
        texts = {name: values[name] for name in (PROMPT, *_ANSWERS) if name in values}
        if not self.gold:
            texts = {name: text for name, text in texts.items() if name != REJECTED or text}
        if empty := [name for name, text in texts.items() if not text.strip()]:
            raise DataError(f"{where}: {empty[0]!r} is empty; write it, or remove the record")
        if CHOSEN in texts and texts[CHOSEN] == texts.get(REJECTED):
            raise DataError(
                f"{where}: 'chosen' and 'rejected' are equal, so there is no preference to learn; remove the record"
            )
        return values

    def _prompt(self, where: str, given: Any) -> Any:
        if not self.chat:
            if isinstance(given, list):
                raise DataError(
                    f"{where}: 'prompt' is a list of messages; read conversations with the setting chat=true of the "
                    "objective, or give a text"
                )
            return given
        if isinstance(given, str):
            if not given.strip():
                return given
            given = [{"role": USER, "content": given}]
        return json.dumps([list(message) for message in read_messages(where, given, answered=False)])

    def _answer(self, where: str, name: str, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        messages = read_messages(f"{where}: {name!r}", given, answered=True)
        if not self.chat or len(messages) != 1:
            said = f"has {len(messages)} messages" if self.chat else "is a list of messages, and prompts are texts"
            raise DataError(f"{where}: {name!r} {said}; give one message of the assistant, or its text")
        return messages[0].content


def _label(where: str, given: Any) -> int:
    text = json.dumps(given) if isinstance(given, bool | int) else str(given).strip().lower()
    if text not in _LABELS:
        raise DataError(f"{where}: 'label' is {str(given)[:40]!r}; true is for a good answer and false for a bad one")
    return _LABELS[text]


def messages_of(prompt: str) -> tuple[Message, ...]:
    """Returns the messages of a prompt that `PreferenceFormat` has read as a conversation."""
    return tuple(Message(*each) for each in json.loads(prompt))


class AnswersEncoder(TemplateEncoder):
    """Makes the tokens of conversations and of their answers, which end with the token that the template sets there."""

    def __call__(self, documents: list[Document]) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
        """Yields the records with the tokens of the prompt, as the template puts it before an answer, and answers.

        Raises:
            DataError: the template cannot render a conversation.
        """
        conversations, names = [], []
        for prompt, *answers in (document.segments for document in documents):
            messages = messages_of(prompt)
            for answer in answers:
                conversations.append((*messages, Message(ASSISTANT, answer)))
                names.append(f"the record with the message {messages[-1].content[:60]!r}")
        spoken = iter(self.template.encode(conversations, names))
        for document in documents:
            answered = [next(spoken) for _ in document.segments[1:]]
            # An answer is the last thing that the assistant writes.
            begin = int(answered[0].spans[-1][0])
            texts = [answered[0].ids[:begin], *(each.ids[slice(*each.spans[-1].tolist())] for each in answered)]
            yield document, np.concatenate(texts), np.cumsum([len(text) for text in texts], dtype=np.int64)
