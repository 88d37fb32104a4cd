"""Endpoints that write text: /v1/completions, /v1/chat/completions and /translate."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from lmjax.serving import answers
from lmjax.serving.bodies import ChatBody, CompletionBody, TranslateBody, Written
from lmjax.serving.errors import as_api_error
from lmjax.serving.served import Served
from lmjax.serving.ticket import Ended, Event, Failed, Found, Ticket, Token

_ENDLESS = "data: [DONE]\n\n"


class Exchange:
    """The tickets of one request, and their events in the order in which they arrive.

    Attributes:
        tickets: one for each choice of each prompt, or for each beam search.
        facts: of the request, for its line in the log.
    """

    def __init__(self, facts: dict[str, Any]):
        self.tickets: list[Ticket] = []
        self.facts = facts
        self._start = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def send(self, number: int, event: Event) -> None:
        """Takes an event; called by the engine's thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

    async def begin(self, served: Served, make: Callable[[], list[Ticket]]) -> None:
        """Makes the tickets, in another thread because templates and constraints take time, and submits them."""
        self.tickets = await asyncio.to_thread(make)
        self.facts["prompt_tokens"] = self.prompt_tokens
        served.engine.submit(self.tickets)

    @property
    def choices(self) -> int:
        """Returns the number of texts, at most so many if some are found by beam search."""
        return sum(self._choices(ticket) for ticket in self.tickets)

    def _choices(self, ticket: Ticket) -> int:
        return ticket.config.beams.num_return if ticket.config.beams else 1

    @property
    def prompt_tokens(self) -> int:
        """Returns the tokens of the prompts; one of which there are several choices counts once."""
        return sum(len(row) for row in {(t.request.source or t.request.prompt) for t in self.tickets})

    async def events(self) -> AsyncIterator[tuple[int, Token | Ended]]:
        """Yields the events of all texts until all have ended; raises the first error, and cancels the rest."""
        left = len(self.tickets)
        self.facts["tokens"] = 0
        try:
            while left:
                number, event = await self._events.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Found):
                    left -= 1
                    self.facts["tokens"] += sum(len(each.ids) for each in event.generations)
                    first = number * self._choices(self.tickets[number])
                    for i, generation in enumerate(event.generations, first):
                        yield i, Ended(generation, generation.text)
                    continue
                if isinstance(event, Ended):
                    left -= 1
                else:
                    self.facts.setdefault("first_token_seconds", time.monotonic() - self._start)
                    self.facts["tokens"] += 1
                yield number, event
        finally:
            self.cancel()

    async def found(self) -> Found:
        """Returns the result of the only ticket, a beam search."""
        _, event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        self.facts["tokens"] = sum(len(each.ids) for each in event.generations)
        return event

    def cancel(self) -> None:
        """Ends the tickets that have not ended."""
        for ticket in self.tickets:
            ticket.cancel()


async def while_connected(request: Request, work: Any, exchange: Exchange) -> Any:
    """Returns the result of a coroutine; if the client goes away first, cancels the tickets and returns None."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            exchange.facts["disconnected"] = True
            return None
        return working.result()
    finally:
        watching.cancel()
        working.cancel()
        exchange.cancel()


def _prompts(given: Any) -> list[Any]:
    """Returns the prompts of a completion: a text, ids, or a list of either."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


async def completions(request: Request, served: Served, body: CompletionBody, facts: dict[str, Any]) -> Response:
    """Answers /v1/completions."""
    prompts, exchange = _prompts(body.prompt), Exchange(facts)
    plain = served.plain

    def make() -> list[Ticket]:
        return served.tickets(prompts, plain, body, exchange.send, client=facts["client"])

    await exchange.begin(served, make)
    echoes = []
    if body.echo:
        texts = [p if isinstance(p, str) else served.loaded.tokenizer.decode(p) for p in prompts]
        echoes = [text for text in texts for _ in range(body.n or 1)]
    form = _TextForm(served, body, echoes)
    return await _answer(request, exchange, form, body)


