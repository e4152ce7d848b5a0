"""How long a session waits for a route, and what ends the waiting. Pure: the time is passed in.

What may change is waited for: blocks without a server, servers that are full or cannot be reached. What will not is
raised at once, or as soon as a second reading of the directory says so too.
"""

from __future__ import annotations

import random

from swarm.config import ClientConfig
from swarm.errors import (
    DaemonFailed,
    InvalidInput,
    MissingBlocks,
    NoServerFits,
    PeerUnreachable,
    ServerBusy,
    StreamClosed,
    SwarmError,
)

CERTAIN = 2
"""So many attempts in a row have to say that waiting is in vain: one reading of the directory may miss somebody."""
NOTICE_EVERY = 10.0
"""Seconds between two notices of one waiting."""
MISSING_PAUSES = 5
"""So many times `retry_base` is waited before the directory is asked again for blocks that nobody has."""


class Patience:
    """One waiting for a route. `has_run`: whether there was one before, whose servers may come back."""

    def __init__(self, config: ClientConfig, now: float, *, has_run: bool) -> None:
        self._config = config
        self._began = now
        self._has_run = has_run
        self._in_vain = 0
        self._noticed = float("-inf")

    def waited(self, now: float) -> float:
        """Since when, in seconds."""
        return now - self._began

    def bear(self, error: SwarmError, now: float, seen: str) -> None:
        """An attempt failed. Raises what waiting will not mend, and every error that has lasted for `max_wait`.

        `seen`: what this client knows of the servers that there are, in words.
        """
        self._in_vain = self._in_vain + 1 if self._is_in_vain(error) else 0
        late = self._config.max_wait is not None and self.waited(now) >= self._config.max_wait
        if isinstance(error, NoServerFits) and self._in_vain >= (1 if late else CERTAIN):
            raise error.beyond or error
        if isinstance(error, InvalidInput | DaemonFailed):
            raise error
        if late:
            raise self._lasting(error, f"{seen}, since {self.waited(now):.0f} s (max_wait)") from error

    def _is_in_vain(self, error: SwarmError) -> bool:
        return isinstance(error, NoServerFits) and (error.beyond is not None or not self._has_run)

    def _lasting(self, error: SwarmError, text: str) -> SwarmError:
        if isinstance(error, MissingBlocks):
            return MissingBlocks(text, error.blocks)
        if isinstance(error, ServerBusy):
            return ServerBusy(text, error.retry_after)
        return type(error)(text) if isinstance(error, PeerUnreachable | StreamClosed) else error

    def tells(self, error: SwarmError, now: float) -> bool:
        """Whether to say now that there is waiting: at once where a server is missing or full, else when it lasts."""
        soon = isinstance(error, MissingBlocks | ServerBusy) and not self._in_vain
        if (soon or self.waited(now) >= NOTICE_EVERY) and now - self._noticed >= NOTICE_EVERY:
            self._noticed = now
            return True
        return False


def pause(setbacks: int, config: ClientConfig, rng: random.Random) -> float:
    """Seconds before the next attempt: longer with every one that brought nothing, with jitter so that clients do not
    march in step."""
    if setbacks < 2:
        return 0.0
    longest = min(config.retry_base * float(2 ** min(setbacks - 2, 10)), config.retry_max)
    return longest * (0.5 + rng.random() / 2)
