"""Who is served: the peers of a file, or all but those of another. Both are read anew when they change."""

from __future__ import annotations

import logging
from pathlib import Path

from swarm.errors import InvalidInput
from swarm.files import read_small
from swarm.net.addresses import is_peer_id
from swarm.types import PeerId

log = logging.getLogger(__name__)

_LOOK = 1.0
"""Seconds within which a change is noticed by who is asked."""
_LARGEST = 64 * 1024 * 1024


def peers_of(path: Path) -> frozenset[PeerId]:
    """The peer ids in a file: one a line, what follows a `#` is a comment. Raises InvalidInput."""
    try:
        lines = read_small(path, _LARGEST).splitlines()
    except OSError as error:
        raise InvalidInput(f"the list of peers {path} cannot be read: {error.strerror}") from error
    found = set()
    for number, line in enumerate(lines, 1):
        peer_id = line.partition("#")[0].strip()
        if peer_id and not is_peer_id(peer_id):
            raise InvalidInput(f"{path}, line {number}: {peer_id[:60]!r} is no peer id; it looks like 12D3KooW...")
        if peer_id:
            found.add(peer_id)
    return frozenset(found)


class _PeerFile:
    """What a file says; where it cannot be read any more, what it said before."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._stamp = self._stamped()
        self.peers = peers_of(self.path)

    def look(self, *, anew: bool = False) -> None:
        if (stamp := self._stamped()) == self._stamp and not anew:
            return
        self._stamp = stamp
        try:
            self.peers = peers_of(self.path)
        except InvalidInput as error:
            log.error("what the list said before still holds: %s", error)
        else:
            log.info("%s names %d peers", self.path, len(self.peers))

    def _stamped(self) -> tuple[int, int, int] | None:
        try:
            about = self.path.stat()
        except OSError:
            return None
        return about.st_ino, about.st_size, about.st_mtime_ns


class Lists:
    """`allow`, `block`: paths. Without `allow` everybody is admitted who is not blocked. Raises InvalidInput."""

    def __init__(self, allow: str | None, block: str | None) -> None:
        self._allow = None if allow is None else _PeerFile(allow)
        self._block = None if block is None else _PeerFile(block)
        self._looked = 0.0

    @property
    def some(self) -> bool:
        """Whether there are any."""
        return self._allow is not None or self._block is not None

    def reload(self) -> None:
        """Read the files now, also where they look as they did; one that cannot be read says what it said before."""
        for file in filter(None, (self._allow, self._block)):
            file.look(anew=True)

    def admits(self, peer_id: PeerId, now: float) -> bool:
        """Whether a peer is served, by what the files say at `now`, or said a second ago."""
        if not self.some:
            return True
        if now >= self._looked + _LOOK:
            self._looked = now
            for file in filter(None, (self._allow, self._block)):
                file.look()
        if self._block is not None and peer_id in self._block.peers:
            return False
        return self._allow is None or peer_id in self._allow.peers
