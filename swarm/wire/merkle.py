"""Many digests under one, so that each can be shown to be among them by a few: the tree of RFC 6962 (sha256). Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256

from swarm.wire.messages import DIGEST, require

LEAF, NODE = b"\0", b"\1"
"""What is hashed before a leaf and before two digests, so that neither passes for the other."""


def root(leaves: Sequence[bytes]) -> bytes:
    """The digest of all leaves, of which there is at least one."""
    *_, (top,) = _levels(leaves)
    return top


def path(leaves: Sequence[bytes], index: int) -> bytes:
    """What a leaf's way up to the root needs: its siblings, one behind the other."""
    siblings = []
    for level in _levels(leaves):
        if (beside := index ^ 1) < len(level):
            siblings.append(level[beside])
        index //= 2
    return b"".join(siblings)


def climbed(leaf: bytes, index: int, count: int, siblings: bytes) -> bytes:
    """The root over `count` leaves, by one of them and its path. Raises MalformedFrame for a path of another length."""
    require(0 <= index < count, f"leaf {index} of {count}")
    digest, begin = sha256(LEAF + leaf).digest(), 0
    while count > 1:
        beside = index ^ 1
        if beside < count:
            sibling = siblings[begin : begin + DIGEST]
            require(len(sibling) == DIGEST, "a path that ends below the root")
            pair = (digest, sibling) if beside > index else (sibling, digest)
            digest, begin = sha256(NODE + b"".join(pair)).digest(), begin + DIGEST
        index, count = index // 2, (count + 1) // 2
    require(begin == len(siblings), "a path that goes on above the root")
    return digest


def _levels(leaves: Sequence[bytes]) -> Iterator[list[bytes]]:
    level = [sha256(LEAF + leaf).digest() for leaf in leaves]
    yield level
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        odd = level[len(level) // 2 * 2 :]
        level = [sha256(NODE + one + other).digest() for one, other in pairs] + odd
        yield level
