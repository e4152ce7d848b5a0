"""A command's place in the network, from joining to leaving."""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from swarm import net
from swarm.cli.extras import how_to_have
from swarm.cli.files import write_addresses
from swarm.config import EdgeConfig, NetworkConfig
from swarm.errors import EdgeFailed
from swarm.net import Network
from swarm.tasks import ended, first_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from swarm.net.edge.host import Edge
    from swarm.net.identity import Identity

log = logging.getLogger(__name__)

_LOOK = 60.0
"""How often the addresses for browsers are looked at."""
CLOSE_PATIENCE = 5.0
"""Seconds that closing the edge may take."""


async def join(config: NetworkConfig, leaving: asyncio.Event) -> Network:
    """The network; where a signal comes first, the command ends with exit code 0. Raises what `net.open` raises."""
    opening: asyncio.Future[Any] = asyncio.ensure_future(net.open(config))
    await first_of(opening, leaving.wait())
    if opening.cancelled():
        raise click.exceptions.Exit(0)
    network: Network = opening.result()
    reload_lists_on_hangup(network)
    return network


def reload_lists_on_hangup(network: Network) -> None:
    """SIGHUP reads the lists of who is served anew, where there are any; elsewhere it ends the process as ever."""
    if network.guard.lists.some and hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, network.guard.lists.reload)


@asynccontextmanager
async def edge_of(identity: Identity, config: EdgeConfig | None, *, needed: bool = True) -> AsyncIterator[Edge | None]:
    """An edge with this peer's identity, for as long as the block lasts; None if there is to be none.

    Raises EdgeFailed, unless it is not `needed`, and InvalidInput.
    """
    edge = None if config is None else await _start_edge(identity, config, needed)
    try:
        yield edge
    finally:
        if edge is not None:
            await _close_edge(edge)


async def _close_edge(edge: Edge) -> None:
    try:
        async with asyncio.timeout(CLOSE_PATIENCE):
            await edge.close()
    except TimeoutError:
        log.warning("the edge did not close within %.0f s; leaving it behind", CLOSE_PATIENCE)


async def _start_edge(identity: Identity, config: EdgeConfig, needed: bool) -> Edge | None:
    try:
        # In a thread, because it takes a second or two in which others may need this loop.
        module = await asyncio.to_thread(_edge_module)
        edge: Edge = await module.Edge.start(identity, config)
        return edge
    except EdgeFailed as error:
        if needed:
            raise
        log.warning("browsers cannot reach this peer: %s", error)
        return None


def _edge_module() -> ModuleType:
    try:
        return importlib.import_module("swarm.net.edge.host")
    except ModuleNotFoundError as error:
        hint = how_to_have(error.name)
        if hint is None:
            raise
        raise EdgeFailed(hint) from error


@asynccontextmanager
async def kept_written(edge: Edge | None, file: Path | None) -> AsyncIterator[None]:
    """`file` holds the edge's addresses as of now, for as long as the block lasts: WebTransport's change with time."""
    if edge is None or file is None:
        yield
        return
    written = edge.addresses
    write_addresses(file, written)
    keeping = asyncio.create_task(_keep_written(edge, file, written), name="edge addresses")
    try:
        yield
    finally:
        await ended(keeping)


async def _keep_written(edge: Edge, file: Path, written: Sequence[str]) -> None:
    while True:
        await asyncio.sleep(_LOOK)
        if edge.addresses != written:
            try:
                write_addresses(file, edge.addresses)
                written = edge.addresses
            except OSError as error:
                log.warning("the addresses for browsers cannot be written to %s: %s", file, error.strerror)


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
        await ended(showing)


async def until(leaving: asyncio.Event, *works: Coroutine[Any, Any, object]) -> None:
    """Run all until one ends, as does the first after a signal. Raises what ended it."""
    for work in await first_of(leaving.wait(), *works):
        if not leaving.is_set():
            work.result()
