"""What training passes keep at a server, in main memory: pure bookkeeping, where the time is passed in.

All of it can be lost without harm: a client has what it sent, and sends it again. So what is kept gives way to what
comes, the oldest first, of the client itself where that has all that it may have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from swarm.errors import LimitExceeded, ServerBusy
from swarm.types import PeerId
from swarm.wire.rows import Buffer

RETRY = 2.0
"""Seconds after which to come again, who finds no room."""
ITEM_BYTES = 512
"""What an entry counts for beside its bytes."""


@dataclass(frozen=True, slots=True)
class _Entry:
    data: Buffer
    used: float

    @property
    def nbytes(self) -> int:
        return len(self.data) + ITEM_BYTES


class Kept:
    """Bytes of clients under names, at most `total` of all and `per_client` of each, with what is under way."""

    def __init__(self, total: int, per_client: int) -> None:
        self.total = total
        self.per_client = per_client
        self._entries: dict[tuple[PeerId, bytes], _Entry] = {}
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

    def put(self, client: PeerId, name: bytes, data: Buffer, now: float) -> None:
        """Keep it, if there is room."""
        self.drop(client, name)
        entry = _Entry(data, now)
        if self._make_room(client, entry.nbytes):
            self._entries[client, name] = entry
            self._held[client] += entry.nbytes

    def get(self, client: PeerId, name: bytes, now: float) -> Buffer | None:
        """What is kept under a name; None: nothing (any more)."""
        entry = self._entries.pop((client, name), None)
        if entry is None:
            return None
        self._entries[client, name] = _Entry(entry.data, now)
        return entry.data

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
