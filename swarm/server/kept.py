"""What training passes keep at a server, in main memory: pure bookkeeping, where the time is passed in.

All of it can be lost without harm: a client has what it sent, and sends it again. So what is kept gives way to what
comes, the oldest first, of the client itself where that has all that it may have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from swarm.errors import LimitExceeded, ServerBusy
from swarm.types import PeerId

T = TypeVar("T")
RETRY = 2.0
"""Seconds after which to come again, who finds no room."""
ITEM_BYTES = 512
"""What an entry counts for beside its bytes."""


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    data: T
    nbytes: int
    used: float


class Kept(Generic[T]):
    """What clients have under names, at most `total` bytes of all and `per_client` of each, with what is under way."""

    def __init__(self, total: int, per_client: int) -> None:
        self.total = total
        self.per_client = per_client
        self._entries: dict[tuple[PeerId, bytes], _Entry[T]] = {}
        """The one used longest ago first."""
        self._held = Counter[PeerId]()
        self._under_way = Counter[PeerId]()

    @property
    def nbytes(self) -> int:
        """Of everything."""
        return self._held.total() + self._under_way.total()

    @contextmanager
    def under_way(self, client: PeerId, nbytes: int) -> Iterator[None]:
        """Make room for so many bytes of a client, and keep it free meanwhile.

        Raises LimitExceeded for what it will never get, ServerBusy where others have the room now.
        """
        if nbytes > self.per_client:
            text = f"{nbytes} bytes in one pass; a client may have {self.per_client}"
            raise LimitExceeded(text, "training bytes", self.per_client, nbytes)
        if not self._make_room(client, nbytes):
            raise ServerBusy("training passes of others take all the room that there is for them", RETRY)
        self._under_way[client] += nbytes
        try:
            yield
        finally:
            self._under_way[client] -= nbytes
            self._under_way += Counter()  # without those who have nothing

    def free(self, client: PeerId) -> int:
        """Bytes that a client may have beside what is kept and under way."""
        own = self._held[client] + self._under_way[client]
        return max(min(self.per_client - own, self.total - self.nbytes), 0)

    def put(self, client: PeerId, name: bytes, data: T, nbytes: int, now: float) -> None:
        """Keep something of `nbytes`, if there is room."""
        self.drop(client, name)
        entry = _Entry(data, nbytes + ITEM_BYTES, now)
        if self._make_room(client, entry.nbytes):
            self._entries[client, name] = entry
            self._held[client] += entry.nbytes

    def get(self, client: PeerId, name: bytes, now: float) -> T | None:
        """What is kept under a name; None: nothing (any more)."""
        entry = self._entries.pop((client, name), None)
        if entry is None:
            return None
        self._entries[client, name] = _Entry(entry.data, entry.nbytes, now)
        return entry.data

    def pop(self, client: PeerId, name: bytes) -> T | None:
        """What is kept under a name, and no longer; None: nothing."""
        entry = self._entries.get((client, name))
        self.drop(client, name)
        return None if entry is None else entry.data

    def drop(self, client: PeerId, name: bytes) -> None:
        """Forget it."""
        entry = self._entries.pop((client, name), None)
        if entry is not None:
            self._held[client] -= entry.nbytes
            self._held += Counter()

    def expire(self, horizon: float) -> None:
        """Forget what was used last before `horizon`."""
        for key in [key for key, entry in self._entries.items() if entry.used < horizon]:
            self.drop(*key)

    def _make_room(self, client: PeerId, wanted: int) -> bool:
        if wanted + self._under_way[client] > self.per_client or wanted + self._under_way.total() > self.total:
            return False
        while self._held[client] + self._under_way[client] + wanted > self.per_client:
            self.drop(*next(key for key in self._entries if key[0] == client))
        while self.nbytes + wanted > self.total:
            most = max(self._held, key=lambda each: self._held[each])
            self.drop(*next(key for key in self._entries if key[0] == most))
        return True
