"""A command's place in the network, from joining to leaving."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from swarm.config import NetworkConfig
from swarm.errors import DaemonFailed

if TYPE_CHECKING:
    from swarm.net.hivemind import HivemindDirectory, HivemindHost

log = logging.getLogger(__name__)


@asynccontextmanager
async def joined(config: NetworkConfig) -> AsyncIterator[tuple[HivemindHost, HivemindDirectory]]:
    """A host and the directory, for as long as the block lasts. Raises DaemonFailed, PeerUnreachable, InvalidInput."""
    from swarm.net.hivemind import create_host, open_directory

    host = await create_host(config)
    seen = asyncio.ensure_future(_keep_addresses(host, config.record_renewal))
    try:
        directory = await open_directory(host, config)
        try:
            yield host, directory
        finally:
            await directory.close()
    finally:
        seen.cancel()
        await asyncio.gather(seen, return_exceptions=True)
        await host.close()


async def daemon_death(host: HivemindHost) -> None:
    """Wait for p2pd to end unasked. Raises DaemonFailed then, so that a supervisor can start the command anew."""
    await host.died.wait()
    raise DaemonFailed("p2pd died, and with it every connection; start this command again (-vv shows what it said)")


async def _keep_addresses(host: HivemindHost, every: float) -> None:
    """Learn where others see this host, which changes as NAT is traversed and relays are found."""
    from swarm.net.hivemind import FOREIGN

    while True:
        await asyncio.sleep(every)
        try:
            await host.refresh_addresses()
        except FOREIGN as error:
            log.debug("p2pd did not say where it is seen: %s", error)
