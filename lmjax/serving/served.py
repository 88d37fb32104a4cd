"""A model under the name by which requests ask for it, and the tickets of its requests."""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from lmjax.data.chat import ChatTemplate
from lmjax.data.fields import check_text
from lmjax.data.messages import RESERVED
from lmjax.errors import DataError, FlagError
from lmjax.inference.generate.by_row import MOST_STOPS
from lmjax.inference.generate.config import GenerateConfig
from lmjax.inference.generate.constrain import Constraint
from lmjax.inference.generate.generate import resolved
from lmjax.inference.generate.requests import chatting, make_requests
from lmjax.inference.loaded import LoadedModel
from lmjax.serving.bodies import MessageBody, Written
from lmjax.serving.engine import Engine
from lmjax.serving.errors import ApiError
from lmjax.serving.ticket import Event, Ticket
from lmjax.streams import SEEDS

# Tokens of a completion whose request does not say how many, as in OpenAI's API.
_FEW = 16
_SETTINGS = {"temperature", "top_k", "top_p", "min_p", "typical_p"}


@dataclasses.dataclass(frozen=True, eq=False)
class Served:
    """A model, or an adapter of one, under a name.

    Attributes:
        name: of it.
        engine: of the model.
        adapter: the number of the adapter in the engine.
        created: seconds since 1970.
        parent: the name of the model of an adapter; empty: this is no adapter.
        loaded: the model with this adapter, for what is no generated text.
    """

    name: str
    engine: Engine
    loaded: LoadedModel
    adapter: int = 0
    parent: str = ""
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @functools.cached_property
    def chat(self) -> LoadedModel | None:
        """Returns the model that answers messages in its chat template; None: it has no template."""
        try:
            return chatting(self.loaded)
        except FlagError:
            return None

    @property
    def plain(self) -> LoadedModel:
        """Returns the model that continues texts, also if it was trained on conversations."""
        form = self.loaded.prompts
        return (
            dataclasses.replace(self.loaded, prompts=dataclasses.replace(form, chat=False))
            if form.chat
            else self.loaded
        )

    def conversation(
        self, messages: Sequence[MessageBody], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[int], LoadedModel]:
        """Returns the ids of a conversation, and the model that answers it.

        An encoder-decoder without a chat template reads the contents of the messages, each in a line.

        Raises:
            FlagError: a decoder without a chat template.
            DataError: a message holds what is no text, or the template refuses the conversation.
        """
        given = [message.given() for message in messages]
        for i, message in enumerate(given):
            check_text(f"messages[{i}]", "content", message["content"])
            if odd := [char for char in RESERVED if char in message["content"]]:
                raise DataError(f"messages[{i}]: 'content' holds U+{ord(odd[0]):04X}, which is no character; remove it")
        if self.chat is None:
            if self.loaded.config.family.paired:
                return list(self.loaded.ids("\n".join(each["content"] for each in given), "messages")), self.loaded
            chatting(self.loaded)
        template = ChatTemplate.of(self.loaded.tokenizer)
        return [*template.prompt(given, "messages", tools), *self.loaded.prompts.after], self.chat

    @functools.lru_cache(maxsize=64)  # noqa: B019 (there are as many as models, and they live as long as the process)
    def constraint(self, regex: str | None, schema: str | None, stop: tuple[int, ...]) -> Constraint:
        """Returns a compiled constraint; the last ones are kept."""
        size = self.loaded.config.vocab_size
        return Constraint(self.loaded.tokenizer, stop, regex=regex, schema=schema, vocab_size=size)

    def tickets(
        self,
        prompts: Sequence[str | Sequence[int]],
        loaded: LoadedModel,
        body: Written,
        send: Callable[[int, Event], None],
        *,
        client: str = "",
        whole: bool = False,
    ) -> list[Ticket]:
        """Returns a ticket for each choice of each prompt, the choices of a prompt one after the other.

        A beam search is one ticket for all choices of its prompt.

        Args:
            prompts: texts or ids.
            loaded: the model that continues texts, or the one that answers messages.
            body: the settings.
            send: called with the number of a ticket and an event of it.
            client: who asks.
            whole: whether a text may be as long as there is room for, if the body does not say how long.

        Raises:
            FlagError: the model writes no text, a prompt is too long, or a setting cannot be used.
            DataError: a prompt holds what is no text.
        """
        if not self.engine.writes:
            raise FlagError(f"the model {self.name} writes no text: it is an encoder; ask /fill-mask or /classify")
        if body.beams is not None and body.beams > (most_beams := self.engine.config.beams):
            raise ApiError(400, f"beams: {body.beams} are more than this server's --beams={most_beams}", param="beams")
        choices = 1 if body.beams else body.n or 1
        seed = secrets.randbelow(SEEDS - 4096) if body.seed is None else body.seed
        for i, prompt in enumerate(prompts):
            if isinstance(prompt, str):
                check_text(f"prompt[{i}]", "prompt", prompt)
        rows = [loaded.ids(prompt, f"prompt[{i}]") for i, prompt in enumerate(prompts)]
        rooms = [self._room(loaded, len(row), i) for i, row in enumerate(rows)]
        most = body.most if body.most is not None else min(rooms) if whole else min(_FEW, *rooms)
        if (i := next((i for i, room in enumerate(rooms) if room < most), None)) is not None:
            raise ApiError(
                400,
                f"prompt[{i}] has {len(rows[i])} tokens and max_tokens={most}: this model's rows have "
                f"{self.engine.max_length}; shorten it, or set max_tokens to at most {rooms[i]}",
                param="max_tokens",
                code="context_length_exceeded",
            )
        config = self._config(loaded, body, most)
        seeds = [seed + i for i in range(len(prompts) * choices)]
        if seeds[-1] >= SEEDS:
            raise FlagError(f"seed={seed}: the last choice's seed would be {seeds[-1]}; seeds go up to {SEEDS - 1}")
        repeated = [row for row in rows for _ in range(choices)]
        requests = make_requests(loaded, repeated, seeds, most, ["prompt"] * len(repeated))
        stops = tuple(sorted({*loaded.prompts.stop, *config.stop_ids}))
        if len(stops) > MOST_STOPS:
            raise FlagError(f"stop: {len(stops)} ids end texts of this model; there may be {MOST_STOPS}")
        constraint = None
        if config.regex is not None or config.json_schema is not None:
            constraint = self.constraint(config.regex, config.json_schema, stops)
            for row in rows:
                constraint.start(row)
        seconds = min(body.timeout or self.engine.config.timeout, self.engine.config.timeout)
        shared = {
            "config": config,
            "stop_ids": stops,
            "never": loaded.prompts.never,
            "constraint": constraint,
            "bias": self._bias(body),
            "presence": body.presence_penalty or 0.0,
            "frequency": body.frequency_penalty or 0.0,
            "alternatives": body.alternatives or 0,
            "adapter": self.adapter,
            "client": body.user or client,
            "deadline": time.monotonic() + seconds,
        }
        return [
            Ticket(request=request, send=functools.partial(send, i), **shared) for i, request in enumerate(requests)
        ]

    def _room(self, loaded: LoadedModel, prompt: int, i: int) -> int:
        """Returns the most tokens of a text after a prompt of so many tokens."""
        longest, form = self.engine.max_length, loaded.prompts
        if prompt > longest:
            raise ApiError(
                400,
                f"prompt[{i}] has {prompt} tokens, and this model's rows have {longest}; shorten it",
                param="prompt",
                code="context_length_exceeded",
            )
        # The last token is never read, so it needs no place.
        return longest + 1 - (len(form.start) if loaded.config.family.paired else prompt)

    def _config(self, loaded: LoadedModel, body: Written, most: int) -> GenerateConfig:
        """Returns the settings of a text: those of the body, then the model's own, then those of OpenAI's API."""
        draws = loaded.defaults.sampling if loaded.defaults.draws else {}
        temperature = body.temperature if body.temperature is not None else draws.get("temperature", 1.0)
        # Filters change nothing at a temperature of 0, and clients send both.
        given = {name: getattr(body, name) for name in _SETTINGS} if temperature else {}
        sampling = (dict(draws) if temperature else {}) | {k: x for k, x in given.items() if x is not None}
        processors = {
            "repetition_penalty": body.repetition_penalty,
            "no_repeat_ngram": body.no_repeat_ngram,
            "min_new_tokens": body.min_tokens,
        }
        schema, beams = body.schema_asked, None
        if body.beams is not None:
            sampling, temperature = {}, 0.0
            own = {"length_penalty": body.length_penalty, "early_stopping": body.early_stopping}
            beams = {"beams": body.beams, "num_return": body.n or 1}
            beams |= {name: value for name, value in own.items() if value is not None}
        values = {
            "max_new_tokens": most,
            "beams": beams,
            "sampling": sampling | {"temperature": temperature},
            "processors": {name: value for name, value in processors.items() if value is not None},
            "stop": body.stops,
            "regex": body.regex,
            "json_schema": None if schema is None else json.dumps(schema),
        }
        try:
            return resolved(loaded, GenerateConfig.model_validate(values))
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise FlagError(said) from error
        except (ValueError, RecursionError) as error:
            raise FlagError(f"json_schema: cannot be used ({type(error).__name__}); simplify it") from error

    def _bias(self, body: Written) -> dict[int, float]:
        """Returns what is added to the logits of ids; -100 bans an id, as OpenAI says."""
        found = {}
        for name, value in (body.logit_bias or {}).items():
            if not name.isdecimal() or not int(name[:12]) < self.loaded.config.vocab_size:
                raise ApiError(
                    400,
                    f"logit_bias: {name[:20]!r} is no id; ids go from 0 to {self.loaded.config.vocab_size - 1}",
                    param="logit_bias",
                )
            found[int(name)] = float("-inf") if value <= -100 else value
        return found
