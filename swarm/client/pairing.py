"""Two lanes that both have to come to the same before anything is given: `compare=2`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from swarm.client.auditor import Auditor
from swarm.client.claim import Claim
from swarm.client.integrity import Integrity
from swarm.client.lane import SPARE_PAUSE, Lane
from swarm.client.operators import wholly_apart_from
from swarm.client.paired import Agreed, Dispute, Paired
from swarm.client.replay import Past
from swarm.client.sequences import Sequences
from swarm.errors import GenerationFailed
from swarm.tasks import Tasks
from swarm.types import PeerId
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

CREDITED = 16
"""Rows on which two routes agree that count as an audit that was passed."""
TRIES = 3
"""To find out who is right."""
PAUSE = 1.0
"""Seconds between two of them."""


class Pairing:
    """Of one session. `give` takes rows that both lanes have made; `fail` ends the steps under way; `wanted`: whether
    anybody waits; `notify` tells that nothing goes on, and for how many seconds."""

    def __init__(
        self,
        lanes: tuple[Lane, Lane],
        sequences: Sequences,
        paired: Paired,
        auditor: Auditor,
        tasks: Tasks,
        give: Callable[[pb.Step], None],
        fail: Callable[[BaseException], None],
        wanted: Callable[[], bool],
        notify: Callable[[str, float], None],
    ) -> None:
        self._lanes = lanes
        self._sequences = sequences
        self._paired = paired
        self._auditor = auditor
        self._tasks = tasks
        self._give = give
        self._fail = fail
        self._wanted = wanted
        self._notify = notify
        self._deciding: asyncio.Task[None] | None = None
        self._agreed = 0
        self._alone_since: float | None = None

    @property
    def _integrity(self) -> Integrity:
        return self._lanes[0].view.trust.integrity

    def result(self, lane: Lane, step: pb.Step) -> None:
        """A lane has made something. Raises MalformedFrame."""
        self._paired.offer(self._lanes.index(lane), step)
        self._go_on()

    def began(self, lane: Lane) -> None:
        """A lane has another route: what it made and is not given yet comes once more. Both have no
        peer and no operator in common."""
        self._paired.forget(self._lanes.index(lane))
        first, second = self._lanes
        apart = wholly_apart_from(first.route, (hop.server for hop in second.route.hops) if second.route else ())
        shared = _peers(second) & apart.keys()
        if second.running and shared:
            second.expel(shared)
        if lane is second:
            self._alone_since = None
        second.ensure()

    def alone(self, error: BaseException, max_wait: float | None) -> None:
        """There is no second route now."""
        loop = asyncio.get_running_loop()
        self._alone_since = loop.time() if self._alone_since is None else self._alone_since
        waited = loop.time() - self._alone_since
        if max_wait is not None and waited >= max_wait:
            self._fail(error)
        elif self._wanted():
            self._notify(f"there is no second route to compare with: {error}", waited)
        loop.call_later(SPARE_PAUSE, self._again)

    def _again(self) -> None:
        if self._wanted():
            self._lanes[1].ensure()

    def _go_on(self) -> None:
        if self._deciding is not None and not self._deciding.done():
            return
        for found in list(self._paired.settle()):
            if isinstance(found, Agreed):
                self._credit(found)
                self._give(found.step)
            else:
                self._deciding = self._tasks.spawn(self._decide(found), name="finding out who is right")
                return

    def _credit(self, agreed: Agreed) -> None:
        self._agreed += agreed.step.rows[0].count
        if self._agreed >= CREDITED:
            self._agreed = 0
            self._integrity.passed(_peers(self._lanes[0]) ^ _peers(self._lanes[1]), agreed.apart, time.time())

    async def _decide(self, dispute: Dispute) -> None:
        """Ask others which of both is right; the other one leaves who was wrong, and computes it anew."""
        claims = [self._claim(dispute, index) for index in range(2)]
        one, other = claims
        if one is None or other is None:
            return
        for _ in range(TRIES):
            finding = await self._auditor.arbitrate(one, other)
            if finding.against:
                for index in finding.against:
                    self._leave(index, finding.wrong)
                self._tasks.spawn(self._afterwards(), name="going on")
                return
            await asyncio.sleep(PAUSE)
        words = f"position {dispute.position} of sequence {dispute.sequence}: two routes come to different results"
        self._fail(GenerationFailed(f"{words}, {one.route} and {other.route}, and nobody else can decide"))

    async def _afterwards(self) -> None:
        if self._deciding is not None:
            await asyncio.wait({self._deciding})
        self._go_on()

    def _claim(self, dispute: Dispute, index: int) -> Claim | None:
        route, sequence, position = self._lanes[index].route, dispute.sequence, dispute.position
        inputs = self._sequences.inputs(sequence, 0, position + 1)
        past = Past(inputs, position, self._sequences.row_bytes)
        if route is None or past.length <= position:
            return None
        return Claim(sequence, past, [position], dispute.rows[index], route)

    def _leave(self, index: int, wrong: Iterable[PeerId]) -> None:
        """This lane was wrong: by those who are convicted, or by nobody knows whom."""
        lane = self._lanes[index]
        guilty = frozenset(wrong) & _peers(lane)
        if not guilty:
            guilty = _peers(lane)
            now = asyncio.get_running_loop().time()
            for peer in guilty:
                lane.view.trust.peers.add(peer, now, why="was on a route that computed wrong")
        self._paired.forget(index)
        lane.expel(guilty)


def _peers(lane: Lane) -> frozenset[PeerId]:
    return frozenset(hop.peer_id for hop in lane.route.hops) if lane.route is not None else frozenset()
