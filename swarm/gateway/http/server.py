"""An application on an address, in a loop that is not uvicorn's own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from starlette.types import ASGIApp

from swarm.errors import InvalidInput

STARTING = 0.01
"""Seconds between looks whether uvicorn, which does not say so, has begun."""


async def serve_http(app: ASGIApp, host: str, port: int, ready: Callable[[str, int], None] | None = None) -> None:
    """Serve until cancelled. `ready` is told the address. Raises InvalidInput when the address cannot be had."""
    import uvicorn

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
        while not server.started and not serving.done():
            await asyncio.sleep(STARTING)
        if ready is not None:
            ready(*listening.getsockname()[:2])
        await asyncio.shield(serving)
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        listening.close()
