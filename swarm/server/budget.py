"""How many bytes all sessions may hold, and who gives way when there is no room."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Holder(Protocol):
    """Somebody who holds KV cache and history: a session."""

    kv_bytes: int
    history_bytes: int
    last_used: float

    def drop_history(self) -> None:
        """Forget every output; can be recomputed."""

    def evict(self) -> None:
        """Forget the KV cache; the client replays it when the session goes on."""


class Shrinkable(Protocol):
    """What is kept though no session needs it now: prefixes."""

    @property
    def nbytes(self) -> int: ...

    def shrink(self, limit: int) -> None:
        """Let go until all together take at most `limit` bytes."""


class CacheBudget:
    """One budget for KV cache, history and prefixes.

    Prefixes, which no session needs, go first; then history, then the caches of sessions that are idle.
    """

    def __init__(
        self,
        total: int,
        history_share: float,
        evict_after: float,
        prefix_share: float = 0.0,
        prefixes: Shrinkable | None = None,
    ) -> None:
        self.total = total
        self.history_limit = int(total * history_share)
        self.prefix_limit = int(total * prefix_share)
        self.evict_after = evict_after
        self.prefixes = prefixes
        self.holders: list[Holder] = []

    @property
    def kv_bytes(self) -> int:
        return sum(holder.kv_bytes for holder in self.holders)

    @property
    def history_bytes(self) -> int:
        return sum(holder.history_bytes for holder in self.holders)

    @property
    def free_bytes(self) -> int:
        """What could be had by dropping nothing but prefixes and history."""
        return max(self.total - self.kv_bytes, 0)

    @property
    def prefix_room(self) -> int:
        """What all prefixes together may take as long as sessions hold what they hold."""
        return max(min(self.prefix_limit, self.total - self.kv_bytes - self.history_bytes), 0)

    def make_room(self, wanted: int, asking: Holder | None, now: float) -> bool:
        """Free `wanted` bytes for `asking` (None: a session not yet there). False when that cannot be done."""
        idle = [h for h in self.holders if h is not asking and h.kv_bytes and now - h.last_used >= self.evict_after]
        if wanted > min(self.total, self.total - self.kv_bytes + sum(holder.kv_bytes for holder in idle)):
            return False
        left = self.total - wanted - self.kv_bytes
        self._shrink_prefixes(left - self.history_bytes)
        self._drop_history(left)
        if wanted <= self.free_bytes:
            return True
        for holder in sorted(idle, key=lambda h: h.last_used):
            holder.evict()
            if wanted <= self.free_bytes:
                return True
        return False

    def trim_history(self) -> None:
        """Keep history below its own share and within what the KV caches leave, prefixes within what both leave."""
        self._drop_history(min(self.history_limit, self.free_bytes))
        self._shrink_prefixes(self.free_bytes - self.history_bytes)

    def _shrink_prefixes(self, limit: int) -> None:
        if self.prefixes is not None:
            self.prefixes.shrink(limit)

    def _drop_history(self, limit: int) -> None:
        held = self.history_bytes
        for holder in _oldest_first(self.holders):
            if held <= max(limit, 0):
                return
            held -= holder.history_bytes
            holder.drop_history()


def _oldest_first(holders: Iterable[Holder]) -> list[Holder]:
    return sorted((h for h in holders if h.history_bytes), key=lambda h: h.last_used)
