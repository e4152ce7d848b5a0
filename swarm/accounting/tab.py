"""What the client of one session had, was told of, and has signed for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.accounting.work import QUARTERS, WINDOW, weighed, work_of

STEPS = 4
"""Of the largest that a session has had: a prompt comes in few, and none of them should wait for a signature."""


class Tab:
    """Of a session on blocks with so many `parameters`; everything in `work`, all of the session so far.

    `computed`; `claimed`: what the client was asked to sign for; `signed`. `awaited`: receipts that may come: one for
    each claim of something new.
    """

    def __init__(self, parameters: int) -> None:
        self.computed = 0
        self.claimed = 0
        self.signed = 0
        self.awaited = 0
        self._parameters = parameters
        self._window = WINDOW

    @property
    def window(self) -> int:
        """What may be unsigned: some steps at least, so that more are computed while those before are signed for."""
        return self._window * self._parameters // QUARTERS

    @property
    def is_full(self) -> bool:
        """Whether no more is done before the client has signed."""
        return self.computed - self.signed >= max(self.window, 1)

    @property
    def is_due(self) -> bool:
        """Whether it is time to claim: half a window before nothing more is done."""
        return self.computed - self.claimed >= max(self.window // 2, 1)

    @property
    def is_open(self) -> bool:
        """Whether there is anything that was not claimed."""
        return self.computed > self.claimed

    def add(self, counts: Sequence[int]) -> None:
        """A step of so many positions of each sequence was computed."""
        self._window = max(self._window, STEPS * sum(map(weighed, counts)))
        self.computed += work_of(counts, self._parameters)

    def claim(self) -> tuple[int, int]:
        """All there is, and how much of it is signed for."""
        self.awaited += self.is_open
        self.claimed = self.computed
        return self.computed, self.signed

    def sign(self, work: int) -> None:
        """The client has signed for so much more."""
        self.awaited -= 1
        self.signed = min(self.signed + work, self.computed)
