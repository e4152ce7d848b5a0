"""A command's place in the network, from joining to leaving."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarm.cli.common import write_atomically
from swarm.config import EdgeConfig, NetworkConfig
from swarm.errors import EdgeFailed

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from swarm.net.directory import HivemindDirectory
    from swarm.net.edge.host import Edge
    from swarm.net.hivemind import HivemindHost

log = logging.getLogger(__name__)

_LOOK = 60.0
"""How often the addresses for browsers are looked at."""
CLOSE_PATIENCE = 5.0
"""Seconds that leaving the network may take."""


@asynccontextmanager
async def joined(config: NetworkConfig) -> AsyncIterator[tuple[HivemindHost, HivemindDirectory]]:
    """A host and the directory, for as long as the block lasts. Raises DaemonFailed, PeerUnreachable, InvalidInput."""
    from swarm.net.hivemind import create_host, open_directory

    host = await create_host(config)
    try:
        yield host, await open_directory(host, config)
    finally:
        await _patiently(host.close())


@asynccontextmanager
async def edge_of(
    host: HivemindHost, config: EdgeConfig | None, address_file: Path | None = None, *, needed: bool = True
) -> AsyncIterator[Edge | None]:
    """An edge with the host's identity, for as long as the block lasts; None if there is to be none.

    `address_file` holds its addresses as of now. Raises EdgeFailed, unless it is not `needed`, and InvalidInput.
    """
    edge = None if config is None else await _start_edge(host, config, needed)
    if edge is None:
        yield None
        return
    writing = asyncio.create_task(_keep_written(edge, address_file), name="edge addresses")
    await asyncio.sleep(0)  # they are there when others hear of the edge
    try:
        yield edge
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await _patiently(edge.close())


async def _start_edge(host: HivemindHost, config: EdgeConfig, needed: bool) -> Edge | None:
    # In a thread, because it takes a second or two in which others may need this loop.
    module = await asyncio.to_thread(importlib.import_module, "swarm.net.edge.host")
    try:
        edge: Edge = await module.Edge.start(host.identity, config)
        return edge
    except EdgeFailed as error:
        if needed:
            raise
        log.warning("browsers cannot reach this peer: %s", error)
        return None


async def _keep_written(edge: Edge, file: Path | None) -> None:
    """Those of WebTransport change with its certificates."""
    written: Sequence[str] = ()
    while file is not None:
        if edge.addresses != written:
            written = edge.addresses
            write_atomically(file, "".join(f"{address}\n" for address in written))
        await asyncio.sleep(_LOOK)


@asynccontextmanager
async def showing_metrics(
    place: tuple[str, int] | None, register: Callable[[CollectorRegistry], object]
) -> AsyncIterator[None]:
    """Show metrics at `place`, if there is one, for as long as the block lasts. Raises InvalidInput."""
    if place is None:
        yield
        return
    from prometheus_client import CollectorRegistry

    from swarm.metrics import serve_metrics

    registry = CollectorRegistry()
    register(registry)
    shown: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ready(host: str, port: int) -> None:
        click.echo(f"metrics  http://{host}:{port}/metrics")
        shown.set_result(None)

    showing = asyncio.create_task(serve_metrics(registry, *place, ready), name="metrics")
    try:
        await asyncio.wait({showing, shown}, return_when=asyncio.FIRST_COMPLETED)
        if showing.done():
            showing.result()
        yield
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def _patiently(closing: Awaitable[None]) -> None:
    """Wait for a goodbye, but not for ever: without its daemon nobody may answer."""
    try:
        async with asyncio.timeout(CLOSE_PATIENCE):
            await closing
    except TimeoutError:
        log.warning("the network did not close within %.0f s; leaving it behind", CLOSE_PATIENCE)


async def daemon_death(host: HivemindHost) -> None:
    """Wait for p2pd to end unasked. Raises DaemonFailed then, so that a supervisor can start the command anew."""
    await host.died.wait()
    raise host.failure()


async def until(leaving: asyncio.Event, works: Sequence[Coroutine[Any, Any, object]]) -> None:
    """Run all until one ends, as does the first after a signal. Raises what ended it."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not leaving.is_set():
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
