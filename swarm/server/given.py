"""The adapter of a session, which its client has given this server, and gives again when it is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarm.errors import ServerBusy
from swarm.types import Adapter

RETRY = 0.1


@dataclass(frozen=True, slots=True)
class Given:
    """`digest`: empty for none; `find`: what is there of it."""

    digest: bytes = b""
    find: Callable[[], Adapter | None] = lambda: None

    def get(self) -> Adapter | None:
        """What to apply; None: nothing. Raises ServerBusy where it is not here (any more)."""
        if not self.digest:
            return None
        adapter = self.find()
        if adapter is None:
            raise ServerBusy("the adapter of this session is not here any more", RETRY)
        return adapter


NOTHING_GIVEN = Given()
