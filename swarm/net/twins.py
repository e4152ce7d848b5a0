"""Two machines with one key, as after a disk was copied: how each notices that another goes by its name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from swarm.types import PeerId

log = logging.getLogger(__name__)

SELDOM = 4
"""Announcements between two looks at all records of a model, once a peer has been there for a while."""


class Twins:
    """Others that announce themselves under this peer's id. Each is told of once, as an error that says what to do.

    `instance`: what stands in this process's own announcements; `key`: the file of the private key, if there is one.
    """

    def __init__(self, peer_id: PeerId, instance: int, key: str | None) -> None:
        self._peer_id = peer_id
        self._instance = instance
        self._key = key
        self._since: float | None = None
        self._announcements = 0
        self._known = {0, instance}
        """0: who does not say which instance it is."""

    def announced(self, expires: float) -> None:
        """This process announced something until `expires`, in unix seconds."""
        self._announcements += 1
        if self._since is None:
            self._since = expires

    def is_due(self) -> bool:
        """Whether to look at all records before the next announcement: at first often, later now and then."""
        count = self._announcements
        return count > 0 and (count & (count - 1) == 0 or count % SELDOM == 0)

    def look(self, peer_id: PeerId, instance: int, expires: float, addresses: Sequence[str]) -> None:
        """Look at what somebody announced. What ends before the first of this process's own announcements may be of an
        earlier life of this machine."""
        if peer_id != self._peer_id or instance in self._known or self._since is None or expires <= self._since:
            return
        self._known.add(instance)
        log.error(
            "another machine goes by the identity of this one, %s%s: what is meant for one of them reaches now this, "
            "now that. Was a disk copied? On one of the two, %sgive another --identity-path, and start again.",
            self._peer_id,
            f", at {', '.join(addresses)}" if addresses else "",
            "" if self._key is None else f"delete {self._key} or ",
            extra={"peer": self._peer_id},
        )
