"""Endpoints without generated text: embeddings, tokens, scores, masks and labels."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lmjax.data.fields import check_text
from lmjax.errors import FlagError
from lmjax.inference.embed import embed
from lmjax.inference.generate.fill_mask import fill_mask
from lmjax.inference.score.score import rolling, score
from lmjax.pipelines.classes import TextClassification
from lmjax.serving.answers import spelled
from lmjax.serving.bodies import (
    ClassifyBody,
    DetokenizeBody,
    EmbeddingBody,
    MaskBody,
    Pair,
    ScoreBody,
    TokenizeBody,
)
from lmjax.serving.served import Served


async def on_device(served: Served, work: Callable[[], Any]) -> Any:
    """Returns the result of work that the engine's thread does between two steps."""
    return await asyncio.wrap_future(served.engine.call(work))


def _checked(texts: list[str], name: str) -> list[str]:
    for i, text in enumerate(texts):
        check_text(f"{name}[{i}]", name, text)
    return texts


async def embeddings(request: Request, served: Served, body: EmbeddingBody, facts: dict[str, Any]) -> Response:
    """Answers /v1/embeddings."""
    texts = _checked([body.input] if isinstance(body.input, str) else list(body.input), "input")
    vectors = await on_device(served, lambda: embed(served.loaded, texts, width=body.dimensions))
    count = sum(map(len, served.loaded.tokenizer.encode_batch(texts)))
    facts["prompt_tokens"] = count
    if body.encoding_format == "base64":
        shown = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        shown = [vector.tolist() for vector in vectors]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(shown)]
    used = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": served.name, "usage": used})


async def tokenize(request: Request, served: Served, body: TokenizeBody, facts: dict[str, Any]) -> Response:
    """Answers /tokenize: the ids of a text, or of a conversation as the model reads it, and their texts."""

    def find() -> list[int]:
        if body.messages is not None:
            return served.conversation(body.messages)[0]
        check_text("text", "text", body.text)
        return served.loaded.tokenizer.encode(body.text)

    ids = await asyncio.to_thread(find)
    pieces = [spelled(served.loaded.tokenizer, i)[0] for i in ids]
    return JSONResponse({"model": served.name, "tokens": ids, "pieces": pieces, "count": len(ids)})


async def detokenize(request: Request, served: Served, body: DetokenizeBody, facts: dict[str, Any]) -> Response:
    """Answers /detokenize."""
    return JSONResponse({"model": served.name, "text": served.loaded.decode(body.tokens)})


async def scores(request: Request, served: Served, body: ScoreBody, facts: dict[str, Any]) -> Response:
    """Answers /score: log-likelihoods in nats."""
    texts = _checked(list(body.texts), "texts")
    contexts = None if body.contexts is None else _checked(list(body.contexts), "contexts")
    loaded = served.plain
    if contexts is None:
        found = await on_device(served, lambda: rolling(loaded, texts))
    else:
        found = await on_device(served, lambda: score(loaded, list(zip(contexts, texts, strict=True))))
    return JSONResponse({"model": served.name, "scores": [dataclasses.asdict(each) for each in found]})


async def masks(request: Request, served: Served, body: MaskBody, facts: dict[str, Any]) -> Response:
    """Answers /fill-mask: for each text, for each mask, the likeliest tokens."""
    texts = _checked(list(body.texts), "texts")
    found = await on_device(served, lambda: fill_mask(served.loaded, texts, body.top_k))
    shown = [[[each._asdict() for each in mask] for mask in text] for text in found]
    return JSONResponse({"model": served.name, "fillings": shown})


async def classify(request: Request, served: Served, body: ClassifyBody, facts: dict[str, Any]) -> Response:
    """Answers /classify: the labels of each text and their probabilities, the likeliest first."""
    given = [each.model_dump() if isinstance(each, Pair) else {"text": each} for each in body.texts]
    for name in ("text", "text_pair"):
        _checked([each.get(name, "") for each in given], name)
    if not served.loaded.has_task:
        raise FlagError(f"the model {served.name} is no classifier; train one with --objective=classification")
    classifier = TextClassification(served.loaded)
    found = await on_device(served, lambda: classifier(given, top_k=None))
    return JSONResponse({"model": served.name, "labels": found})
