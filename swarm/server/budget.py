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


class CacheBudget:
    """One budget for KV cache and history. History goes first, then the caches of sessions that are idle."""

    def __init__(self, total: int, history_share: float, evict_after: float) -> None:
        self.total = total
        self.history_limit = int(total * history_share)
        self.evict_after = evict_after
        self.holders: list[Holder] = []

    @property
    def kv_bytes(self) -> int:
        return sum(holder.kv_bytes for holder in self.holders)

    @property
    def history_bytes(self) -> int:
        return sum(holder.history_bytes for holder in self.holders)

    @property
    def free_bytes(self) -> int:
        """What could be had by dropping nothing but history."""
        return max(self.total - self.kv_bytes, 0)

    def make_room(self, wanted: int, asking: Holder | None, now: float) -> bool:
        """Free `wanted` bytes for `asking` (None: a session not yet there). False when that cannot be done."""
        if wanted > self.total:
            return False
        self._drop_history(self.total - wanted - self.kv_bytes)
        if wanted <= self.free_bytes:
            return True
        idle = [h for h in self.holders if h is not asking and h.kv_bytes and now - h.last_used >= self.evict_after]
        if wanted > self.total - self.kv_bytes + sum(holder.kv_bytes for holder in idle):
            return False
        for holder in sorted(idle, key=lambda h: h.last_used):
            holder.evict()
            if wanted <= self.free_bytes:
                return True
        return False

    def trim_history(self) -> None:
        """Keep history below its own share and within what the KV caches leave."""
        self._drop_history(min(self.history_limit, self.free_bytes))

    def _drop_history(self, limit: int) -> None:
        held = self.history_bytes
        for holder in _oldest_first(self.holders):
            if held <= max(limit, 0):
                return
            held -= holder.history_bytes
            holder.drop_history()


def _oldest_first(holders: Iterable[Holder]) -> list[Holder]:
    return sorted((h for h in holders if h.history_bytes), key=lambda h: h.last_used)
