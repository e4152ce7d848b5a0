"""How many drafts to send ahead: as many as bring the most accepted ones per second, by running estimates."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from swarm.speculation.drafts import Drafter

MOST = 48
"""Drafted tokens on their way at once."""
WINDOW = 8
"""Drafted tokens in one window: a pass over so many rows takes about as long as over one."""
DECAY = 0.9
"""What an observation of time still counts for when the next comes."""
MEMORY = 0.93
"""What an observation of acceptance still counts for when the next of its kind comes."""
PRIOR = 0.5
PRIOR_WEIGHT = 2.0
FORGIVING = 0.02
"""A kind that is not worth trying comes back by this share of the way to the prior, each time it could have been."""
FIRST_SLOPE = 0.02
"""Until it was measured: what one more row costs, as a share of what the first costs."""
OUTLIER = 3.0
"""A window that took longer than expected by this factor met with something else, such as a reroute."""


class Acceptance:
    """How often drafts of each kind are right: a mean that forgets, begun at `PRIOR`."""

    def __init__(self) -> None:
        self._right: dict[Hashable, float] = {}
        self._seen: dict[Hashable, float] = {}

    def rate(self, kind: Hashable) -> float:
        """The share of drafted tokens that are right, given that those before them were."""
        right, seen = self._right.get(kind, 0.0), self._seen.get(kind, 0.0)
        return (right + PRIOR * PRIOR_WEIGHT) / (seen + PRIOR_WEIGHT)

    def note(self, kind: Hashable, *, right: bool) -> None:
        """One drafted token was verified."""
        self._right[kind] = self._right.get(kind, 0.0) * MEMORY + right
        self._seen[kind] = self._seen.get(kind, 0.0) * MEMORY + 1.0

    def pass_over(self, kind: Hashable) -> None:
        """A draft could have been had and was not tried: what was learned of its kind fades."""
        for table in (self._right, self._seen):
            if kind in table:
                table[kind] *= 1.0 - FORGIVING


class WindowTime:
    """Seconds from sending a window of n rows until its outputs are there: base + (n - 1) · per_row.

    A line fitted by least squares, in which each observation counts for `DECAY` of the next.
    """

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0

    def note(self, rows: int, seconds: float) -> None:
        """A window that was alone on its way took so long."""
        x, y = float(rows - 1), seconds
        if self._weight:
            y = min(y, OUTLIER * self.expect(rows))
        self._weight = self._weight * DECAY + 1.0
        self._x = self._x * DECAY + x
        self._y = self._y * DECAY + y
        self._xx = self._xx * DECAY + x * x
        self._xy = self._xy * DECAY + x * y

    @property
    def per_row(self) -> float:
        """Seconds that one more row takes."""
        if not self._weight:
            return 0.0
        mean_x, mean_y = self._x / self._weight, self._y / self._weight
        variance = self._xx / self._weight - mean_x * mean_x
        covariance = self._xy / self._weight - mean_x * mean_y
        # One observation's worth of belief in the first slope, at a distance of one row.
        first = FIRST_SLOPE * mean_y
        return max((covariance * self._weight + first) / (variance * self._weight + 1.0), 0.0)

    @property
    def base(self) -> float:
        """Seconds that a window of one row takes."""
        if not self._weight:
            return 0.0
        return max((self._y - self.per_row * self._x) / self._weight, 1e-9)

    def expect(self, rows: int) -> float:
        """Seconds for a window of so many rows."""
        return self.base + (rows - 1) * self.per_row


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds: `base` for a window without drafts, `per_token` for each drafted token, in drafting and computing."""

    base: float
    per_token: float


def accepted(rate: float, count: int) -> float:
    """Tokens that a window with `count` drafts is expected to bring, the model's own next one included.

    1 + r + r² + … + r^count: a draft counts only if all before it were right (Leviathan, Kalman, Matias, "Fast
    Inference from Transformers via Speculative Decoding", 2023, equation 1).
    """
    return float(count + 1) if rate >= 1.0 else (1.0 - rate ** (count + 1)) / (1.0 - rate)


def best_depth(rate: float, costs: Costs, most: int = MOST) -> int:
    """How many drafted tokens to have on their way: 0 .. `most`, those with the most accepted tokens per second."""
    best, fastest = 0, 0.0
    for count in range(most + 1):
        speed = accepted(rate, count) / max(costs.base + count * costs.per_token, 1e-9)
        if speed <= fastest:
            # The speed rises to one summit and falls from there.
            break
        best, fastest = count, speed
    return best


class Pacer:
    """Learns how often drafts are right and what they cost, and has as many on their way as pay.

    `drafted` and `right` say how many drafted tokens were verified and how many of them were right.
    """

    def __init__(self, drafter: Drafter) -> None:
        self.drafter = drafter
        self.drafted = self.right = 0
        self._acceptance = Acceptance()
        self._window_time = WindowTime()
        self._draft_seconds = 0.0

    def drafts(self, ahead: Sequence[int], flying: int, room: int, largest: int) -> list[tuple[int, int]]:
        """At most `largest` tokens to send behind `ahead`, whose last `flying` are drafts themselves, with their kinds.

        `room`: drafts that may be on their way.
        """
        count = min(min(self.depth(ahead), room) - flying, largest)
        if count <= 0:
            return []
        began = time.monotonic()
        draft = self.drafter.draft(ahead, count)
        if draft.tokens:
            each = (time.monotonic() - began) / len(draft.tokens)
            self._draft_seconds += 0.2 * (each - self._draft_seconds)
        return [(token, draft.kind) for token in draft.tokens]

    def depth(self, ahead: Sequence[int]) -> int:
        """How many drafted tokens to have on their way."""
        kind = self.drafter.kind(ahead)
        if kind is None:
            return 0
        costs = Costs(self._window_time.base, self._window_time.per_row + self._draft_seconds)
        depth = best_depth(self._acceptance.rate(kind), costs) if costs.base else 1
        if depth == 0:
            self._acceptance.pass_over(kind)
        return depth

    def came_back(self, rows: int, seconds: float) -> None:
        """A window that was alone on its way took so long."""
        self._window_time.note(rows, seconds)

    def verified(self, kind: int | None, *, right: bool) -> None:
        """A drafted token met the one that the model chose."""
        self._acceptance.note(kind, right=right)
        self.drafted += 1
        self.right += right
