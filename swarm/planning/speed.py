"""How fast a route is, for one session, for many, and for a prompt. Pure.

A token of one session passes every hop: reading the weights of its blocks, and the ways. Several sessions are played
(`flow.py`); who goes where is decided by a formula, as if they were in groups of which each takes a hop its pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from swarm.client.chunks import Stage, best_chunk, pipeline_seconds, stage
from swarm.client.routing import Conditions, find_route
from swarm.errors import MissingBlocks
from swarm.planning.flow import flow_rate, shared_prompt
from swarm.types import PeerId, Route, ServerRecord, Span


@dataclass(frozen=True, slots=True)
class Line:
    """A route in seconds. `hops` compute; `links` carry a position's hidden state to each hop, and back to the client;
    `ways`: all delays and the cost of framing, a token; `head`: of the client, a token, with all else that it does;
    `cores`: of the one machine that all of it is on, None: each is on its own."""

    route: Route
    hops: tuple[Stage, ...]
    links: tuple[Stage, ...]
    ways: float
    head: float
    cores: float | None = None

    def latency(self, rows: float = 1) -> float:
        """Seconds a token, for `rows` sessions in step."""
        return sum(one.seconds(rows) for one in (*self.hops, *self.links)) + self.ways + self.head * rows

    def rate(self, sessions: int) -> float:
        """Tokens/s of all sessions together."""
        if sessions < 1:
            return 0.0
        each = self.ways / len(self.links)
        ways = [each + link.seconds(1) for link in self.links]
        played = flow_rate(self.hops, ways, self.head, sessions, self.cores)
        slowest = max(link.seconds(1) for link in self.links)
        return min(played, 1.0 / slowest) if slowest else played

    def guess(self, sessions: int) -> float:
        """About the same, by a formula: in the best number of groups."""
        return max((self._grouped(sessions, groups) for groups in range(1, sessions + 1)), default=0.0)

    def _grouped(self, sessions: int, groups: int) -> float:
        rows = sessions / groups
        slowest = max(one.seconds(rows) for one in (*self.hops, *self.links))
        return min(sessions / self.latency(rows), rows / slowest)

    def prompt(self, positions: int) -> float:
        """Seconds until the first token after a prompt."""
        stages = (*self.hops, *self.links)
        chunk = best_chunk(positions, stages)
        seconds, chunks = pipeline_seconds(positions, chunk, stages), -(-positions // chunk)
        passes = [chunks * hop.seconds(positions / chunks) for hop in self.hops]
        return shared_prompt(seconds, passes, self.cores) + self.ways + self.head

    def bottleneck(self) -> tuple[str, float]:
        """What takes most of a token of one session, and its share: "blocks", "delays", "links" or "head"."""
        computing = sum(one.seconds(1) for one in self.hops)
        links = sum(one.seconds(1) for one in self.links)
        what, seconds = max(
            [("blocks", computing), ("delays", self.ways), ("links", links), ("head", self.head)],
            key=lambda part: part[1],
        )
        return what, seconds / self.latency()

    def slowest(self) -> Span:
        """The hop that bounds many sessions."""
        return max(zip(self.hops, self.route.hops, strict=True), key=lambda pair: pair[0].base)[1].span


def lines(
    records: Sequence[ServerRecord],
    blocks: int,
    conditions: Conditions,
    link_seconds: Mapping[PeerId, float],
    head: float,
    cores: float | None = None,
) -> Iterator[Line]:
    """The best route, then the best of the servers that are left, until they make none; all of them idle.

    `link_seconds`: of one position's hidden state, by peer; `cores`: as in `Line`. Raises MissingBlocks when there is
    not even one.
    """
    records = [replace(record, queue=0) for record in records]
    avoided = conditions.avoid_peers
    first = True
    while True:
        try:
            route = find_route(records, Span(0, blocks), replace(conditions, avoid_peers=avoided))
        except MissingBlocks:
            if first:
                raise
            return
        first, avoided = False, avoided | {hop.peer_id for hop in route.hops}
        yield _line(route, link_seconds, head, cores)


def _line(route: Route, link_seconds: Mapping[PeerId, float], head: float, cores: float | None) -> Line:
    hops = tuple(stage(hop) for hop in route.hops)
    computing = sum(len(hop.span) * hop.server.decode_ms for hop in route.hops) / 1000
    carried = [link_seconds.get(hop.peer_id, 0.0) for hop in route.hops]
    links = tuple(Stage(0.0, seconds) for seconds in (*carried, carried[-1]))
    return Line(route, hops, links, max(route.cost_ms / 1000 - computing, 0.0), head, cores)


def together(every: Sequence[Line], sessions: int) -> float:
    """Tokens/s of so many sessions, each of which goes where it is best off beside those before it."""
    held = [0] * len(every)
    for _ in range(sessions):
        best = max(range(len(every)), key=lambda index: every[index].guess(held[index] + 1) / (held[index] + 1))
        held[best] += 1
    return sum(line.rate(count) for line, count in zip(every, held, strict=True) if count)
