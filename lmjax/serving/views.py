"""Endpoints that show what a model does: the tree of a beam search, and attention."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import numpy as np
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lmjax.analysis.attention import AttentionMaps, all_attention
from lmjax.data.fields import check_text
from lmjax.errors import FlagError
from lmjax.inference.generate.fill_mask import ids_of
from lmjax.serving import answers
from lmjax.serving.bodies import AttentionBody, BeamsBody, Written
from lmjax.serving.errors import ApiError, invalid
from lmjax.serving.own import on_device
from lmjax.serving.served import Served
from lmjax.serving.ticket import Ended, Found, Ticket
from lmjax.serving.writes import Exchange, while_connected

# So many probabilities of attention are returned at most; as JSON they take 7 MB.
_MOST_WEIGHTS = 2**20


async def beams(request: Request, served: Served, body: BeamsBody, facts: dict[str, Any]) -> Response:
    """Answers /beams: the texts of a beam search, and all continuations that it has compared."""
    exchange = Exchange(facts)
    try:
        settings = body.settings(served.engine.config.beams)
    except ValidationError as error:
        raise invalid(error) from error

    def make() -> list[Ticket]:
        if body.messages is not None:
            prompt, loaded = served.conversation(body.messages)
        else:
            prompt, loaded = body.prompt, served.plain
        return served.tickets([prompt], loaded, settings, exchange.send, client=facts["client"])

    await exchange.begin(served, make)

    async def answered() -> Response:
        found = await exchange.found()
        used = answers.usage(exchange.prompt_tokens, found.generations)
        return JSONResponse({"model": served.name, "beams": settings.beams} | _tree(served, found) | {"usage": used})

    return await while_connected(request, answered(), exchange) or Response(status_code=499)


def _tree(served: Served, found: Found) -> dict[str, Any]:
    tokenizer = served.loaded.tokenizer
    nodes = [
        dataclasses.asdict(node)
        | {"parent": node.parent if node.parent >= 0 else None, "text": answers.spelled(tokenizer, node.token)[0]}
        for node in found.nodes
    ]
    texts = [
        {
            "text": each.text,
            "score": answers.finite(each.score),
            "finish_reason": answers.finish_reason(each),
            "node": last if last >= 0 else None,
        }
        for each, last in zip(found.generations, found.last, strict=True)
    ]
    return {"texts": texts, "nodes": nodes}


async def attention(request: Request, served: Served, body: AttentionBody, facts: dict[str, Any]) -> Response:
    """Answers /attention: probabilities by layer, head, query and key; of an encoder-decoder, of three kinds."""
    loaded = served.loaded
    check_text("text", "text", body.text)
    target: Any = body.target
    if not loaded.config.family.paired and target is not None:
        raise FlagError("target: only an encoder-decoder reads a second text; leave it out")
    if loaded.config.family.paired and target is None:
        target = await _written(served, body.text, facts)
    elif target is not None:
        check_text("target", "target", target)

    def read() -> dict[str, np.ndarray]:
        fields = loaded.rows([ids_of(loaded, body.text, "text")], None if target is None else [target])
        return {name: x[:1] for name, x in fields.items()}

    row = await asyncio.to_thread(read)
    _check_size(served, row)
    found = await on_device(served, lambda: all_attention(loaded, row))
    content = await asyncio.to_thread(_rendered, served.name, found)
    return Response(content, media_type="application/json")


async def _written(served: Served, text: str, facts: dict[str, Any]) -> list[int] | None:
    """Returns the ids of the likeliest text after a source, without those that end it; None: there are none."""
    exchange = Exchange(facts)
    settings = Written(temperature=0.0)

    def make() -> list[Ticket]:
        return served.tickets([text], served.plain, settings, exchange.send, client=facts["client"])

    await exchange.begin(served, make)
    ended = [event.generation async for _, event in exchange.events() if isinstance(event, Ended)]
    ids = ended[0].ids[len(served.loaded.prompts.forced) :]
    return [i for i in ids if i not in exchange.tickets[0].stop_ids] or None


def _check_size(served: Served, row: dict[str, np.ndarray]) -> None:
    """Raises ApiError for texts with too many probabilities of attention."""
    config = served.loaded.config
    longest, numbers = 0, 0
    for side in config.family.sides:
        length = int((row[f"{side.prefix}segment_ids"] > 0).sum())
        longest = max(longest, length)
        numbers += config.side_layers(side.prefix != "encoder_") * config.num_heads * length**2
    if config.family.paired:
        lengths = [int((row[f"{side.prefix}segment_ids"] > 0).sum()) for side in config.family.sides]
        numbers += config.side_layers(True) * config.num_heads * lengths[0] * lengths[1]
    if numbers > _MOST_WEIGHTS:
        raise ApiError(
            400,
            f"text: of {longest} tokens there are {numbers:,} probabilities, and at most {_MOST_WEIGHTS:,} are"
            " returned; shorten it",
            param="text",
            code="context_length_exceeded",
        )


def _rendered(name: str, found: list[AttentionMaps]) -> bytes:
    maps = [
        {
            "name": each.name,
            "queries": each.queries,
            "keys": each.keys,
            "weights": each.weights.astype(np.float64).round(4).tolist(),
        }
        for each in found
    ]
    return json.dumps({"model": name, "maps": maps}, ensure_ascii=False, allow_nan=False).encode()
