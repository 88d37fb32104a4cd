"""Errors of requests in the form of OpenAI's API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pydantic

from lmjax.errors import DataError, FlagError, UserError
from lmjax.serving.engine import ClosedError, FullError
from lmjax.serving.ticket import OverdueError

_MEMBER = re.compile(r"(str|int|Pair)$|list\[|constrained-|function-")


class ApiError(Exception):
    """An answer with an error.

    Attributes:
        status: of HTTP.
        body: in OpenAI's form.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def as_api_error(error: BaseException) -> ApiError:
    """Returns the answer for an error; that for an unexpected one tells nothing of its cause."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, FullError):
        after = {"Retry-After": str(error.after)}
        said = f"too many requests wait; try again in {error.after} s"
        return ApiError(429, said, kind="rate_limit_error", code="rate_limit_exceeded", headers=after)
    if isinstance(error, ClosedError):
        return ApiError(503, str(error), kind="server_error", code="shutting_down", headers={"Retry-After": "5"})
    if isinstance(error, OverdueError):
        return ApiError(408, str(error), kind="timeout_error", code="timeout")
    if isinstance(error, FlagError | DataError):
        return ApiError(400, str(error))
    said = str(error) if isinstance(error, UserError) else "the server failed; its log says more"
    return ApiError(500, said, kind="server_error", code="internal_error")


def invalid(error: pydantic.ValidationError) -> ApiError:
    """Returns the answer for a body with a wrong field; of several, the first one."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # pydantic appends the member of a union that it tried.
    place = ".".join(str(part) for part in first["loc"] if not _MEMBER.match(str(part)))
    message = first["msg"].removeprefix("Value error, ")
    code = {
        "extra_forbidden": "unknown_parameter",
        "missing": "missing_required_parameter",
        "json_invalid": "invalid_json",
    }
    said = f"{place}: {message[:1].lower()}{message[1:]}" if place else message
    return ApiError(400, said[:500], param=place or None, code=code.get(first["type"], "invalid_value"))
