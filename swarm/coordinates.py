"""Network coordinates: where a peer is, so that the way between any two can be estimated by whoever knows both. Pure.

Vivaldi (Dabek, Cox, Kaashoek, Morris 2004): peers are points in a space, joined by springs as long as the round trips
that they measure; each measurement moves the one who made it, the more the less sure he is beside the other. The
height is what a packet needs to leave a peer at all, whichever way it goes: it is in every distance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from dataclasses import dataclass

DIMENSIONS = 3
FARTHEST_MS = 10_000.0
"""No coordinate is farther from the middle than this: nothing on earth is."""
PASSES = 4
KEPT = 0.75
"""The share of measurements that count in every pass."""
_TRUST = 0.25
"""The share of the way that one measurement moves a point, at most; the paper's c_c and c_e."""
_LOWEST_MS = 0.05
"""Heights stay above: at nought they could never grow again."""
_SUREST = 0.05
"""Nobody is surer than this, whatever he says."""


@dataclass(frozen=True, slots=True)
class Coordinate:
    """`point` and `height` in ms of a round trip; `error`: relative, 1 of who knows nothing yet.

    Raises ValueError for numbers that are none, or are beyond what may be.
    """

    point: tuple[float, ...] = (0.0,) * DIMENSIONS
    height: float = _LOWEST_MS
    error: float = 1.0

    def __post_init__(self) -> None:
        numbers = (*self.point, self.height, self.error)
        if len(self.point) != DIMENSIONS or not all(abs(number) <= FARTHEST_MS for number in numbers):
            raise ValueError("a coordinate is three numbers and a height, in ms and no more than ten seconds")
        if self.height < 0.0 or self.error < 0.0:
            raise ValueError("heights and errors are not negative")


NOWHERE = Coordinate()
"""Of who has measured nothing."""


def round_trip_ms(one: Coordinate, other: Coordinate) -> float:
    """The round trip between two peers, as their coordinates have it."""
    return math.dist(one.point, other.point) + one.height + other.height


def moved(mine: Coordinate, theirs: Coordinate, measured_ms: float, rng: random.Random) -> Coordinate:
    """My coordinate after one measured round trip; `rng`: which way to go from one who stands at the same point."""
    measured_ms = min(max(measured_ms, _LOWEST_MS), FARTHEST_MS)
    expected = round_trip_ms(mine, theirs)
    sure, other = max(mine.error, _SUREST), max(theirs.error, _SUREST)
    weight = sure / (sure + other)
    error = abs(expected - measured_ms) / measured_ms
    part = _TRUST * weight
    step = part * (measured_ms - expected)
    away = [a - b for a, b in zip(mine.point, theirs.point, strict=True)]
    apart = math.hypot(*away)
    if apart < 1e-6:
        away = [rng.gauss(0.0, 1.0) for _ in away]
        apart = math.hypot(*away)
        reach, heights = 1.0, 0.0
    else:
        reach, heights = apart / expected, (mine.height + theirs.height) / expected
    point = tuple(_bounded(a + step * reach * b / apart) for a, b in zip(mine.point, away, strict=True))
    height = min(max(mine.height + step * heights, _LOWEST_MS), FARTHEST_MS)
    return Coordinate(point, height, min(error * part + sure * (1.0 - part), 1.0))


def _bounded(number: float) -> float:
    return min(max(number, -FARTHEST_MS), FARTHEST_MS)


def settled(mine: Coordinate, neighbours: Collection[tuple[Coordinate, float]], rng: random.Random) -> Coordinate:
    """My coordinate after all that was measured of late, `(theirs, ms)` each, has moved it several times.

    A measurement is worth more than one step: few are made, as each costs somebody a round trip. Those that agree least
    with the others are left out of all passes but the first: some peers lie, and some ways are no straight line.
    """
    fit = list(neighbours)
    for _ in range(PASSES):
        for theirs, measured_ms in rng.sample(fit, len(fit)):
            mine = moved(mine, theirs, measured_ms, rng)
        here = mine
        fit = sorted(
            neighbours, key=lambda near: abs(math.log(round_trip_ms(here, near[0]) / max(near[1], _LOWEST_MS)))
        )
        fit = fit[: math.ceil(len(fit) * KEPT)]
    return mine