async def chat(request: Request, served: Served, body: ChatBody, facts: dict[str, Any]) -> Response:
    """Answers /v1/chat/completions."""
    exchange = Exchange(facts)
    tools = body.tools if body.tool_choice != "none" else None

    def make() -> list[Ticket]:
        ids, loaded = served.conversation(body.messages, tools)
        return served.tickets([ids], loaded, body, exchange.send, client=facts["client"], whole=True)

    await exchange.begin(served, make)
    return await _answer(request, exchange, _ChatForm(served, body, calls=bool(tools)), body)


async def translate(request: Request, served: Served, body: TranslateBody, facts: dict[str, Any]) -> Response:
    """Answers /translate: the likeliest text for each text, as an encoder-decoder writes it."""
    exchange = Exchange(facts)
    settings = Written(max_tokens=body.max_tokens, temperature=0.0, beams=body.beams)

    def make() -> list[Ticket]:
        return served.tickets(body.texts, served.plain, settings, exchange.send, client=facts["client"], whole=True)

    await exchange.begin(served, make)

    async def collected() -> Response:
        found = {i: e.generation async for i, e in exchange.events() if isinstance(e, Ended)}
        texts = [{"text": found[i].text, "finish_reason": answers.finish_reason(found[i])} for i in sorted(found)]
        return JSONResponse({"model": served.name, "translations": texts})

    return await while_connected(request, collected(), exchange) or Response(status_code=499)


class _Form:
    """What the answers of both endpoints have in common."""

    names = ("", "")
    start = ""

    def __init__(self, served: Served, body: Written):
        self.served, self.body = served, body
        self.head = {
            "id": f"{self.start}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
        }

    @property
    def tokenizer(self) -> Any:
        return self.served.loaded.tokenizer

    def logprobs(self, tokens: Sequence[Token], start: int = 0) -> dict[str, Any] | None:
        raise NotImplementedError

    def opening(self, number: int) -> dict[str, Any] | None:
        """Returns the first part of a stream; None: there is none."""
        raise NotImplementedError

    def part(self, number: int, text: str, tokens: Sequence[Token], start: int) -> dict[str, Any]:
        """Returns a part of a stream."""
        raise NotImplementedError

    def last(self, number: int, ended: Ended) -> list[dict[str, Any]]:
        """Returns the last parts of a stream."""
        raise NotImplementedError

    def choice(self, number: int, tokens: Sequence[Token], ended: Ended) -> dict[str, Any]:
        """Returns a whole choice."""
        raise NotImplementedError


class _TextForm(_Form):
    """Answers of /v1/completions."""

    names = ("text_completion", "text_completion")
    start = "cmpl"

    def __init__(self, served: Served, body: Written, echoes: Sequence[str]):
        super().__init__(served, body)
        self._echoes = echoes

    def logprobs(self, tokens: Sequence[Token], start: int = 0) -> dict[str, Any] | None:
        return None if self.body.alternatives is None else answers.text_logprobs(self.tokenizer, tokens, start)

    def opening(self, number: int) -> dict[str, Any] | None:
        return self._made(number, self._echoes[number], None, None) if self._echoes else None

    def part(self, number: int, text: str, tokens: Sequence[Token], start: int) -> dict[str, Any]:
        return self._made(number, text, self.logprobs(tokens, start), None)

    def last(self, number: int, ended: Ended) -> list[dict[str, Any]]:
        return [self._made(number, ended.rest, None, answers.finish_reason(ended.generation))]

    def choice(self, number: int, tokens: Sequence[Token], ended: Ended) -> dict[str, Any]:
        echo, text = self._echoes[number] if self._echoes else "", ended.generation.text
        return self._made(number, echo + text, self.logprobs(tokens), answers.finish_reason(ended.generation))

    def _made(self, number: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}


