"""How many bytes all sessions may hold, and who gives way when there is no room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol


class Holder(Protocol):
    """Somebody who holds KV cache and history: a session."""

    client: str
    last_used: float

    @property
    def kv_bytes(self) -> int: ...

    @property
    def history_bytes(self) -> int: ...

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

    Prefixes, which no session needs, go first; then history, then the caches of sessions that are idle. At last, for a
    client that has less than its share (all clients' are the same), those of clients that have more than theirs: nobody
    keeps the others out by being there first.
    """

    def __init__(
        self,
        total: int,
        history_share: float,
        evict_after: float,
        prefix_share: float = 0.0,
        prefixes: Shrinkable | None = None,
        share_per_client: float = 1.0,
    ) -> None:
        self.total = total
        self.per_client = int(total * share_per_client)
        """What the caches of one client's sessions may take, also while nobody else is there."""
        self.history_limit = int(total * history_share)
        self.prefix_limit = int(total * prefix_share)
        self.evict_after = evict_after
        self.prefixes = prefixes
        self.holders: list[Holder] = []
        self.excess = 0
        """Bytes that the caches were seen to take beyond what is counted: nobody else can have them."""

    @property
    def kv_bytes(self) -> int:
        return sum(holder.kv_bytes for holder in self.holders)

    @property
    def history_bytes(self) -> int:
        return sum(holder.history_bytes for holder in self.holders)

    @property
    def free_bytes(self) -> int:
        """What could be had by dropping nothing but prefixes and history."""
        return max(self.total - self.kv_bytes - self.excess, 0)

    @property
    def prefix_room(self) -> int:
        """What all prefixes together may take as long as sessions hold what they hold."""
        return max(min(self.prefix_limit, self.free_bytes - self.history_bytes), 0)

    def make_room(self, wanted: int, asking: Holder | None, now: float, client: str = "") -> bool:
        """Free `wanted` bytes for `asking` (None: a new session of `client`). False when that cannot be done."""
        if not self._within_own(wanted, client if asking is None else asking.client, asking, now):
            return False
        left = self.total - self.excess - self.kv_bytes - wanted
        victims = [h for h in self.holders if h is not asking and h.kv_bytes and now - h.last_used >= self.evict_after]
        victims.sort(key=lambda holder: holder.last_used)
        missing = -left - sum(holder.kv_bytes for holder in victims)
        if missing > 0:
            victims += self._of_the_greedy(wanted, client if asking is None else asking.client, victims)
            missing = -left - sum(holder.kv_bytes for holder in victims)
        if wanted > self.total or missing > 0:
            return False
        self._shrink_prefixes(left - self.history_bytes)
        self._drop_history(left)
        for holder in victims:
            if wanted <= self.total - self.kv_bytes - self.excess:
                break
            holder.evict()
        return wanted <= self.total - self.kv_bytes - self.excess

    def _within_own(self, wanted: int, client: str, asking: Holder | None, now: float) -> bool:
        """Make `wanted` bytes more of a client's fit into what one client may have, with its own idle caches alone."""
        mine = [holder for holder in self.holders if holder.client == client]
        beyond = sum(holder.kv_bytes for holder in mine) + wanted - self.per_client
        if beyond <= 0 or self.per_client >= self.total:
            return True
        idle = [h for h in mine if h is not asking and h.kv_bytes and now - h.last_used >= self.evict_after]
        if sum(holder.kv_bytes for holder in idle) < beyond:
            return False
        for holder in sorted(idle, key=lambda holder: holder.last_used):
            if beyond > 0:
                beyond -= holder.kv_bytes
                holder.evict()
        return True

    def _of_the_greedy(self, wanted: int, client: str, given: Sequence[Holder]) -> list[Holder]:
        """Caches beyond their clients' shares, if `client` stays within its own; the longest unused before others."""
        held: Counter[str] = Counter({client: 0})
        for holder in self.holders:
            held[holder.client] += 0 if holder in given else holder.kv_bytes
        share = self.total // len(held)
        if held[client] + wanted > share:
            return []
        found = []
        for holder in sorted(self.holders, key=lambda holder: holder.last_used):
            if holder.kv_bytes and holder not in given and held[holder.client] > share:
                held[holder.client] -= holder.kv_bytes
                found.append(holder)
        return found

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
