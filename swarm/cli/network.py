"""A command's place in the network, from joining to leaving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from swarm.config import EdgeConfig, NetworkConfig

if TYPE_CHECKING:
    from swarm.net.directory import HivemindDirectory
    from swarm.net.edge import Edge
    from swarm.net.hivemind import HivemindHost

log = logging.getLogger(__name__)

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
async def edge_of(host: HivemindHost, config: EdgeConfig | None) -> AsyncIterator[Edge | None]:
    """An edge with the host's identity, for as long as the block lasts; None if there is to be none.

    Raises EdgeFailed, InvalidInput.
    """
    if config is None:
        yield None
        return
    from swarm.net.edge import Edge

    edge = await Edge.start(host.identity, config)
    try:
        yield edge
    finally:
        await _patiently(edge.close())


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
