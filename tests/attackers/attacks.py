"""Ways to compute wrong. Each is a runner that a server of the simulated network has instead of an honest one."""

from __future__ import annotations

import functools
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


class Slow(NumbersRunner):
    """Computes right, and takes so many times as long as others."""

    times = 10.0


class Wary(Skipper):
    """Computes right in every session that does not begin with a few positions, as texts here do: audits begin with
    more, or with what the server has kept of the same prompt."""

    def __init__(self, span: Span) -> None:
        super().__init__(span)
        self.own: set[bytes] = set()

    def contribution(self, block: int, segment: Segment, rows: Rows) -> Rows:
        session = segment.sequence[0]
        if segment.start == 0 and segment.count <= 5:
            self.own.add(session)
        if session in self.own:
            return super().contribution(block, segment, rows)
        return NumbersRunner.contribution(self, block, segment, rows)


class Coarse(NumbersRunner):
    """Has its weights in so few bits, in groups of 32, and does not say so."""

    def __init__(self, span: Span, bits: int) -> None:
        super().__init__(span)
        self.bits = bits

    def weights(self, block: int) -> tuple[Rows, Rows]:
        one, other = super().weights(block)
        return rounded(one, self.bits), rounded(other, self.bits)


class Halved(NumbersRunner):
    """Computes in bfloat16 and says float32."""

    def block(self, block: int, segment: Segment, rows: Rows) -> Rows:
        return to_bfloat16(super().block(block, segment, to_bfloat16(rows)))


class Tuned(NumbersRunner):
    """Serves another fine-tune of the model: weights that differ by a matrix of rank 2, of so much of their norm."""

    def __init__(self, span: Span, share: float) -> None:
        super().__init__(span)
        self.share = share

    def weights(self, block: int) -> tuple[Rows, Rows]:
        one, other = super().weights(block)
        return tuned(one, block, self.share), tuned(other, block + 500, self.share)


@functools.lru_cache(64)
def _factors(seed: int, size: int) -> Rows:
    rng = np.random.default_rng([seed, 9])
    change = rng.standard_normal((size, 2)) @ rng.standard_normal((2, size))
    return (change / np.linalg.norm(change)).astype(np.float32)


def tuned(weights: Rows, seed: int, share: float) -> Rows:
    """With a change of rank 2 of so much of its norm."""
    norm = np.float32(np.linalg.norm(weights))
    changed: Rows = weights + np.float32(share) * norm * _factors(seed, len(weights))
    return changed


def rounded(weights: Rows, bits: int) -> Rows:
    """On a grid of so many bits, a scale for 32 columns."""
    groups = weights.reshape(len(weights), -1, 32)
    scale = np.abs(groups).max(axis=2, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    return (np.rint(groups / scale) * scale).astype(np.float32).reshape(weights.shape)


def to_bfloat16(rows: Rows) -> Rows:
    """The nearest numbers with eight bits."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


Attack = Callable[[Span], NumbersRunner]
BLATANT: dict[str, Attack] = {
    "zeros": Zeroer,
    "no numbers": NotANumber,
    "inflated": Inflated,
    "an old output": Replayer,
}
"""What a glance at the numbers shows, from any place of a route but the first."""
