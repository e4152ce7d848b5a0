"""How servers of Petals choose blocks, as its paper and its code say: the baseline of `benchmarks.churn`.

Source: Borzunov et al., Petals (2023), appendix on load balancing. A server takes the run of blocks whose sorted
throughputs are the least. One that runs imagines that all others choose anew in turn until nobody moves any more, and
moves where what there is has less than 0.75 of the worst throughput that this would give.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from swarm.types import Span

if TYPE_CHECKING:
    from benchmarks.churn import Machine, View

QUALITY = 0.75
EPSILON = 1e-3
ROUNDS = 20


class PetalsRule:
    """Minimal sorted throughputs, balance quality 0.75."""

    name = "Petals' rule"
    residence = 0.0

    def choose(self, spans: Sequence[Span], view: View, rng: random.Random) -> Span:
        """Where a server that joins goes."""
        return _thinnest(view.strength, len(spans[0]))

    def move(self, spans: Sequence[Span], me: Machine, view: View, rng: random.Random) -> Span | None:
        """Where one that runs goes; None: it stays."""
        strength = view.strength.copy()
        before = float(strength.min())
        here, length = me.span, len(spans[0])
        assert here is not None
        strength[here.first : here.last] -= me.speed * (1 + EPSILON)
        if before > EPSILON and strength.min() <= 0:
            return None
        there = _thinnest(strength, length)
        if there == here:
            return None
        strength[here.first : here.last] += me.speed * EPSILON
        strength[there.first : there.last] += me.speed
        after = _settled(strength, me, there, view, rng)
        if after < before or after < EPSILON:
            return None
        return there if before / after < QUALITY - EPSILON else None


def _settled(strength: NDArray[np.float64], me: Machine, mine: Span, view: View, rng: random.Random) -> float:
    """The worst throughput when all have chosen anew."""
    places = {machine: machine.span for machine in view.machines if machine.span is not None}
    places[me] = mine
    moved, rounds = True, 0
    while moved and rounds < ROUNDS:
        moved, rounds = False, rounds + 1
        for machine in rng.sample(list(places), len(places)):
            span = places[machine]
            strength[span.first : span.last] -= machine.speed * (1 + EPSILON)
            best = _thinnest(strength, machine.kind.blocks)
            strength[span.first : span.last] += machine.speed * EPSILON
            if best != span:
                places[machine], moved = best, True
            strength[best.first : best.last] += machine.speed
    return float(strength.min())


def _thinnest(strength: NDArray[np.float64], length: int) -> Span:
    """The run of so many blocks whose sorted throughputs come first."""
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(strength, length), axis=1)
    first = int(np.lexsort(windows.T[::-1])[0])
    return Span(first, first + length)
