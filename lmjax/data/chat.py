"""Chat templates: a conversation becomes token ids, and a mask of those that the assistant writes.

A template is that of a checkpoint's folder (`chat_template.jinja`, or `chat_template` in tokenizer_config.json), that
of a file, or else `DEFAULT`. It is rendered in another process (`chat_render`), and its text is encoded as a whole, as
transformers does. The tokenizers that lmjax trains read a special token only where the template writes it, never in
the content of a message; those of checkpoints read it in both, as in transformers.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lmjax.data.columns import Column
from lmjax.data.documents import Document
from lmjax.data.encoding import Encoder
from lmjax.data.fast_tokenizer import FastTokenizer
from lmjax.data.fields import Fields, field_of
from lmjax.data.messages import ASSISTANT, MARK, USER, Message, read_messages
from lmjax.data.record_format import RecordFormat
from lmjax.data.tokenizer import Tokenizer
from lmjax.errors import DataError, FlagError

# The columns of records that are read, and the additional one of stored conversations.
MESSAGES, SPEAKERS, TRAINED = "messages", "speakers", "trained"

# Roles are lines of plain text, and the tokenizer's own end-of-text token ends what the assistant writes, so that any
# tokenizer with such a token can be used, and no token must be added to it.
DEFAULT = r"""{{- bos_token }}
{%- for message in messages %}
    {{- message['role'] | capitalize + ':\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + eos_token }}
        {%- endgeneration %}
        {{- '\n' }}
    {%- else %}
        {{- message['content'] + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:\n' }}
{%- endif %}
"""

_AT_ONCE = 256  # conversations that a process renders
_SECONDS = 60.0  # for these
_PROBE = (Message(USER, "x"), Message(ASSISTANT, "y"))


@dataclasses.dataclass(frozen=True)
class ChatFormat(RecordFormat):
    """Records of conversations: the contents become `messages`, and file and line and the roles `speakers`."""

    def arranged(self, where: str, fields: Fields) -> Fields:
        """Returns both fields; raises DataError for what is no conversation."""
        if MESSAGES not in fields:
            there = ", ".join(fields)[:200] or "(none)"
            raise DataError(f"{where}: no {MESSAGES!r} among the fields {there}; a conversation needs it")
        found = read_messages(where, field_of(where, fields, MESSAGES, "a record needs one"), answered=True)
        speakers = [where, *(message.role for message in found)]
        return Fields([(MESSAGES, [message.content for message in found]), (SPEAKERS, speakers)])


class Rendered(NamedTuple):
    """A conversation as the text of a template.

    Attributes:
        text: the whole; a special token that the content of a message spells has `MARK` in its middle.
        spans: the first character of what the assistant writes and the one after it, for each message.
    """

    text: str
    spans: list[tuple[int, int]]


class Spoken(NamedTuple):
    """A conversation as token ids.

    Attributes:
        ids: int32 `[tokens]`.
        spans: int64 `[spans, 2]`: the first token of what the assistant writes and the one after it.
    """

    ids: np.ndarray
    spans: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Returns bool `[tokens]`: whether the assistant writes the token."""
        return span_mask(self.spans, len(self.ids))


def span_mask(spans: np.ndarray, length: int) -> np.ndarray:
    """Returns bool `[length]`: whether a token is in one of the spans, int `[spans, 2]`."""
    mask = np.zeros(length, np.bool_)
    for start, end in spans.tolist():
        mask[start:end] = True
    return mask


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template together with its tokenizer.

    Attributes:
        source: the template, in the language of jinja2.
        tokenizer: encodes its texts.
    """

    source: str
    tokenizer: Tokenizer | FastTokenizer

    @classmethod
    def of(cls, tokenizer: Tokenizer | FastTokenizer, source: str = "") -> "ChatTemplate":
        """Returns the template `source`, or else that of the tokenizer, or else `DEFAULT`.

        Raises:
            FlagError: there is only `DEFAULT`, and the tokenizer has no end-of-text token for it.
        """
        source = source or tokenizer.chat_template
        if not source and "eos" not in tokenizer.role_ids:
            raise FlagError(
                "tokenizer.path: this tokenizer has neither a chat template nor an end-of-text token (</s>), which "
                "lmjax's own needs; give a template with --config.task.chat.template=FILE"
            )
        return cls(source or DEFAULT, tokenizer)

    @property
    def fingerprint(self) -> str:
        """Returns a hex digest of the template."""
        return hashlib.blake2b(self.source.encode(), digest_size=16).hexdigest()

    @functools.cached_property
    def stop(self) -> tuple[int, ...]:
        """Returns the ids that end what the assistant writes: the first special token after its text, or else EOS."""
        (found,) = self.render([_PROBE])
        at = found.text.rindex(_PROBE[1].content) + 1
        ids, starts, _ = self.located(found.text)
        special = [i for i, start in zip(ids, starts, strict=True) if start >= at and i in self.tokenizer.special_ids]
        return tuple(special[:1] or [self.tokenizer.eos_id])

    @functools.cached_property
    def written(self) -> frozenset[int]:
        """Returns the special ids in what the assistant writes."""
        (found,) = self.encode([_PROBE])
        return self.tokenizer.special_ids & {*found.ids[found.mask].tolist(), *self.stop}

    def prompt(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        name: str,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Returns the ids of a conversation and of what the template puts before the assistant's answer.

        Args:
            messages: the last one is not the assistant's. A mapping reaches the template as it is, with what it has
                besides role and content.
            name: of the conversation in error messages.
            tools: descriptions of functions that the assistant may call, for the template; None: there are none.

        Raises:
            DataError: the template cannot render it.
        """
        (found,) = self.render([messages], [name], prompt=True, tools=tools)
        return self.located(found.text)[0].tolist()

    def encode(self, conversations: Sequence[Sequence[Message]], names: Sequence[str] = ()) -> Iterator[Spoken]:
        """Yields the ids of whole conversations; arguments and errors are those of `render`.

        As in transformers, a token of which any character is in a span is written by the assistant.
        """
        for found in self.render(conversations, names):
            ids, starts, ends = self.located(found.text)
            spans = [(np.searchsorted(ends, a, "right"), np.searchsorted(starts, b, "left")) for a, b in found.spans]
            yield Spoken(ids, np.array([span for span in spans if span[0] < span[1]], np.int64).reshape(-1, 2))

    def render(
        self,
        conversations: Sequence[Sequence[Message | Mapping[str, Any]]],
        names: Sequence[str] = (),
        *,
        prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[Rendered]:
        """Returns the text of each conversation.

        Args:
            conversations: their messages.
            names: of the conversations in error messages; none: messages say nothing of them.
            prompt: whether what comes before an answer of the assistant follows; there are no spans then.
            tools: as for `prompt`.

        Raises:
            FlagError: the template has an error of its own, or does not end.
            DataError: the template cannot render a conversation.
        """
        found: list[Rendered] = []
        for start in range(0, len(conversations), _AT_ONCE):
            part = [
                {"messages": [self._given(m) for m in each], "prompt": prompt, "tools": self._guarded(tools)}
                for each in conversations[start : start + _AT_ONCE]
            ]
            for number, answer in enumerate(self._answers(part), start):
                if said := answer.get("error"):
                    if number < len(names):
                        raise DataError(f"{names[number]}: the chat template refuses the conversation ({said})")
                    raise FlagError(f"the chat template cannot be used ({said}); give another one")
                found.append(Rendered(answer["text"], [tuple(span) for span in answer["spans"]]))
        return found

    def _answers(self, conversations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if importlib.util.find_spec("jinja2") is None:
            raise FlagError('jinja2 is not installed: pip install "lmjax[chat]"')
        names = self.tokenizer.special_names
        request = {"template": self.source, "variables": {f"{role}_token": token for role, token in names.items()}}
        request |= {"specials": [*names.values(), *self._spelled], "conversations": conversations}
        script = str(pathlib.Path(__file__).with_name("chat_render.py"))
        try:
            # With -P, Python does not import modules with the names of its libraries from the folder of the script.
            done = subprocess.run(
                [sys.executable, "-P", script],
                input=json.dumps(request).encode(),
                check=True,
                capture_output=True,
                timeout=_SECONDS,
            )
            return json.loads(done.stdout)
        except subprocess.TimeoutExpired as error:
            raise FlagError(
                f"the chat template takes more than {_SECONDS:.0f} seconds for {len(conversations)} conversation(s); "
                "it may not end: give another one"
            ) from error
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
            raise FlagError(
                f"the chat template cannot be rendered ({(said or [str(error)])[-1][:200]}); give another one"
            ) from error

    @functools.cached_property
    def _spelled(self) -> tuple[str, ...]:
        """Returns the special tokens as text, the longest first."""
        return tuple(sorted(self.tokenizer.special_texts, key=len, reverse=True))

    @functools.cached_property
    def _special_text(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._spelled)) or "(?!)")

    def _given(self, message: Message | Mapping[str, Any]) -> dict[str, Any]:
        return self._guarded(message._asdict() if isinstance(message, Message) else dict(message))

    def _guarded(self, value: Any) -> Any:
        """Returns a value of a message, with a mark in the middle of what spells a special token in its texts."""
        if isinstance(self.tokenizer, FastTokenizer):
            return value
        if isinstance(value, Mapping):
            return {name: self._guarded(each) for name, each in value.items()}
        if isinstance(value, str):
            return self._special_text.sub(lambda found: f"{found[0][:1]}{MARK}{found[0][1:]}", value)
        return [self._guarded(each) for each in value] if isinstance(value, list | tuple) else value

    def located(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns int `[tokens]` each: the ids of a rendered text, and where each token begins and ends in it."""
        if isinstance(self.tokenizer, FastTokenizer):
            return self.tokenizer.offsets(text)
        parts, at = [], 0
        for found in self._special_text.finditer(text):
            parts += [self._text(text[at : found.start()], at)]
            special = self.tokenizer.special_texts[found[0]]
            parts.append(tuple(np.array([each]) for each in (special, found.start(), found.end())))
            at = found.end()
        parts.append(self._text(text[at:], at))
        ids, starts, ends = (np.concatenate(each) for each in zip(*parts, strict=True))
        return ids.astype(np.int32), starts, ends

    def _text(self, text: str, at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the tokens of a text without special tokens, which begins at character `at`; marks are removed."""
        kept = np.array([place for place, char in enumerate(text) if char != MARK], np.int64)
        ((ids, starts),) = self.tokenizer.locate_batch([text.replace(MARK, "")])
        places = np.append(kept, len(text))
        # A token ends where the next one begins; several tokens of one character end after it.
        following = np.searchsorted(starts, starts, "right")
        ends = np.append(starts, len(kept))[following]
        return ids, at + places[starts], at + places[ends]


class TemplateEncoder(Encoder):
    """Makes tokens by a chat template: the base class of encoders of conversations."""

    def __init__(self, template: ChatTemplate):
        """Takes the template; the tokenizer of a run keeps it."""
        self.template = template
        super().__init__(template.tokenizer.with_template(template.source))

    @property
    def parts(self) -> dict[str, Any]:
        """Returns what changes the tokens in addition to the tokenizer."""
        return {"chat_template": self.template.fingerprint}


class ChatEncoder(TemplateEncoder):
    """Makes the tokens of conversations; the stored value `trained` has the bounds of the assistant's spans."""

    columns = (Column(MESSAGES), Column(TRAINED, "integers"))

    def __call__(self, documents: list[Document]) -> Iterator[tuple[Document, np.ndarray, np.ndarray]]:
        """Yields the conversations with their tokens."""
        conversations = [tuple(map(Message, each.values[0][1:], each.segments)) for each in documents]
        names = [each.values[0][0] for each in documents]
        for document, found in zip(documents, self.template.encode(conversations, names), strict=True):
            made = document._replace(counts=(1,), running=(), values=(tuple(found.spans.ravel().tolist()),))
            yield made, found.ids, np.array([len(found.ids)])
