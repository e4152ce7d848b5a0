"""Windows of tokens in flight: what is certain, drafts behind it, and what follows what.

Windows follow each other without waiting: a later one begins where an earlier one ends, long before that is verified.
When a draft turns out wrong, everything sent after it is void. Pure: what is awaited is kept, not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from swarm.speculation.pacer import MOST, WINDOW

T = TypeVar("T")

Sent = tuple[int, int | None]
"""A token, and the kind of its draft; None: it is certain."""


@dataclass(slots=True, eq=False)
class Window(Generic[T]):
    """Tokens whose `outputs` are awaited; `sent`: when, in seconds; `alone`: nothing else was in flight then."""

    tokens: list[Sent]
    outputs: T
    sent: float
    alone: bool


class Windows(Generic[T]):
    """Those of one text, the oldest first. `most`: windows at once; `largest`: drafts in each."""

    def __init__(self, most: int = MOST // WINDOW + 1, largest: int = WINDOW) -> None:
        self.most = most
        self.largest = largest
        self._windows: deque[Window[T]] = deque()

    def __len__(self) -> int:
        return len(self._windows)

    @property
    def full(self) -> bool:
        """Whether no more may be sent."""
        return len(self._windows) >= self.most

    @property
    def drafts(self) -> list[int]:
        """The tokens in flight that are not certain."""
        return [token for window in self._windows for token, kind in window.tokens if kind is not None]

    def sent(self, tokens: Sequence[Sent], outputs: T, now: float) -> None:
        """These follow what is in flight."""
        self._windows.append(Window(list(tokens), outputs, now, not self._windows))

    def oldest(self) -> Window[T]:
        """The oldest, which is not in flight any more."""
        return self._windows.popleft()

    def following(self, window: Window[T]) -> list[Sent]:
        """What was sent behind each token of the oldest window, as far as something was."""
        return [*window.tokens[1:], *(later.tokens[0] for later in list(self._windows)[:1])]

    def confirm(self) -> None:
        """The first token in flight is certain by now."""
        token, _ = self._windows[0].tokens[0]
        self._windows[0].tokens[0] = (token, None)

    def void(self) -> list[T]:
        """Nothing in flight counts any more; returns what was awaited."""
        outputs = [window.outputs for window in self._windows]
        self._windows.clear()
        return outputs
