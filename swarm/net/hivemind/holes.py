"""When a hole is punched again to peers that are reached through forwarders."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarm.errors import SwarmError
from swarm.net.addresses import is_public
from swarm.tasks import Tasks
from swarm.types import PeerId

log = logging.getLogger(__name__)

FIRST, LONGEST = 10.0, 300.0
"""Seconds from go-libp2p's own try to the first of ours; every pause is twice as long as the one before, up to this."""
SOON = 1.0
"""Seconds to the next try where this peer has other addresses than at the one before."""
TRIES = 8
"""To one peer, from the same addresses."""
AT_ONCE = 2
MOST = 256
"""Peers that are remembered."""

Knock = Callable[[PeerId, PeerId], Awaitable[None]]
"""Have a peer punch: through which forwarder, and whom. Raises NetworkError."""


def pause(tried: int) -> float:
    """Seconds to the next try after so many."""
    return min(FIRST * 2.0**tried, LONGEST)


def punchable(addresses: Iterable[str]) -> frozenset[str]:
    """Those of our addresses to which others could punch; where there are none nobody can."""
    return frozenset(address for address in addresses if "/quic-v1" in address and is_public(address))


@dataclass(slots=True)
class Tries:
    """To one peer; `due`: when the next is, by the loop's time."""

    due: float
    count: int = 0


class Holes:
    """`addresses`: where p2pd believes to be seen, now."""

    def __init__(self, knock: Knock, addresses: Callable[[], Sequence[str]]) -> None:
        self._knock = knock
        self._addresses = addresses
        self._from = punchable(addresses())
        self._tries: dict[PeerId, Tries] = {}
        self._tasks = Tasks(log)

    def look(self, circuits: Mapping[PeerId, PeerId]) -> None:
        """Try again what is due, of these peers and the forwarders that carry to them; called every second or so."""
        now, seen = asyncio.get_running_loop().time(), punchable(self._addresses())
        if seen != self._from:
            self._from = seen
            self._tries = {peer_id: Tries(now + SOON) for peer_id in self._tries}
        for peer_id, forwarder in circuits.items():
            tries = self._tries.setdefault(peer_id, Tries(now + pause(0)))
            if seen and now >= tries.due and tries.count < TRIES and len(self._tasks) < AT_ONCE:
                tries.count += 1
                tries.due = now + pause(tries.count)
                self._tasks.spawn(self._try(forwarder, peer_id, tries.count), name="punching a hole")
        while len(self._tries) > MOST:
            del self._tries[next(iter(self._tries))]

    def direct(self, peer_id: PeerId) -> None:
        """A peer is connected directly: should that end, tries begin anew."""
        self._tries.pop(peer_id, None)

    async def _try(self, forwarder: PeerId, peer_id: PeerId, count: int) -> None:
        log.info("punching a hole to %s once more (%d of %d)", peer_id, count, TRIES)
        try:
            await self._knock(forwarder, peer_id)
        except SwarmError as error:
            log.debug("no hole to %s: %s", peer_id, error)

    async def close(self) -> None:
        """Try no more."""
        await self._tasks.close()
