"""The HTTP side of a gateway: OpenAI's API, what it needs to be run, and the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from openai.types import Completion as CompletionObject
from openai.types import Model as ModelObject
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from swarm._version import __version__
from swarm.errors import MissingBlocks, SwarmError
from swarm.gateway.answers import Answerer
from swarm.gateway.openai.errors import ApiError, api_error
from swarm.gateway.openai.guard import Guard, HttpSettings
from swarm.gateway.openai.replies import Chat, Choice, Completion, Shape
from swarm.gateway.openai.requests import ChatRequest, CompletionRequest, queries_of
from swarm.gateway.openai.streams import EventStream, Left, events_of, merged, paced, unless_left
from swarm.gateway.openai.tools import Sorting
from swarm.types import is_called
from swarm.wire import swarm_pb2 as pb

GONE = 499
"""What some proxies call a client that has gone; nobody reads it."""


class ErrorObject(BaseModel):
    """Of an error: what OpenAI's clients read."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorObject


class ModelList(BaseModel):
    """The models that are answered for."""

    object: str = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """Whether all blocks are served, in words too, and how many queries are being answered."""

    status: str
    detail: str
    running: int


class Version(BaseModel):
    """Of this package."""

    version: str


STATUSES = {
    400: "What is asked makes no sense, or does not fit into the model's context",
    401: "An API key is needed",
    403: "Host or Origin are not allowed",
    404: "There is no such model",
    413: "The request is too large",
    429: "The swarm is full; Retry-After says when to come again",
    502: "The swarm failed",
    503: "Blocks have no server",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the schema: that these are answered in OpenAI's shape."""
    return {status: {"model": ErrorBody, "description": STATUSES[status]} for status in statuses}


def create_app(
    answerers: Mapping[str, Answerer],
    settings: HttpSettings,
    *,
    page: Path | None = None,
    peers: Callable[[], Sequence[str]] = tuple,
    metrics: Callable[[], tuple[str, bytes]] | None = None,
) -> FastAPI:
    """The application. `answerers`: by the model's name; `page`: a folder with a web page to show at /; `peers`:
    through whom the page joins; `metrics`: content type and text of what Prometheus reads."""
    app = FastAPI(
        title="swarm gateway",
        version=__version__,
        description="OpenAI's API over a model whose blocks many machines serve.",
        responses=errors(403),
    )
    desk = Desk(answerers, settings)
    began = int(time.time())

    @app.get("/v1/models", responses=errors(401))
    async def models() -> ModelList:
        """The models that are answered for."""
        return ModelList(data=[_model(name, began) for name in answerers])

    @app.get("/v1/models/{name:path}", responses=errors(401, 404))
    async def model(name: str) -> ModelObject:
        """One of them."""
        desk.answerer(name)
        return _model(name, began)

    refused = errors(400, 401, 404, 413, 429, 502, 503)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=refused)
    async def chat(request: ChatRequest, http: HttpRequest) -> Response:
        """Go on with a conversation."""
        return await desk.serve(request, http, Chat)

    @app.post("/v1/completions", response_model=CompletionObject, responses=refused)
    async def completions(request: CompletionRequest, http: HttpRequest) -> Response:
        """Go on with a text."""
        return await desk.serve(request, http, Completion)

    @app.get("/health", responses={503: {"model": Health, "description": STATUSES[503]}})
    async def health() -> Health:
        """Whether every block has a server."""
        state = desk.health()
        return JSONResponse(state.model_dump(), 200 if state.status == "ok" else 503)  # type: ignore[return-value]

    @app.get("/version")
    async def version() -> Version:
        """Of this gateway."""
        return Version(version=__version__)

    if metrics is not None:

        @app.get("/metrics", include_in_schema=False)
        async def exposition() -> Response:
            kind, body = metrics()
            return Response(body, media_type=kind)

    _handle_errors(app)
    if page is not None and page.is_dir():

        @app.get("/peers.json", include_in_schema=False)
        async def join() -> dict[str, list[str]]:
            return {"peers": list(peers())}

        app.mount("/", StaticFiles(directory=page, html=True))
    app.add_middleware(Guard, settings=settings)
    return app


def _model(name: str, began: int) -> ModelObject:
    return ModelObject(id=name, created=began, object="model", owned_by="swarm")


