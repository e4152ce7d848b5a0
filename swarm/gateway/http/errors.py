"""Errors as the clients of each API know them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from swarm.errors import (
    ContextTooLong,
    InvalidInput,
    LimitExceeded,
    MissingBlocks,
    ModelNotFound,
    NoServerFits,
    ServerBusy,
    SwarmError,
    Unauthorized,
)
from swarm.gateway.http.fields import words_of

WAIT_FOR_BLOCKS = 5.0
"""Seconds after which to look again whether somebody serves what is missing."""

MESSAGES = "/v1/messages"
"""Where Anthropic's API is."""
ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}
"""What Anthropic's API calls errors, by their statuses."""


class ApiError(Exception):
    """An answer that is an error. `kind` and `code` are OpenAI's `type` and `code`; `retry_after` in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message.encode(errors="replace").decode()[:2000]
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """`{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """Retry-After in whole seconds, where it makes sense to come again."""
        return {} if self.retry_after is None else {"retry-after": str(max(math.ceil(self.retry_after), 1))}

    @property
    def anthropic(self) -> dict[str, Any]:
        """`{"type": "error", "error": {type, message}}`."""
        kind = ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def response(self, path: str) -> JSONResponse:
        """As HTTP, in the shape of the API that has this path."""
        body = self.anthropic if path.startswith(MESSAGES) else self.body
        return JSONResponse(body, self.status, headers=dict(self.headers))


def api_error(error: SwarmError) -> ApiError:
    """What an error of ours is over HTTP."""
    message = str(error)
    if isinstance(error, ContextTooLong):
        return ApiError(400, message, code="context_length_exceeded", param=error.field)
    if isinstance(error, InvalidInput):
        return ApiError(400, message, param=error.field)
    if isinstance(error, ModelNotFound):
        return ApiError(404, message, code="model_not_found", param="model")
    if isinstance(error, Unauthorized):
        return ApiError(401, message, "authentication_error", "invalid_api_key")
    if isinstance(error, ServerBusy):
        return ApiError(429, message, "rate_limit_error", "swarm_full", retry_after=error.retry_after)
    if isinstance(error, LimitExceeded):
        return ApiError(400, message, code="limit_exceeded")
    if isinstance(error, NoServerFits):
        return ApiError(503, message, "server_error", "no_server_fits")
    if isinstance(error, NoServerFits):
        # No Retry-After: waiting is in vain.
        return ApiError(503, message, "server_error", "no_server_fits")
    if isinstance(error, MissingBlocks):
        return ApiError(503, message, "server_error", "blocks_missing", retry_after=WAIT_FOR_BLOCKS)
    return ApiError(502, message, "server_error", "generation_failed")


def unavailable(name: str, why: str) -> ApiError:
    """The error for a field that is refused."""
    return ApiError(400, f"{name} is not available: {why}", code="unsupported_parameter", param=name)


def refuse_unavailable(request: object, fields: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Raises ApiError for one of some fields; of each: values that change nothing, and so may be there, and why others
    may not."""
    for name, (allowed, why) in fields.items():
        value = getattr(request, name, None)
        if value is not None and value not in allowed:
            raise unavailable(name, why)


def handle_errors(app: FastAPI) -> None:
    """Everything that goes wrong has the shape of the API that was asked."""
    app.add_exception_handler(ApiError, _ours)
    app.add_exception_handler(RequestValidationError, _senseless)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Exception, _unexpected)


async def _ours(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response(request.url.path)


async def _senseless(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message, param = words_of(error.errors()[0])
    return ApiError(400, message, param=param).response(request.url.path)


async def _plain(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {
        404: f"there is no {request.url.path[:100]} here",
        405: f"{request.method} is not for {request.url.path[:100]}",
    }
    response = ApiError(error.status_code, words.get(error.status_code, str(error.detail))).response(request.url.path)
    response.headers.update(error.headers or {})
    return response


async def _unexpected(request: HttpRequest, error: Exception) -> Response:
    return ApiError(500, "the gateway failed", "server_error").response(request.url.path)
