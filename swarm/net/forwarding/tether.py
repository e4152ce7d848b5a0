"""Keeps a peer that nobody can dial connected to forwarders, through which others then reach it."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from swarm.errors import SwarmError
from swarm.net.addresses import best_first
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.net.forwarding.choice import Candidate, choose
from swarm.types import PeerId

log = logging.getLogger(__name__)

DIAL = 5.0
"""Seconds that dialling a forwarder may take."""
MEASURED = 16
"""Forwarders of the directory whose delay is measured; others are candidates without one."""
MOST = 256
"""Forwarders that are remembered."""
UNANSWERED = 5
"""So many times a peer that is connected is asked without an answer; then at the next look for better ones."""
LOOK_AGAIN = 60.0
"""Seconds between two looks whether others would be better."""


class Line(Protocol):
    """What a tether needs of the peer that it is part of."""

    async def connected(self) -> set[PeerId]:
        """The peers to which there is a connection that is no circuit. Raises NetworkError."""

    async def dial(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        """Connect to a peer. Raises NetworkError."""

    async def ask(self, peer_id: PeerId) -> tuple[pb.Seen, float]:
        """What a forwarder that is connected says, and how many seconds it took. Raises NetworkError."""


@dataclass(slots=True)
class Known:
    """A forwarder and what is known of it. `addresses`: where it is dialled."""

    addresses: tuple[str, ...]
    candidate: Candidate
    busy: bool = field(default=False)


class Tether:
    """`held`: the forwarders chosen; `through`: those of them that are connected. `changed` hears when that changes."""

    def __init__(self, line: Line, me: PeerId, wanted: int, redial: float, changed: Callable[[], object]) -> None:
        self.held: list[PeerId] = []
        self.through: list[PeerId] = []
        self._line = line
        self._me = me
        self._wanted = wanted
        self._redial = redial
        self._changed = changed
        self._known: dict[PeerId, Known] = {}
        self._look_at = 0.0

    @property
    def addresses(self) -> list[str]:
        """Where others reach us: a circuit address for each forwarder that is connected."""
        dialled = (self._known[peer_id].addresses[0] for peer_id in self.through)
        return [f"{address}/p2p-circuit/p2p/{self._me}" for address in dialled]

    def learn(self, forwarders: Mapping[PeerId, Sequence[str]], full: frozenset[PeerId] = frozenset()) -> None:
        """There are forwarders at these addresses; some of them are `full`."""
        for peer_id, addresses in forwarders.items():
            usable = tuple(dialled_at(peer_id, addresses))
            if peer_id == self._me or not usable:
                continue
            known = self._known.get(peer_id)
            if known is None and len(self._known) < MOST:
                known = Known(usable, Candidate(peer_id, network=network_of(usable[0])))
                self._known[peer_id], self._look_at = known, 0.0
            if known is not None:
                known.addresses = usable
                known.candidate = replace(known.candidate, full=peer_id in full)

    async def run(self) -> None:
        """Hold on, until cancelled."""
        while True:
            try:
                await self.look()
            except SwarmError as error:
                log.debug("the connections to forwarders cannot be looked at: %s", error)
            await asyncio.sleep(self._redial)

    async def look(self) -> None:
        """Dial what was lost, choose anew where that is due, and say what changed. Raises NetworkError."""
        now = asyncio.get_running_loop().time()
        connected = await self._line.connected()
        if now >= self._look_at:
            self._look_at = now + LOOK_AGAIN
            await self._measure(connected)
        self.held = choose((known.candidate for known in self._known.values()), self.held, self._wanted)
        self._settle(connected)
        # Who is there and does not answer as a forwarder is none, after a few times.
        lost = [p for p in self.held if p not in connected or 0 < self._known[p].candidate.failures < UNANSWERED]
        if lost:
            await asyncio.gather(*map(self._reach, lost))
            self._settle(await self._line.connected())

    def _settle(self, connected: set[PeerId]) -> None:
        through = [p for p in self.held if p in connected and not self._known[p].candidate.failures]
        if through != self.through:
            self.through = through
            told = ", ".join(f"…{peer_id[-6:]}" for peer_id in through) or "nobody: all forwarders are lost"
            log.info("others reach this peer through %s", told)
            self._changed()

    async def _measure(self, connected: set[PeerId]) -> None:
        """How far the nearest of those are that we hold or have not asked yet."""
        unknown = [peer_id for peer_id, known in self._known.items() if math.isinf(known.candidate.delay)]
        await asyncio.gather(*map(self._reach, list(dict.fromkeys([*self.held, *unknown]))[:MEASURED]))

    async def _reach(self, peer_id: PeerId) -> None:
        """Connect, and ask twice: the first answer waits for what is set up."""
        known = self._known[peer_id]
        if known.busy:
            return
        known.busy, delay = True, math.inf
        try:
            async with asyncio.timeout(DIAL):
                await self._line.dial(peer_id, known.addresses)
                for _ in range(2):
                    seen, delay = await self._line.ask(peer_id)
            full = seen.circuits >= seen.most
            known.candidate = replace(known.candidate, delay=delay, full=full, failures=0)
        except (SwarmError, TimeoutError) as error:
            log.debug("the forwarder %s cannot be reached: %s", peer_id, error)
            known.candidate = replace(known.candidate, failures=known.candidate.failures + 1)
        finally:
            known.busy = False


def dialled_at(peer_id: PeerId, addresses: Sequence[str]) -> list[str]:
    """Addresses of a forwarder with its id behind them, those over TCP first; circuits are none."""
    direct = [address for address in addresses if "/p2p-circuit" not in address]
    return [f"{address.removesuffix(f'/p2p/{peer_id}')}/p2p/{peer_id}" for address in best_first(direct)]


def network_of(address: str) -> str:
    """The first half of an IPv4 address, the first three groups of an IPv6 one, or a name."""
    match = re.match(r"/ip4/(\d+\.\d+)\.|/ip6/([0-9a-f]+:[0-9a-f]+:[0-9a-f]+)|/dns[46a-z]*/([^/]+)", address)
    return next(filter(None, match.groups()), "") if match else ""