def _handle_errors(app: FastAPI) -> None:
    """Everything that goes wrong has OpenAI's shape."""

    async def ours(request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error.response()

    async def senseless(request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(400, f"this is no JSON: {first['ctx']['error']}").response()
        place = [str(part) for part in first["loc"] if part != "body"]
        message = f"{'.'.join(place)}: {first['msg']}" if place else first["msg"]
        return ApiError(400, message, param=place[0] if place else None).response()

    async def plain(request: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = ApiError(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response

    async def unexpected(request: HttpRequest, error: Exception) -> Response:
        return ApiError(500, "the gateway failed", "server_error").response()

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(RequestValidationError, senseless)
    app.add_exception_handler(HTTPException, plain)
    app.add_exception_handler(Exception, unexpected)


class Desk:
    """Takes requests to the answerers."""

    def __init__(self, answerers: Mapping[str, Answerer], settings: HttpSettings) -> None:
        self.answerers = answerers
        self.settings = settings

    def answerer(self, name: str) -> Answerer:
        """Who answers for a model. Raises ApiError."""
        found = next((answerer for known, answerer in self.answerers.items() if is_called(known, name)), None)
        if found is None:
            known = ", ".join(self.answerers)
            raise ApiError(404, f"there is no model {name!r} here, but {known}", code="model_not_found", param="model")
        return found

    def health(self) -> Health:
        """As of now."""
        gaps = {name: answerer.missing for name, answerer in self.answerers.items()}
        words = [f"blocks {gap} of {name} have no server" for name, gap in gaps.items() if gap is not None]
        running = sum(answerer.running for answerer in self.answerers.values())
        return Health(status="waiting" if words else "ok", detail="; ".join(words), running=running)

    async def serve(self, request: ChatRequest | CompletionRequest, http: HttpRequest, kind: type[Shape]) -> Response:
        """Answer a request, whole or as a stream. Raises ApiError."""
        answerer = self.answerer(request.model)
        queries = queries_of(request)
        gap = await answerer.look()
        if gap is not None:
            raise api_error(MissingBlocks(f"blocks {gap} of {answerer.model.name} have no server now"))
        tools = isinstance(request, ChatRequest) and bool(request.usable_tools)
        choices = [Choice(index, Sorting() if tools else None) for index in range(len(queries))]
        replies = merged([answerer.answer(query) for query in queries])
        shape = kind(request.model, f"fp_{answerer.model.key[:12]}")
        per_prompt = request.n or 1
        try:
            if not request.stream:
                return await unless_left(_whole(replies, choices, shape, per_prompt), http.receive)
            first = await unless_left(anext(replies), http.receive)
        except SwarmError as error:
            raise api_error(error) from error
        except Left:
            return Response(status_code=GONE)
        finally:
            if not request.stream:
                await replies.aclose()
        usage = request.stream_options is not None and request.stream_options.include_usage
        events = events_of(_behind(first, replies), choices, shape, per_prompt, usage=usage)
        return EventStream(paced(events, self.settings.heartbeat), self.settings.stuck)


async def _whole(
    replies: AsyncGenerator[tuple[int, pb.QueryReply], None],
    choices: Sequence[Choice],
    shape: Shape,
    per_prompt: int,
) -> Response:
    async for place, reply in replies:
        choices[place].take(reply)
    body = json.dumps(shape.whole(choices, per_prompt), ensure_ascii=False).encode(errors="replace")
    return Response(body, media_type="application/json")


async def _behind(
    first: tuple[int, pb.QueryReply], replies: AsyncGenerator[tuple[int, pb.QueryReply], None]
) -> AsyncGenerator[tuple[int, pb.QueryReply], None]:
    async with contextlib.aclosing(replies):
        yield first
        async for reply in replies:
            yield reply


async def serve_http(app: FastAPI, host: str, port: int, ready: Callable[[str, int], None] | None = None) -> None:
    """Serve until cancelled, inside a loop that is not uvicorn's own. `ready` is told the address.

    Raises InvalidInput when the address cannot be had.
    """
    import uvicorn

    from swarm.errors import InvalidInput

    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment, method-assign]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise InvalidInput(f"cannot listen on {host}:{port}: {error}") from error
    serving = asyncio.create_task(server.serve(sockets=[listening]), name="http")
    try:
        if ready is not None:
            ready(*listening.getsockname()[:2])
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        listening.close()
