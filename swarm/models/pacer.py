"""How many drafts of a drafter to send, for a text that is being written."""

from __future__ import annotations

import time
from collections.abc import Sequence

from swarm.models.drafts import Drafter
from swarm.models.pace import Acceptance, Costs, WindowTime, best_depth

WINDOW = 8
"""Drafted tokens in one window: a pass over so many rows takes about as long as over one."""


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
