"""Drops connections over which nothing comes any more, so that new ones are made.

A router that gets another address, or forgets what it translated, tells nobody: over TCP p2pd notices after 30 to 40
seconds, over QUIC after 30, and until then takes the dead connection for what it is asked to make.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from swarm.errors import SwarmError
from swarm.net.addresses import components
from swarm.tasks import Tasks, ended
from swarm.types import PeerId

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
QUIET = 2.0
"""Seconds without a byte from a peer that was sent some, after which it is asked for a sign of life."""
QUIET_KEPT = 4.0
"""The same for a connection that is kept for others to use."""
PATIENCE = 3.0
"""Seconds for the sign to come, and as many more as what was sent before may take on a slow line."""
SLOWEST, IN_FLIGHT = 50_000.0, 1 << 20
"""Bytes per second of such a line, and bytes that may be under way on it."""
MOST = 16
"""Peers that are asked at a time."""
PING, PING_BYTES = "/ipfs/ping/1.0.0", 32
"""libp2p's own question for a sign of life, which libraries answer also where their program is busy."""


class Line(Protocol):
    """What is needed of the peer that this is part of."""

    async def sign_of_life(self, peer_id: PeerId) -> None:
        """Wait for one, over the connection that there is. Raises NetworkError where there is none."""

    async def online(self, addresses: Sequence[str]) -> bool:
        """Whether a new connection can be made to any of these multiaddrs."""

    async def drop(self, peer_id: PeerId) -> None:
        """Drop the connections to a peer. Raises NetworkError."""


class Watched(Protocol):
    """A stream: when bytes came and were sent last, by the loop's time, and how many were."""

    @property
    def peer_id(self) -> PeerId: ...
    @property
    def heard(self) -> float: ...

    spoke: float
    sent: int


S = TypeVar("S", bound=Watched)


@dataclass(slots=True)
class Heard:
    """Of one peer: when it was last heard and sent to, by the loop's time; the bytes sent by then and since."""

    at: float
    spoke: float
    sent_by_then: int = 0
    sent: int = 0

    def note(self, at: float, spoke: float, sent: int) -> None:
        """What its streams say now."""
        self.spoke, self.sent = max(self.spoke, spoke), sent
        if at > self.at:
            self.at, self.sent_by_then = at, sent

    def due(self, now: float, *, kept: bool) -> bool:
        """Whether to ask it for a sign of life."""
        return now - self.at >= QUIET_KEPT if kept else self.spoke >= self.at and now - self.at >= QUIET

    @property
    def behind(self) -> int:
        """Bytes that may be under way to it still."""
        return max(self.sent - self.sent_by_then, 0)


def patience(peers: Iterable[Heard]) -> float:
    """Seconds for a sign of life to come."""
    return PATIENCE + min(sum(peer.behind for peer in peers), IN_FLIGHT) / SLOWEST


def dead(silent: Collection[PeerId], answered: Collection[PeerId], *, online: bool) -> set[PeerId]:
    """Whose connections to drop. Where nobody answers and nothing can be dialled (`online`), this machine itself has no
    network, and its connections may be good again when it has."""
    return set(silent) if answered or online else set()


