"""Bodies of requests: JSON as the standard has it, read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request as HttpRequest
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import Receive, Scope

from swarm.gateway.http.errors import ApiError


class JsonRoute(APIRoute):
    """A route whose bodies are JSON objects."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """The route's own, behind a check of the body."""
        handle = super().get_route_handler()

        async def checked(request: HttpRequest) -> Response:
            value = read_json(request.headers.get("content-type", ""), await request.body())
            return await handle(_Read(request.scope, request.receive, value))

        return checked


class _Read(HttpRequest):
    """A request whose body has been read."""

    def __init__(self, scope: Scope, receive: Receive, value: Any) -> None:
        super().__init__(scope, receive)
        self._value = value

    async def body(self) -> bytes:
        """Not empty."""
        return b"{}"

    async def json(self) -> Any:
        """What is in it."""
        return self._value


def read_json(content_type: str, body: bytes) -> dict[str, Any]:
    """The object in a body. Raises ApiError for anything else."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        said = f"not {kind[:80]}" if kind else "which is missing"
        raise ApiError(400, f"the body must be JSON, and say so: Content-Type: application/json, {said}")
    if not body.strip():
        raise ApiError(400, "the body is empty: a JSON object is needed")
    try:
        value = json.loads(body, object_pairs_hook=_object, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError(400, "a text in the body is no Unicode: it has half of a surrogate pair") from None
    except UnicodeDecodeError:
        raise ApiError(400, "the body is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ApiError(400, "the body is not JSON that can be read: it is nested too deeply") from None
    except ValueError:
        raise ApiError(400, "the body is not JSON that can be read: a number in it has too many digits") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ApiError(400, f"{twice[:80]} is in the body twice", param=twice[:80])
    return value


def _no_number(constant: str) -> float:
    raise ApiError(400, f"{constant} is not JSON: numbers are finite")
