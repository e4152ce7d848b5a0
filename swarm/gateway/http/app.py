"""The HTTP side of a gateway: the APIs, what it needs to be run, and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from openai.types import Completion as CompletionObject
from openai.types import Model as ModelObject
from openai.types.chat import ChatCompletion
from openai.types.responses import Response as ResponseObject
from starlette.responses import Response

from swarm._version import __version__
from swarm.gateway.answers import Answerer
from swarm.gateway.anthropic.requests import CountRequest, MessageRequest, counted_of
from swarm.gateway.anthropic.requests import asked_of as messages_asked
from swarm.gateway.http.body import JsonRoute
from swarm.gateway.http.endpoint import Endpoint
from swarm.gateway.http.errors import handle_errors
from swarm.gateway.http.guard import HttpSettings, protect
from swarm.gateway.http.page import add_page, add_words
from swarm.gateway.http.schema import STATUSES, Health, ModelList, TokenCount, Version, anthropic_errors, errors
from swarm.gateway.openai.embeddings import EmbeddingRequest
from swarm.gateway.openai.requests import ChatRequest, CompletionRequest, asked_of
from swarm.gateway.picture_urls import PictureUrls
from swarm.gateway.responses.requests import ResponseRequest
from swarm.gateway.responses.requests import asked_of as responses_asked


def create_app(
    answerers: Mapping[str, Answerer],
    settings: HttpSettings,
    *,
    page: Path | None = None,
    peers: Callable[[], Sequence[str]] = tuple,
    metrics: Callable[[], tuple[str, bytes]] | None = None,
    urls: PictureUrls | None = None,
) -> FastAPI:
    """The application. `answerers`: by the model's name; `page`: a folder with a web page to show at /; `peers`:
    through whom the page joins; `metrics`: content type and text of what Prometheus reads; `urls`: fetches pictures."""
    words = "OpenAI's APIs and Anthropic's over a model whose blocks many machines serve."
    app = FastAPI(title="swarm gateway", version=__version__, description=words, responses=errors(403))
    endpoint = Endpoint(answerers, settings, urls)
    app.include_router(_models(endpoint))
    app.include_router(_completions(endpoint))
    app.include_router(_responses(endpoint))
    app.include_router(_messages(endpoint))
    app.include_router(_embeddings(endpoint))
    app.include_router(_state(endpoint))
    if metrics is not None:
        app.include_router(_metrics(metrics))
    if page is not None and (page / "index.html").is_file():
        add_page(app, page, peers)
    else:
        add_words(app)
    handle_errors(app)
    protect(app, settings)
    return app


def _models(endpoint: Endpoint) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", responses=errors(401))
    async def models() -> ModelList:
        """The models that are answered for."""
        return ModelList(data=endpoint.models())

    @router.get("/v1/models/{name:path}", responses=errors(401, 404))
    async def model(name: str) -> ModelObject:
        """One of them."""
        return endpoint.model(name)

    return router


def _responses(endpoint: Endpoint) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=errors(400, 401, 404, 413, 429, 502, 503))

    @router.post("/v1/responses", response_model=ResponseObject)
    async def responses(request: ResponseRequest, http: HttpRequest) -> Response:
        """Go on with a conversation, in OpenAI's newer API."""
        return await endpoint.serve(responses_asked(request), http)

    return router


def _messages(endpoint: Endpoint) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=anthropic_errors(400, 401, 403, 404, 413, 429, 502, 503))

    @router.post("/v1/messages")
    async def messages(request: MessageRequest, http: HttpRequest) -> Response:
        """Go on with a conversation, in Anthropic's API."""
        return await endpoint.serve(messages_asked(request), http)

    @router.post("/v1/messages/count_tokens")
    async def count(request: CountRequest) -> TokenCount:
        """Tokens of a conversation."""
        return TokenCount(input_tokens=await endpoint.count(request.model, counted_of(request)))

    return router


def _embeddings(endpoint: Endpoint) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=errors(400, 401, 404, 413, 429, 502, 503))

    @router.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest, http: HttpRequest) -> Response:
        """Texts as vectors: the model's last hidden states, pooled."""
        return await endpoint.embed(request, http)

    return router


def _completions(endpoint: Endpoint) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, responses=errors(400, 401, 404, 413, 429, 502, 503))

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat(request: ChatRequest, http: HttpRequest) -> Response:
        """Go on with a conversation."""
        return await endpoint.serve(asked_of(request), http)

    @router.post("/v1/completions", response_model=CompletionObject)
    async def completions(request: CompletionRequest, http: HttpRequest) -> Response:
        """Go on with a text."""
        return await endpoint.serve(asked_of(request), http)

    return router


def _state(endpoint: Endpoint) -> APIRouter:
    router = APIRouter()

    @router.get("/health", responses={503: {"model": Health, "description": STATUSES[503]}})
    async def health() -> Health:
        """Whether every block has a server."""
        state = endpoint.health()
        return JSONResponse(state.model_dump(), 200 if state.status == "ok" else 503)  # type: ignore[return-value]

    @router.get("/version")
    async def version() -> Version:
        """Of this gateway."""
        return Version(version=__version__)

    return router


def _metrics(metrics: Callable[[], tuple[str, bytes]]) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/metrics")
    async def exposition() -> Response:
        kind, body = metrics()
        return Response(body, media_type=kind)

    return router
