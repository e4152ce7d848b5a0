"""How many tokens a second sessions make together that share hops. Pure: played with a clock of its own, no chance.

Rows go round: through each hop, to the client, which makes a token of each, and back to the first hop. A hop takes all
rows that are there into one pass, and holds a pass of few back for a while, as servers do (`server/batching.py`); so
groups of sessions form by themselves, and neither all go in step nor each by itself. Each session is another client's.
Where hops and client are one machine there is one client, which makes one token after the other, and what computes at a
time shares the machine's cores.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from swarm.client.chunks import Stage
from swarm.server.batching import patience
from swarm.server.thread_engine import ACTIVE

ROUNDS, ROWS = 4, 160
"""That are counted: so many of each session, and in all, at least; as many before them are not."""
STAGGER = 1e-3
"""Seconds between the beginnings of two sessions."""


@dataclass(slots=True)
class _Station:
    """A hop, or the client (`single`: one row a pass). `waiting`: rows; `since`: when the first of them came, or the
    last pass ended; `took`: the last pass, in seconds; `seen`: when each row's last was over."""

    stage: Stage
    way: float
    single: bool = False
    waiting: list[int] = field(default_factory=list)
    since: float = 0.0
    took: float = 0.0
    busy: bool = False
    seen: dict[int, float] = field(default_factory=dict)


class _Flow:
    """`now`: seconds; `worked`: what each pass that runs has got done since the beginning, in seconds of a core that is
    its own."""

    def __init__(self, stations: Sequence[_Station], sessions: int, cores: float | None) -> None:
        self._stations, self._cores = stations, cores
        self.now = self.worked = 0.0
        self._number = 0
        self._coming: list[tuple[float, int, int, int | None]] = []
        """Rows on their way: when they come, to which station; no row: it is looked whether a pass begins."""
        self._passes: list[tuple[float, int, int, list[int]]] = []
        """What has to be worked until a pass is over, at which station, with which rows."""
        for row in range(sessions):
            self._come(row * STAGGER, 0, row)

    def _come(self, at: float, station: int, row: int | None) -> None:
        self._number += 1
        heapq.heappush(self._coming, (at, self._number, station, row))

    def rate(self, rows: int) -> float:
        """Tokens a second, of so many tokens behind as many."""
        made, began = 0, 0.0
        while made < 2 * rows:
            if self._next() == len(self._stations) - 1:
                made += 1
                began = self.now if made == rows else began
        return rows / (self.now - began) if self.now > began else 0.0

    def _next(self) -> int | None:
        """Until something comes, or a pass is over: at which station."""
        speed = min(1.0, self._cores / len(self._passes)) if self._cores and self._passes else 1.0
        over = self.now + (self._passes[0][0] - self.worked) / speed if self._passes else float("inf")
        if self._coming and self._coming[0][0] < over:
            at, _, station, row = heapq.heappop(self._coming)
            self._go_on(at, speed)
            self._arrive(station, row)
            return None
        self._go_on(over, speed)
        _, _, station, rows = heapq.heappop(self._passes)
        following = (station + 1) % len(self._stations)
        for row in rows:
            self._come(self.now + self._stations[following].way, following, row)
        one = self._stations[station]
        one.busy, one.since = False, self.now
        one.seen.update(dict.fromkeys(rows, self.now))
        self._begin(station)
        return station

    def _go_on(self, until: float, speed: float) -> None:
        self.worked += (until - self.now) * speed
        self.now = until

    def _arrive(self, station: int, row: int | None) -> None:
        one = self._stations[station]
        if row is not None:
            if not one.waiting and not one.busy:
                one.since = self.now
            one.waiting.append(row)
        self._begin(station)

    def _begin(self, station: int) -> None:
        """A pass, if it is time for one."""
        one = self._stations[station]
        if one.busy or not one.waiting:
            return
        if not one.single:
            expected = sum(seen > self.now - ACTIVE for seen in one.seen.values())
            until = one.since + patience(len(one.waiting), expected, one.took)
            if self.now < until:
                self._come(until, station, None)
                return
        rows = one.waiting[:1] if one.single else one.waiting
        one.waiting = one.waiting[len(rows) :]
        one.busy, one.took = True, one.stage.seconds(len(rows))
        self._number += 1
        heapq.heappush(self._passes, (self.worked + one.took, self._number, station, rows))


def flow_rate(
    hops: Sequence[Stage], ways: Sequence[float], client: float, sessions: int, cores: float | None = None
) -> float:
    """Tokens a second of all `sessions` together. `ways`: seconds to each hop, and from the last to the client, so one
    more than hops; `client`: seconds for a token; `cores`: of the one machine that all is on, None: each is on its own.
    """
    stations = [_Station(stage, way) for stage, way in zip(hops, ways[:-1], strict=True)]
    alone = cores is None
    stations.append(_Station(Stage(0.0, 0.0 if alone else client), ways[-1] + (client if alone else 0.0), single=True))
    return _Flow(stations, sessions, cores).rate(sessions * max(ROUNDS, -(-ROWS // sessions)))


def shared_prompt(seconds: float, passes: Sequence[float], cores: float | None) -> float:
    """Seconds of a prompt that takes `seconds` where each hop is on a machine of its own, by what all its `passes`
    take: no more of them is done at a time than there are cores."""
    return seconds if cores is None else max(seconds, sum(passes) / cores)
