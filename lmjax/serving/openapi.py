"""The description of the server's endpoints as an OpenAPI document, made from the bodies that are checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

import lmjax
from lmjax.serving.bodies import Body

_JSON, _REF = "application/json", "#/components/schemas/{model}"
_TEXT, _INTEGER, _NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(**properties: Any) -> dict[str, Any]:
    """Returns the schema of an object that has all of these properties, and may have more."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _maybe(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_USED = _object(prompt_tokens=_INTEGER, total_tokens=_INTEGER)
_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_maybe(_TEXT), code=_maybe(_TEXT)))
_MODEL = _object(id=_TEXT, object=_TEXT, created=_INTEGER, owned_by=_TEXT, lmjax={"type": "object"})
_FILLING = _object(id=_INTEGER, text=_TEXT, probability=_NUMBER)
_NODE = _object(
    parent=_maybe(_INTEGER),
    token=_INTEGER,
    text=_TEXT,
    log_prob=_NUMBER,
    sum=_NUMBER,
    fate={"enum": ["kept", "ended", "dropped"]},
)


def _choices(**own: Any) -> dict[str, Any]:
    choice = _object(index=_INTEGER, finish_reason=_maybe(_TEXT), **own)
    return _object(id=_TEXT, object=_TEXT, created=_INTEGER, model=_TEXT, choices=_list(choice), usage=_USED)


# What an endpoint answers with status 200, by its path.
_ANSWERS: Mapping[str, dict[str, Any]] = {
    "/v1/completions": _choices(text=_TEXT),
    "/v1/chat/completions": _choices(message=_object(role=_TEXT, content=_maybe(_TEXT))),
    "/v1/embeddings": _object(
        object=_TEXT,
        data=_list(_object(object=_TEXT, index=_INTEGER, embedding={"anyOf": [_list(_NUMBER), _TEXT]})),
        model=_TEXT,
        usage=_USED,
    ),
    "/tokenize": _object(model=_TEXT, tokens=_list(_INTEGER), pieces=_list(_TEXT), count=_INTEGER),
    "/detokenize": _object(model=_TEXT, text=_TEXT),
    "/score": _object(model=_TEXT, scores=_list(_object(log_likelihood=_NUMBER))),
    "/fill-mask": _object(model=_TEXT, fillings=_list(_list(_list(_FILLING)))),
    "/classify": _object(model=_TEXT, labels={"type": "array"}),
    "/translate": _object(model=_TEXT, translations=_list(_object(text=_TEXT, finish_reason=_TEXT))),
    "/beams": _object(
        model=_TEXT,
        beams=_INTEGER,
        texts=_list(_object(text=_TEXT, score=_NUMBER, finish_reason=_TEXT, node=_maybe(_INTEGER))),
        nodes=_list(_NODE),
        usage=_USED,
    ),
    "/attention": _object(
        model=_TEXT,
        maps=_list(
            _object(
                name=_TEXT,
                queries=_list(_TEXT),
                keys=_list(_TEXT),
                weights=_list(_list(_list(_list({**_NUMBER, "minimum": 0, "maximum": 1})))),
            )
        ),
    ),
}
_ERRORS = {
    "400": "The body is wrong, or this model cannot do what it asks.",
    "401": "The token is missing or wrong.",
    "403": "The request comes from a page of another site.",
    "404": "There is no such model.",
    "408": "The body or the answer took too long.",
    "413": "The body is too large.",
    "415": "The body is no JSON.",
    "429": "Too many requests wait; Retry-After says when to ask again.",
    "500": "The server failed.",
    "503": "The server is shutting down.",
}


def openapi(
    endpoints: Mapping[str, tuple[type[Body], Callable[..., Any]]], pages: Mapping[str, Any], models: Sequence[str]
) -> dict[str, Any]:
    """Returns the document of a server.

    Args:
        endpoints: the body and the function of each path that takes one.
        pages: file and media type of each path of the page.
        models: the names of the models, of which each body has one; if there is only one, it may be left out.
    """
    bodies = sorted({body for body, _ in endpoints.values()}, key=lambda body: body.__name__)
    _, found = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF)
    schemas = found.get("$defs", {})
    for body in bodies:
        schema, names = schemas[body.__name__], {"enum": list(models)}
        schema["properties"]["model"] |= names if len(models) > 1 else {"anyOf": [names, {"type": "null"}]}
        if len(models) > 1:
            schema["properties"]["model"].pop("anyOf", None)
            schema["required"] = sorted({*schema.get("required", []), "model"})
    paths = {path: {"post": _posted(path, *of)} for path, of in endpoints.items()}
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": list(models)}}
    health = _object(status={"enum": ["ok", "sick"]}, models={"type": "object"})
    paths["/v1/models"] = _got("The models.", {"200": (_JSON, _object(object=_TEXT, data=_list(_MODEL)))})
    paths["/v1/models/{name}"] = _got("A model.", {"200": (_JSON, _MODEL)}, "404", parameters=[name])
    paths["/health"] = _got("Whether the models work.", {"200": (_JSON, health), "503": (_JSON, health)})
    paths["/metrics"] = _got("Counts and durations for Prometheus.", {"200": ("text/plain", _TEXT)})
    paths["/openapi.json"] = _got("This document.", {"200": (_JSON, {"type": "object"})})
    for path, (file, kind) in pages.items():
        paths[path] = _got(f"The page: {file}.", {"200": (kind, _TEXT)})
    return {
        "openapi": "3.1.0",
        "info": {"title": "lmjax serve", "version": lmjax.__version__},
        "paths": paths,
        "components": {
            "schemas": schemas | {"Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        # The token is needed only if the server has one.
        "security": [{}, {"token": []}],
    }


def _failures(*statuses: str) -> dict[str, Any]:
    error = {_JSON: {"schema": {"$ref": _REF.format(model="Error")}}}
    found = {status: {"description": _ERRORS[status], "content": error} for status in statuses}
    for status in {"429", "503"} & found.keys():
        found[status] |= {"headers": {"Retry-After": {"schema": _TEXT}}}
    return found


def _posted(path: str, body: type[Body], answer: Callable[..., Any]) -> dict[str, Any]:
    content: dict[str, Any] = {_JSON: {"schema": _ANSWERS[path]}}
    if "stream" in body.model_fields:
        content["text/event-stream"] = {"schema": _TEXT}
    return {
        "summary": inspect.getdoc(answer).splitlines()[0],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": {"$ref": _REF.format(model=body.__name__)}}},
        },
        "responses": {"200": {"description": "The answer.", "content": content}} | _failures(*_ERRORS),
    }


def _got(summary: str, answers: Mapping[str, tuple[str, Any]], *failures: str, **more: Any) -> dict[str, Any]:
    """Returns a path that is only read; `answers`: media type and schema by status."""
    responses = {
        status: {"description": summary, "content": {kind: {"schema": schema}}}
        for status, (kind, schema) in answers.items()
    }
    return {"get": {"summary": summary, "responses": _failures("401", "403", *failures) | responses, **more}}