class _ChatForm(_Form):
    """Answers of /v1/chat/completions; with functions to call, their calls are parsed at the end of a text."""

    names = ("chat.completion", "chat.completion.chunk")
    start = "chatcmpl"

    def __init__(self, served: Served, body: Written, *, calls: bool):
        super().__init__(served, body)
        self._calls = calls

    def logprobs(self, tokens: Sequence[Token], start: int = 0) -> dict[str, Any] | None:
        return None if self.body.alternatives is None else answers.chat_logprobs(self.tokenizer, tokens)

    def opening(self, number: int) -> dict[str, Any] | None:
        return self._made(number, {"role": "assistant", "content": ""}, None, None)

    def part(self, number: int, text: str, tokens: Sequence[Token], start: int) -> dict[str, Any]:
        # Where a call may come, the text waits for its end.
        delta = {} if self._calls else {"content": text}
        return self._made(number, delta, self.logprobs(tokens), None)

    def last(self, number: int, ended: Ended) -> list[dict[str, Any]]:
        reason = answers.finish_reason(ended.generation)
        if not self._calls:
            return [self._made(number, {"content": ended.rest} if ended.rest else {}, None, reason)]
        text, calls = answers.tool_calls(ended.generation.text)
        delta: dict[str, Any] = {"content": text}
        if calls:
            delta["tool_calls"] = [{"index": i} | call for i, call in enumerate(calls)]
        end = self._made(number, {}, None, "tool_calls" if calls else reason)
        return [self._made(number, delta, None, None), end]

    def choice(self, number: int, tokens: Sequence[Token], ended: Ended) -> dict[str, Any]:
        text, calls = answers.tool_calls(ended.generation.text) if self._calls else (ended.generation.text, [])
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"tool_calls": calls, "content": text or None}
        reason = "tool_calls" if calls else answers.finish_reason(ended.generation)
        return {"index": number, "message": message, "logprobs": self.logprobs(tokens), "finish_reason": reason}

    def _made(self, number: int, delta: Any, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


async def _answer(request: Request, exchange: Exchange, form: _Form, body: Written) -> Response:
    """Returns the whole answer, or a stream of its parts."""
    if body.stream:
        return StreamingResponse(_streamed(exchange, form, body), media_type="text/event-stream")
    whole = await while_connected(request, _collected(exchange, form), exchange)
    return Response(status_code=499) if whole is None else JSONResponse(whole)


async def _collected(exchange: Exchange, form: _Form) -> dict[str, Any]:
    tokens: list[list[Token]] = [[] for _ in range(exchange.choices)]
    ends: dict[int, Ended] = {}
    async for number, event in exchange.events():
        if isinstance(event, Ended):
            ends[number] = event
        else:
            tokens[number].append(event)
    choices = [form.choice(i, tokens[i], ends[i]) for i in sorted(ends)]
    used = answers.usage(exchange.prompt_tokens, [end.generation for end in ends.values()])
    return form.head | {"object": form.names[0], "choices": choices, "usage": used}


async def _streamed(exchange: Exchange, form: _Form, body: Written) -> AsyncIterator[str]:
    """Yields the server-sent events of a stream; an error after its beginning is an event too."""
    counted = bool(body.stream_options and body.stream_options.include_usage)
    head = form.head | {"object": form.names[1]}

    def chunk(choices: list[Any], used: Any = None) -> str:
        return _event(head | {"choices": choices} | ({"usage": used} if counted else {}))

    sizes, ends = [0] * exchange.choices, []
    try:
        for number in range(exchange.choices):
            if (opening := form.opening(number)) is not None:
                yield chunk([opening])
        async for number, event in exchange.events():
            if isinstance(event, Ended):
                ends.append(event.generation)
                for part in form.last(number, event):
                    yield chunk([part])
            elif event.text or form.body.alternatives is not None:
                yield chunk([form.part(number, event.text, [event], sizes[number])])
                sizes[number] += len(event.text)
        if counted:
            yield chunk([], answers.usage(exchange.prompt_tokens, ends))
        yield _ENDLESS
    except asyncio.CancelledError:
        exchange.facts["disconnected"] = True
        raise
    except Exception as error:
        found = as_api_error(error)
        exchange.facts["error"] = found.body["error"]["code"] or type(error).__name__
        yield _event(found.body)
    finally:
        exchange.cancel()


def _event(values: Any) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False, allow_nan=False)}\n\n"
