"""Where the time of an answer went: at the query node, in queues and engines of its hops, and on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from swarm.types import Hop
from swarm.wire import swarm_pb2 as pb

NAMES = {pb.Tally.PREFILL: "prefill", pb.Tally.DECODE: "decode"}


@dataclass(slots=True)
class Stopwatch:
    """A query node's own part, by the loop's clock. `first`: when the first token came; `own`: seconds of computing
    until then, and after it."""

    began: float
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0
    own: tuple[float, float] = (0.0, 0.0)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Note the time of what happens inside."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        yield
        seconds = loop.time() - began
        self.own = (self.own[0], self.own[1] + seconds) if self.tokens else (self.own[0] + seconds, self.own[1])

    def token(self) -> float:
        """A token has been chosen; returns the seconds since the one before, or since the beginning."""
        before, self.last = self.last or self.began, asyncio.get_running_loop().time()
        self.first = self.first or self.last
        self.tokens += 1
        return self.last - before


def spans_of(clock: Stopwatch, hops: Sequence[tuple[Hop, Sequence[pb.Tally]]]) -> list[pb.TraceSpan]:
    """Sums, put one after the other in the order in which a token passes: they say how much, not when exactly.

    What nobody computed or queued in is the wire's. Chunks of a prompt go through several hops at the same time: then
    the sums may be more than the time that passed, and nothing is left for the wire.
    """
    phases = {
        pb.Tally.PREFILL: (0.0, clock.first - clock.began, clock.own[0]),
        pb.Tally.DECODE: (clock.first - clock.began, clock.last - clock.first, clock.own[1]),
    }
    spans: list[pb.TraceSpan] = []
    for phase, (start, total, own) in phases.items():
        if total > 0.0:
            spans += _phase(NAMES[phase], start, total, own, hops, phase)
    return spans


def _phase(
    name: str,
    start: float,
    total: float,
    own: float,
    hops: Sequence[tuple[Hop, Sequence[pb.Tally]]],
    phase: pb.Tally.Phase,
) -> list[pb.TraceSpan]:
    parts = [("", "compute", own, 0)]
    for hop, tallies in hops:
        for tally in tallies:
            if tally.phase == phase:
                parts += [
                    (hop.peer_id, "queue", tally.queue, tally.steps),
                    (hop.peer_id, "compute", tally.compute, tally.steps),
                ]
    parts.append(("", "wire", max(total - sum(seconds for _, _, seconds, _ in parts), 0.0), 0))
    spans, at = [], start
    for peer_id, what, seconds, count in parts:
        spans.append(pb.TraceSpan(name=f"{what} {name}", peer_id=peer_id, start=at, seconds=seconds, count=count))
        at += seconds
    return spans
