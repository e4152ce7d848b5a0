"""Finds out where this peer is in the network, by round trips to peers that say where they are."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from swarm.coordinates import NOWHERE, Coordinate, settled
from swarm.errors import MalformedFrame, SwarmError
from swarm.net.base import Host, Stream
from swarm.tasks import Tasks
from swarm.types import PeerId
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

NEIGHBOURS = 24
"""Peers whose last measurement counts."""
AT_FIRST = 12
"""Peers that are asked at once, one after the other, before it becomes one now and then."""
PAUSE, SHORT_PAUSE = 30.0, 5.0
"""Seconds between two measurements, more or less; and while fewer than that are known."""
_WARM = 3
"""Round trips of a measurement, of which the shortest counts: the first may have a connection to make."""
_MOST = 16
"""Pings that a stream may carry."""
_FRAME = 128
_PATIENCE = 5.0
"""Seconds for an answer, and for the next question."""
_FEWEST = 3
"""Measurements before which this peer says nothing of where it is."""


class Locator:
    """Answers pings and sends some. `neighbours`: who can be asked, now."""

    def __init__(
        self, host: Host, neighbours: Callable[[], Sequence[PeerId]], rng: random.Random | None = None
    ) -> None:
        self._host = host
        self._neighbours = neighbours
        self._rng = rng or random.Random()
        self._here = NOWHERE
        self._measured: dict[PeerId, tuple[Coordinate, float]] = {}
        self._tasks = Tasks(log)

    @property
    def coordinate(self) -> Coordinate | None:
        """Where this peer is; None: not known yet."""
        return self._here if len(self._measured) >= _FEWEST else None

    async def start(self) -> None:
        """Answer, and begin to ask."""
        await self._host.serve(messages.PING_PROTOCOL, self.answer)
        self._tasks.spawn(self._run(), name="locator")

    async def close(self) -> None:
        """Ask no more."""
        await self._tasks.close()

    async def answer(self, stream: Stream) -> None:
        """Say where this peer is to who pings it, a few times."""
        for _ in range(_MOST):
            try:
                async with asyncio.timeout(_PATIENCE):
                    messages.decode(pb.Ping, await stream.receive(_FRAME))
            except TimeoutError:
                return
            await stream.send(self._ping())

    def _ping(self) -> bytes:
        return pb.Ping(coordinate=messages.coordinate_message(self._here)).SerializeToString()

    async def _run(self) -> None:
        asked = 0
        while True:
            known = [peer for peer in self._neighbours() if peer != self._host.peer_id]
            if known:
                await self.measure(self._choice(known))
                asked += 1
            if known and asked < min(AT_FIRST, _WARM * len(known)):
                continue
            # As long as few are known, others may have come.
            pause = PAUSE if len(self._measured) >= AT_FIRST else SHORT_PAUSE
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))

    def _choice(self, known: Sequence[PeerId]) -> PeerId:
        """Mostly somebody new, until there are enough; then one of those again, as a rule."""
        fresh = [peer for peer in known if peer not in self._measured]
        again = [peer for peer in known if peer in self._measured]
        few = len(self._measured) < NEIGHBOURS
        return self._rng.choice(fresh if fresh and (few or not again or self._rng.random() < 0.3) else again or fresh)

    async def measure(self, peer_id: PeerId, addresses: Sequence[str] = ()) -> float | None:
        """Ask a peer where it is, and move by the round trip, which is returned in ms; None: it does not answer."""
        try:
            async with asyncio.timeout(_PATIENCE):
                theirs, took = await self._round_trip(peer_id, addresses)
        except (SwarmError, TimeoutError) as error:
            log.debug("%s does not say where it is: %s", peer_id, error)
            self._measured.pop(peer_id, None)
            return None
        self._measured.pop(peer_id, None)
        self._measured[peer_id] = theirs, took
        if len(self._measured) > NEIGHBOURS:
            del self._measured[next(iter(self._measured))]
        self._here = settled(self._here, self._measured.values(), self._rng)
        return took

    async def _round_trip(self, peer_id: PeerId, addresses: Sequence[str]) -> tuple[Coordinate, float]:
        loop = asyncio.get_running_loop()
        stream = await self._host.open_stream(peer_id, messages.PING_PROTOCOL, addresses)
        try:
            best = float("inf")
            for _ in range(_WARM):
                begun = loop.time()
                await stream.send(self._ping())
                reply = messages.decode(pb.Ping, await stream.receive(_FRAME))
                best = min(best, (loop.time() - begun) * 1000)
            if not reply.HasField("coordinate"):
                raise MalformedFrame(f"{peer_id} does not say where it is")
            return messages.coordinate_of(reply.coordinate), best
        finally:
            stream.close()
