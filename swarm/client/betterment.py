"""Whether a route that works should be left for a faster one: what its hops take is measured, and weighed. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from swarm.types import HopKey, PeerId, ServerRecord
from swarm.wire import swarm_pb2 as pb

WEIGH_EVERY = 10.0
"""Seconds between two looks at a route that works."""
FEWEST_STEPS = 8
"""Steps between two looks that tell how fast a hop is."""
MARKED = 1.5
"""A server counts as slower than the others from so many times on: what is less is noise."""
REMEMBERED = 120.0
"""Seconds for which it then does."""
GAIN = 0.25
"""The share of a step's time that another route must save."""

_Sums = tuple[int, float]


class Stopwatch:
    """What each hop has taken for steps since it was last looked at, waiting included."""

    def __init__(self) -> None:
        self._before: dict[HopKey, _Sums] = {}

    def take(self, told: Mapping[HopKey, Sequence[pb.Tally]]) -> dict[HopKey, float]:
        """Seconds a step, of the hops with enough new steps. `told`: all sums so far, of every hop of the route."""
        now = {key: _sums(tallies) for key, tallies in told.items()}
        found = {}
        for key, (steps, seconds) in now.items():
            before_steps, before_seconds = self._before.get(key, (0, 0.0))
            if steps - before_steps >= FEWEST_STEPS:
                found[key] = max(seconds - before_seconds, 0.0) / (steps - before_steps)
        self._before = now
        return found


def _sums(tallies: Sequence[pb.Tally]) -> _Sums:
    decode = [tally for tally in tallies if tally.phase == pb.Tally.DECODE]
    return sum(tally.steps for tally in decode), sum(tally.queue + tally.compute for tally in decode)


class Paces:
    """How many times as long as they announce servers take.

    Steps of many sessions and other versions make all of them differ alike from what they announce: what is known of
    one is taken for all, and a server is slow that is so beside that, or beside itself before.
    """

    def __init__(self) -> None:
        self._best: dict[PeerId, float] = {}
        self._last: dict[PeerId, tuple[float, float]] = {}

    def note(self, record: ServerRecord, decode_ms: float, now: float) -> None:
        """A block took so long at a server."""
        times = decode_ms / max(record.decode_ms, 1e-6)
        self._best[record.peer_id] = min(self._best.get(record.peer_id, times), times)
        self._last[record.peer_id] = times, now

    def corrected(self, records: Sequence[ServerRecord], now: float) -> Sequence[ServerRecord]:
        """The records with the speeds that are to be expected; waiting is in them where that was measured."""
        if not self._best:
            return records
        usual = statistics.median(self._best.values())
        slow = {
            peer_id: times
            for peer_id, (times, at) in self._last.items()
            if now - at < REMEMBERED and times > MARKED * usual
        }
        return [
            replace(record, decode_ms=record.decode_ms * slow[record.peer_id], queue=0)
            if record.peer_id in slow
            else replace(record, decode_ms=record.decode_ms * usual)
            for record in records
        ]


def is_worth(now_ms: float, then_ms: float, steps: int, replay_seconds: float) -> bool:
    """Whether to change to a route on which a step takes `then_ms`. `steps`: those made, for as many may follow;
    `replay_seconds`: computing the past anew."""
    gain_ms = now_ms - then_ms
    return gain_ms >= GAIN * now_ms and gain_ms * steps / 1000.0 > replay_seconds
