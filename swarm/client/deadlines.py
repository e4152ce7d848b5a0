"""When a step counts as late and a hop as dead: a few times what a step of this session has taken. Pure.

What is remembered are the times between signs of life, with all the stalls that a loaded server or a shaky line put in
them: whoever had a stall of half a second is given several of them before it is suspected. A prompt, and what follows a
change of route, take what they take and are measured against the limits of the configuration alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.client.chunks import Stage
from swarm.config import ClientConfig

REMEMBERED = 256
"""Steps; those before them say little of how the servers are loaded now."""
FEW = 4
"""Fewer steps than these say little: they count for half."""
SHORT = 16
"""Positions up to which a step tells of others, and they of it: what guesses make of one token."""
RACE, LATE, SILENT = 1.2, 3.0, 6.0
"""So many times what all but one in a hundred steps took: it is raced, it is looked into, it is suspected."""
SOONEST_RACE, SOONEST_LATE, SOONEST_SILENT = 0.03, 0.1, 1.0
"""Seconds before which nothing is late or dead, however fast it was: garbage is collected, processes wait."""
PROBES = 4
"""So many in the time in which a hop has to answer one."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """In seconds: after `race` without an output a standby computes the step, too; after `late` there are probes, every
    `probe_interval`; a hop that answers none for `silence` is taken for dead."""

    race: float
    late: float
    probe_interval: float
    silence: float


class Pace:
    """How long this session's steps take, from one sign of life to the next."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=REMEMBERED)
        self._replaying = False

    def begin(self) -> None:
        """A route begins to run: until its first outputs, servers may be computing the past again."""
        self._replaying = True

    def note(self, seconds: float, positions: int) -> None:
        """Outputs came, `seconds` after the last sign of life, of so many positions that were under way."""
        if positions <= SHORT and not self._replaying:
            self._seconds.append(seconds)
        self._replaying = False

    @property
    def slowest(self) -> float | None:
        """What all but one in a hundred of the last steps took at most; None: there were none."""
        if not self._seconds:
            return None
        return sorted(self._seconds)[math.ceil(0.99 * len(self._seconds)) - 1]

    @property
    def known(self) -> bool:
        """Whether there were enough to go by."""
        return len(self._seconds) >= FEW

    def deadlines(self, positions: int, expected: float, config: ClientConfig) -> Deadlines:
        """For `positions` that are under way. `expected`: seconds that a step takes by what the servers announce, which
        counts where it is more than what few steps say. Never later than the limits of `config`."""
        if positions > SHORT or self._replaying:
            return Deadlines(config.late_after, config.late_after, config.probe_interval, config.silence)
        usual, doubt = self.slowest or 0.0, 1.0
        if not self.known:
            usual, doubt = max(usual, expected), 2.0
        late = min(max(LATE * doubt * usual, SOONEST_LATE), config.late_after)
        silence = min(max(SILENT * doubt * usual, SOONEST_SILENT), config.silence)
        race = min(max(RACE * doubt * usual, SOONEST_RACE), late)
        return Deadlines(race, late, min(config.probe_interval, silence / PROBES), silence)


def expected_seconds(stages: Sequence[Stage], rtt_ms: Sequence[float]) -> float:
    """What a step of one position takes through hops like these, each half a round trip after the one before."""
    return sum(stage.seconds(1) for stage in stages) + sum(rtt_ms) / 1000.0