class Pulse(Generic[S]):
    """`streams`: those that are open. `kept`: peers whose connections others use; `known`: peers that are asked, too,
    when one is silent, and where they are dialled."""

    def __init__(
        self,
        line: Line,
        streams: Collection[S],
        kept: Callable[[], Iterable[PeerId]],
        known: Callable[[], Sequence[str]],
    ) -> None:
        self._line = line
        self._streams = streams
        self._kept = kept
        self._known = known
        self._heard: dict[PeerId, Heard] = {}
        self._opened: dict[PeerId, list[S]] = {}
        self._tasks = Tasks(log)
        self._looking: asyncio.Task[None] | None = None

    def opened(self, stream: S) -> None:
        """A stream was opened from here."""
        self._opened.setdefault(stream.peer_id, []).append(stream)
        self._heard.setdefault(stream.peer_id, Heard(_now(), -1.0))
        self.look()

    def look(self) -> None:
        """See to it that somebody looks as long as there is a connection to look at."""
        if self._looking is None or self._looking.done():
            self._looking = self._tasks.spawn(self._look(), name="looking for dead connections")

    async def _look(self) -> None:
        while True:
            kept = self._note()
            if not self._heard:
                return
            now = _now()
            if any(heard.due(now, kept=peer in kept) for peer, heard in self._heard.items()):
                try:
                    await self._ask_all()
                except SwarmError as error:
                    log.debug("connections cannot be looked at: %s", error)
            await asyncio.sleep(LOOK_EVERY)

    def _note(self) -> set[PeerId]:
        """Take over what the streams of those say that are looked at; returns who is kept."""
        for peer, opened in list(self._opened.items()):
            self._opened[peer] = [stream for stream in opened if stream in self._streams]
            if not self._opened[peer]:
                del self._opened[peer]
        kept, now = set(self._kept()), _now()
        wanted = kept | set(self._opened)
        self._heard = {peer: self._heard.get(peer) or Heard(now, -1.0) for peer in wanted}
        said: dict[PeerId, tuple[float, float, int]] = {}
        for stream in self._streams:
            if stream.peer_id in wanted:
                heard, spoke, sent = said.get(stream.peer_id, (-1.0, -1.0, 0))
                said[stream.peer_id] = max(heard, stream.heard), max(spoke, stream.spoke), sent + stream.sent
        for peer, values in said.items():
            self._heard[peer].note(*values)
        return kept

    async def _ask_all(self) -> None:
        """Ask everybody who is looked at for a sign of life, and drop who gives none."""
        began, seconds = _now(), patience(self._heard.values())
        known = [address.rpartition("/p2p/")[2] for address in self._known()]
        first = sorted(self._heard, key=lambda peer: self._heard[peer].at)
        asked = list(dict.fromkeys([*first, *known]))[:MOST]
        online = asyncio.create_task(self._online(seconds))
        try:
            alive = dict(zip(asked, await asyncio.gather(*(self._alive(peer, seconds) for peer in asked)), strict=True))
            self._note()
            for peer, heard in self._heard.items():
                if alive.get(peer):
                    heard.note(_now(), heard.spoke, heard.sent)
                elif heard.at > began:
                    alive[peer] = True
            silent = [peer for peer, lives in alive.items() if lives is False]
            if silent:
                answered = [peer for peer, lives in alive.items() if lives]
                for peer in dead(silent, answered, online=await online):
                    await self._drop(peer, seconds)
        finally:
            await ended(online)

    async def _drop(self, peer: PeerId, seconds: float) -> None:
        log.info("no sign of life from %s for %.0f s: its connections are dropped", peer, seconds)
        self._heard.pop(peer, None)
        await self._line.drop(peer)

    async def _alive(self, peer: PeerId, seconds: float) -> bool | None:
        """Whether it gives one within so many seconds; None: it is neither silent nor there."""
        try:
            async with asyncio.timeout(seconds):
                await self._line.sign_of_life(peer)
        except TimeoutError:
            return False
        except SwarmError as error:
            log.debug("%s is not asked for a sign of life: %s", peer, error)
            return None
        return True

    async def _online(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._line.online(self._known())
        return False

    async def close(self) -> None:
        """Look no more."""
        await self._tasks.close()


def _now() -> float:
    return asyncio.get_running_loop().time()


async def any_accepts(addresses: Iterable[str]) -> bool:
    """Whether a new connection over TCP can be made to any of these multiaddrs."""
    places = {place for address in addresses if (place := _place(address)) is not None}
    return any(await asyncio.gather(*(_accepts(*place) for place in places)))


def _place(address: str) -> tuple[str, int] | None:
    """Host and port of a multiaddr over TCP."""
    parts = components(address) or []
    if len(parts) < 2 or parts[1][0] != "tcp" or not parts[1][1].isdecimal():
        return None
    return parts[0][1], int(parts[1][1])


async def _accepts(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.transport.abort()
    return True
