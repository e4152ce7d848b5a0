"""Ways to compute wrong. Each is a runner that a server of the simulated network has instead of an honest one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from swarm.types import Segment, Span
from tests.attackers.numbers import NumbersRunner, Rows


class Skipper(NumbersRunner):
    """Leaves out its last block."""

    def contribution(self, block: int, segment: Segment, rows: Rows) -> Rows:
        added = super().contribution(block, segment, rows)
        return added * np.float32(block != self.span.last - 1)


class Noisy(NumbersRunner):
    """Adds noise to what each block adds, relative to it."""

    def __init__(self, span: Span, noise: float = 0.1) -> None:
        super().__init__(span, noise, seed=77)


class Copier(NumbersRunner):
    """Gives back its inputs."""

    def contribution(self, block: int, segment: Segment, rows: Rows) -> Rows:
        return super().contribution(block, segment, rows) * np.float32(0.0)


class Replayer(NumbersRunner):
    """Gives what it gave for position 9 for all that follow."""

    def through(self, span: Span, segment: Segment, rows: Rows) -> Rows:
        right = super().through(span, segment, rows)
        for index, position in enumerate(range(segment.start, segment.start + segment.count)):
            if position == 9:
                self.old = right[index].copy()
            elif position > 9:
                right[index] = self.old
        return right


class Zeroer(NumbersRunner):
    """Computes nothing."""

    def through(self, span: Span, segment: Segment, rows: Rows) -> Rows:
        return super().through(span, segment, rows) * np.float32(0.0)


class NotANumber(NumbersRunner):
    """Sends what is no number, now and then."""

    def through(self, span: Span, segment: Segment, rows: Rows) -> Rows:
        right = super().through(span, segment, rows)
        right[(segment.start + np.arange(len(right))) % 7 == 6] = np.nan
        return right


class Inflated(NumbersRunner):
    """Is a million times too large from position 20 on."""

    def through(self, span: Span, segment: Segment, rows: Rows) -> Rows:
        right = super().through(span, segment, rows)
        return right * np.where(segment.start + np.arange(len(right)) < 20, 1.0, 1e6)[:, None].astype(np.float32)


class Cautious(Skipper):
    """Computes right whatever may be an audit: all but single positions behind what it holds."""

    def contribution(self, block: int, segment: Segment, rows: Rows) -> Rows:
        if segment.count > 1:
            return NumbersRunner.contribution(self, block, segment, rows)
        return super().contribution(block, segment, rows)


Attack = Callable[[Span], NumbersRunner]
BLATANT: dict[str, Attack] = {
    "zeros": Zeroer,
    "no numbers": NotANumber,
    "inflated": Inflated,
    "an old output": Replayer,
}
"""What a glance at the numbers shows, from any place of a route but the first."""
