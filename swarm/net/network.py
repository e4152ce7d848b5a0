"""A peer's place in the network, whatever the network is made of. Its import is cheap and starts nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from swarm.net.guard import Guard, GuardedHost

if TYPE_CHECKING:
    from swarm.config import NetworkConfig
    from swarm.net.base import Directory, Host
    from swarm.net.identity import Identity

log = logging.getLogger(__name__)

CLOSE_PATIENCE = 5.0
"""Seconds that leaving the network may take."""


def _nothing() -> None:
    """What a peer that is no forwarder does to leave as one."""


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """What `open` gives: streams by `host`, records by `directory`; an asynchronous context manager that leaves.

    `lost` waits until the network is lost to this process for good, and raises why (DaemonFailed): a supervisor has to
    start the process anew.
    """

    host: Host
    directory: Directory
    identity: Identity
    lost: Callable[[], Coroutine[Any, Any, NoReturn]]
    retire: Callable[[], None] = _nothing
    """Carry nothing new for others, because this peer is about to leave."""
    guard: Guard = field(default_factory=Guard)
    """What stands before the handlers of `host`."""

    async def close(self) -> None:
        """Leave. Waits for goodbyes, but not for ever: without its daemon nobody may answer."""
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):
                await self.directory.close()
                await self.host.close()
        except TimeoutError:
            log.warning("the network did not close within %.0f s; leaving it behind", CLOSE_PATIENCE)

    async def __aenter__(self) -> Network:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()


async def open(config: NetworkConfig) -> Network:  # noqa: A001
    """Join the network.

    Raises DaemonFailed when p2pd does not start, PeerUnreachable when no initial peer answers, InvalidInput when the
    identity file or an address is broken, NetworkError when the directory cannot be joined.
    """
    from swarm.net.hivemind.directory import open_directory
    from swarm.net.hivemind.host import create_host  # its import takes a second

    host = await create_host(config)
    try:
        directory = await open_directory(host)
    except BaseException:
        await host.close()
        raise
    host.keep_known(directory)
    return Network(GuardedHost(host, host.guard), directory, host.identity, host.lost, host.retire, host.guard)
