"""The web page at the root of a gateway; in its place, where it was not built, how it is."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi import Request as HttpRequest
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

NO_PAGE = (
    "This is a swarm gateway. It answers programs that speak OpenAI's API at /v1, which /docs describes.",
    "The web page is not here: it was not built. Packages of swarm have it; in a checkout, `make page` builds it.",
    "That needs Node.js; then start the gateway again.",
)


def add_page(app: FastAPI, folder: Path, peers: Callable[[], Sequence[str]]) -> None:
    """Serve the page in `folder` at /, and say through whom it joins."""
    router = APIRouter(include_in_schema=False)

    @router.get("/peers.json")
    async def join() -> dict[str, list[str]]:
        return {"peers": list(peers())}

    app.include_router(router)
    app.mount("/", StaticFiles(directory=folder, html=True))


def add_words(app: FastAPI) -> None:
    """Say at / what this is, and why there is no page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def root(request: HttpRequest) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse("\n".join(NO_PAGE) + "\n")
        words = "".join(f"<p>{html.escape(line)}</p>" for line in NO_PAGE)
        return HTMLResponse(f'<!doctype html><html lang="en"><title>swarm gateway</title><body>{words}</body></html>')

    app.include_router(router)
