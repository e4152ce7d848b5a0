"""When the streams of a session that runs move to a shorter way that has come up. Pure."""

from __future__ import annotations

PATIENCE = 2.0
"""Seconds for which a moment is awaited in which nothing is under way."""
AGAIN = 10.0
"""Seconds until the next move, twice as many after each: a way that comes and goes is not followed for ever."""
LONGEST = 600.0


class Moves:
    """Of one session's route. Times by any clock that only goes forward."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._not_before = 0.0
        self._pause = AGAIN

    def due(self, now: float, *, outdated: bool, idle: bool) -> bool:
        """Whether to move now, which then counts as done. `outdated`: whether any of the route's streams could take a
        shorter way; `idle`: whether nothing is under way on them, so that nobody waits for what would be sent again."""
        if not outdated:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now < self._not_before or not (idle or now - self._since >= PATIENCE):
            return False
        self._since, self._not_before = None, now + self._pause
        self._pause = min(2 * self._pause, LONGEST)
        return True
