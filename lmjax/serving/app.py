"""The HTTP application: routes, checks of what comes in, errors, the log and the page."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import pathlib
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pydantic
from absl import logging
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmjax.errors import UserError
from lmjax.objectives.classification import Classification
from lmjax.serving import bodies, own, views, writes
from lmjax.serving.engine import ClosedError, FullError
from lmjax.serving.errors import ApiError, as_api_error, invalid
from lmjax.serving.metrics import Metrics
from lmjax.serving.openapi import openapi
from lmjax.serving.served import Served
from lmjax.serving.ticket import OverdueError

Endpoint = Callable[[Request, Served, Any, dict[str, Any]], Awaitable[Response]]

PAGE = pathlib.Path(__file__).with_name("page")
PAGES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/views.js": ("views.js", "text/javascript"),
}
# Nothing but the files of the page itself may be loaded or run by it.
_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'"
ENDPOINTS: dict[str, tuple[type[bodies.Body], Endpoint]] = {
    "/v1/completions": (bodies.CompletionBody, writes.completions),
    "/v1/chat/completions": (bodies.ChatBody, writes.chat),
    "/v1/embeddings": (bodies.EmbeddingBody, own.embeddings),
    "/tokenize": (bodies.TokenizeBody, own.tokenize),
    "/detokenize": (bodies.DetokenizeBody, own.detokenize),
    "/score": (bodies.ScoreBody, own.scores),
    "/fill-mask": (bodies.MaskBody, own.masks),
    "/classify": (bodies.ClassifyBody, own.classify),
    "/translate": (bodies.TranslateBody, writes.translate),
    "/beams": (bodies.BeamsBody, views.beams),
    "/attention": (bodies.AttentionBody, views.attention),
}
# Without a token: the page, which asks for it, and what a supervisor looks at.
_OPEN = {*PAGES, "/health", "/openapi.json"}
_LOCAL = ("127.0.0.1", "localhost", "[::1]")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
        token: that requests must have; empty: any, as long as they come from a page of this machine.
        body_bytes: the largest body.
        body_seconds: within which it must have come.
    """

    token: str = ""
    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0


def make_app(models: Mapping[str, Served], limits: Limits = Limits()) -> ASGIApp:
    """Returns the application for models by name."""
    engines = {served.name: served.engine for served in models.values() if not served.parent}
    metrics = Metrics(engines)

    def posted(body: type[bodies.Body], answer: Endpoint) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            facts = request.scope["lmjax"]
            given = await _read(request, body, limits)
            served = _model(models, given.model)
            facts["model"] = served.name
            return await answer(request, served, given, facts)

        return endpoint

    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_described(each) for each in models.values()]})

    async def one(request: Request) -> Response:
        return JSONResponse(_described(_model(models, request.path_params["name"])))

    async def health(request: Request) -> Response:
        sick = {name: engine.sick for name, engine in engines.items() if engine.sick}
        load = {name: dict(zip(("active", "waiting"), engine.load, strict=True)) for name, engine in engines.items()}
        said = {"status": "sick" if sick else "ok", "models": load} | ({"why": sick} if sick else {})
        return JSONResponse(said, status_code=503 if sick else 200)

    async def measured(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    document = openapi(ENDPOINTS, PAGES, list(models))

    async def described(request: Request) -> Response:
        return JSONResponse(document)

    async def page(request: Request) -> Response:
        name, kind = PAGES[request.url.path]
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}
        return Response((PAGE / name).read_bytes(), media_type=f"{kind}; charset=utf-8", headers=headers)

    routes = [Route(path, posted(*of), methods=["POST"]) for path, of in ENDPOINTS.items()]
    routes += [Route(path, page, methods=["GET"]) for path in PAGES]
    routes += [
        Route("/v1/models", listed, methods=["GET"]),
        Route("/v1/models/{name:path}", one, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/openapi.json", described, methods=["GET"]),
        Route("/metrics", measured, methods=["GET"]),
    ]
    known = {route.path for route in routes}
    expected = (ApiError, UserError, FullError, ClosedError, OverdueError)
    handlers = {Exception: _failed, HTTPException: _http, **dict.fromkeys(expected, _failed)}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Gate(app, limits, metrics, known)


def _described(served: Served) -> dict[str, Any]:
    """Returns a model as OpenAI's API lists it, and what the page must know of it."""
    loaded, engine = served.loaded, served.engine
    more = {
        "family": loaded.config.architecture,
        "max_length": engine.max_length,
        "writes": engine.writes,
        "beams": engine.config.beams if engine.writes else 0,
        "chats": engine.writes and (served.chat is not None or loaded.config.family.paired),
        "fills": not loaded.config.family.causal and loaded.model.has_vocabulary,
        "classifies": loaded.has_task and loaded.task.name == Classification.name,
    }
    listed = {"id": served.name, "object": "model", "created": served.created, "owned_by": "lmjax"}
    return listed | ({"parent": served.parent} if served.parent else {}) | {"lmjax": more}


def _model(models: Mapping[str, Served], name: str | None) -> Served:
    if name is None and len(models) == 1:
        return next(iter(models.values()))
    if name not in models:
        given = "model: is missing" if name is None else f"the model {name[:80]!r} does not exist"
        raise ApiError(404, f"{given}; there are {', '.join(models)}", param="model", code="model_not_found")
    return models[name]


async def _read(request: Request, body: type[bodies.Body], limits: Limits) -> Any:
    """Returns the body of a request; raises ApiError for one that is too large, too slow, or not as it must be."""
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "the body must be JSON: send Content-Type: application/json")
    parts, size = [], 0
    large = ApiError(413, f"the body has more than {limits.body_bytes:,} bytes", code="body_too_large")
    if request.headers.get("content-length", "0").isdecimal() and (
        int(request.headers.get("content-length", "0")[:20]) > limits.body_bytes
    ):
        raise large
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise large
                parts.append(part)
    except TimeoutError as error:
        said = f"the body did not come within {limits.body_seconds:g} seconds"
        raise ApiError(408, said, kind="timeout_error", code="timeout") from error
    try:
        return body.model_validate_json(b"".join(parts))
    except pydantic.ValidationError as error:
        raise invalid(error) from error


async def _failed(request: Request, error: Exception) -> Response:
    found = as_api_error(error)
    if found.status >= 500 and found.status != 503:
        logging.error("%s failed", request.url.path, exc_info=error)
    request.scope["lmjax"]["error"] = found.body["error"]["code"] or found.body["error"]["type"]
    return JSONResponse(found.body, status_code=found.status, headers=found.headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = {404: f"there is no {request.url.path[:80]}", 405: f"{request.method} is not for this path"}
    found = ApiError(error.status_code, said.get(error.status_code, str(error.detail)), headers=error.headers)
    return await _failed(request, found)


class Gate:
    """What every request passes: the token, the host it names, and at its end a line of the log.

    A page of another site may make a browser send requests here. Its `Origin` is another host; and if its name was made
    to point to this machine, so is the `Host`: without a token, only names of this machine are accepted there.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, known: set[str]):
        self._app, self._limits, self._metrics, self._known = app, limits, metrics, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 499
        facts = scope["lmjax"] = {"client": (scope.get("client") or ("",))[0]}

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request = Request(scope, receive)
        try:
            if refusal := self._refusal(request):
                await (await _failed(request, refusal))(scope, receive, sent)
            else:
                await self._app(scope, receive, sent)
        except ClientDisconnect:
            facts["disconnected"] = True
        except Exception:
            # Starlette has answered with status 500, and raises it again for the log of uvicorn, which would repeat it.
            facts.setdefault("error", "internal_error")
        finally:
            self._note(request, facts, status, time.monotonic() - start)

    def _refusal(self, request: Request) -> ApiError | None:
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if origin and origin.partition("://")[2] != host:
            return ApiError(403, "a page of another site may not ask this server", code="forbidden_origin")
        token = self._limits.token
        if not token:
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            local = name in _LOCAL
            return (
                None if local else ApiError(403, f"the host {host[:80]!r} is not this machine", code="forbidden_host")
            )
        if request.url.path in _OPEN:
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if hmac.compare_digest(given, token.encode()):
            return None
        said = "the token is missing or wrong; send Authorization: Bearer TOKEN"
        headers = {"WWW-Authenticate": "Bearer"}
        return ApiError(401, said, kind="authentication_error", code="invalid_api_key", headers=headers)

    def _note(self, request: Request, facts: dict[str, Any], status: int, seconds: float) -> None:
        """Writes a line of the log, which holds nothing of prompts and texts."""
        path = request.url.path if request.url.path in self._known else "other"
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        if "first_token_seconds" in facts:
            self._metrics.first.labels(facts["model"]).observe(facts["first_token_seconds"])
        if path in _OPEN or path == "/metrics":
            return
        line = {"time": round(time.time(), 3), "method": request.method[:8], "path": path, "status": status}
        line |= {"seconds": round(seconds, 4)} | facts
        # The disk of the log may be full, or its reader gone: requests are answered all the same.
        with contextlib.suppress(OSError, ValueError):
            print(json.dumps(line), file=sys.stderr, flush=True)
