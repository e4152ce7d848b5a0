"""Which piece of a block is asked of whom next, and whose word counts. Pure: times are passed in.

Pieces that few have come first, as in BitTorrent (Cohen, "Incentives Build Robustness in BitTorrent", 2003, 2.4.2); a
peer that is free takes the next, so that fast ones take more. At the end a piece that is slow to come is also asked of
a peer that is likely to be sooner.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from swarm.coordinates import Coordinate, round_trip_ms
from swarm.types import PeerId, ServerRecord, ServerState
from swarm.wire.messages import DIGEST, PIECE

FAULTS = 3
"""Of a peer, after which nothing more is asked of it."""
SOONER = 2.0
"""How many times faster a peer must be to be asked for what another is on."""
SMOOTHING = 0.3
"""Weight of the last piece in a peer's rate."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a peer says of the file of a block: as in `BlockManifest`."""

    fingerprint: bytes
    size: int
    pieces: bytes

    @property
    def count(self) -> int:
        """Of pieces."""
        return len(self.pieces) // DIGEST

    def digest(self, index: int) -> bytes:
        """sha256 of a piece."""
        return self.pieces[index * DIGEST : (index + 1) * DIGEST]

    def length(self, index: int) -> int:
        """Bytes of a piece."""
        return min(PIECE, self.size - index * PIECE)


def announced(records: Iterable[ServerRecord], quantization: str, blocks: Collection[int]) -> dict[int, bytes]:
    """The beginning of each block's fingerprint, as more than half of the servers that have loaded it announce it."""
    votes: dict[int, dict[PeerId, bytes]] = {block: {} for block in blocks}
    for record in records:
        contract = record.contract
        if contract.quantization != quantization or record.state is ServerState.JOINING:
            continue
        for block, mark in zip(record.span, contract.fingerprints, strict=False):
            if block in votes and any(mark):
                votes[block][record.peer_id] = mark
    found = {block: majority(votes[block].values()) for block in votes}
    return {block: mark for block, mark in found.items() if mark is not None}


def majority(said: Iterable[bytes]) -> bytes | None:
    """What more than half say; None: there is no such thing."""
    counted = Counter(said)
    most = counted.most_common(1)
    return most[0][0] if most and 2 * most[0][1] > counted.total() else None


def nearest(
    peers: Mapping[PeerId, Coordinate | None], here: Coordinate | None, most: int, rng: random.Random
) -> list[PeerId]:
    """So many of them, by where they say they are; of those of which nothing is known, any."""

    def far(peer: PeerId) -> float:
        there = peers[peer]
        return inf if here is None or there is None else round_trip_ms(here, there)

    return sorted(sorted(peers), key=lambda peer: (far(peer), rng.random()))[:most]


def chosen(offers: Mapping[PeerId, Offer], refused: Collection[PeerId]) -> tuple[Offer, list[PeerId]] | None:
    """The file that most peers offer of those that have the fingerprint that more than half of all tell; and who."""
    right = majority(offer.fingerprint for offer in offers.values())
    by_file: dict[Offer, list[PeerId]] = {}
    for peer, offer in offers.items():
        if offer.fingerprint == right and offer.size and peer not in refused:
            by_file.setdefault(offer, []).append(peer)
    best = max(by_file, key=lambda offer: (len(by_file[offer]), offer.pieces), default=None)
    return None if best is None else (best, by_file[best])


Piece = tuple[int, int]
"""Block, and which of its pieces."""


@dataclass(slots=True)
class _Peer:
    blocks: frozenset[int]
    faults: int = 0
    rate: float | None = None
    gone: bool = False


@dataclass(slots=True)
class Schedule:
    """Pieces that are left, and who is on which. `offers`: what is fetched; `holders`: who has each block."""

    offers: Mapping[int, Offer]
    holders: Mapping[int, Collection[PeerId]]
    there: Collection[Piece] = ()
    """Pieces that are here already."""
    _left: dict[int, int] = field(default_factory=dict)
    _free: dict[int, dict[int, None]] = field(default_factory=dict)
    """Of each block the pieces that nobody is on."""
    _under_way: dict[Piece, dict[PeerId, float]] = field(default_factory=dict)
    _peers: dict[PeerId, _Peer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        there = set(self.there)
        for block, offer in self.offers.items():
            self._free[block] = dict.fromkeys(index for index in range(offer.count) if (block, index) not in there)
            self._left[block] = len(self._free[block])
        for peer in {peer for peers in self.holders.values() for peer in peers}:
            self._peers[peer] = _Peer(frozenset(block for block, peers in self.holders.items() if peer in peers))

    @property
    def over(self) -> bool:
        """Whether all is here."""
        return not any(self._left.values())

    def is_left(self, block: int) -> bool:
        """Whether something of a block is missing."""
        return self._left[block] > 0

    def may_ask(self, peer: PeerId) -> bool:
        """Whether anything may be asked of a peer."""
        return not self._peers[peer].gone

    def next(self, peer: PeerId, now: float) -> Piece | None:
        """What to ask a peer for, which then is on it; None: nothing now."""
        one = self._peers[peer]
        if one.gone:
            return None
        having = {block: sum(not self._peers[p].gone for p in peers) for block, peers in self.holders.items()}
        open_ = [block for block in one.blocks if self._free[block]]
        rarest = min(open_, key=lambda block: (having[block], block), default=None)
        found = self._late(peer, now) if rarest is None else (rarest, next(iter(self._free[rarest])))
        if found is not None:
            self._free[found[0]].pop(found[1], None)
            self._under_way.setdefault(found, {})[peer] = now
        return found

    def _late(self, peer: PeerId, now: float) -> Piece | None:
        """A piece that one slower peer is on, and that this peer would have sooner."""
        one = self._peers[peer]
        if one.rate is None:
            return None
        for piece, askers in self._under_way.items():
            if piece[0] not in one.blocks or len(askers) != 1 or peer in askers:
                continue
            (other, since), length = *askers.items(), self.offers[piece[0]].length(piece[1])
            there = self._peers[other].rate
            remaining = length / there - (now - since) if there else now - since
            if max(remaining, now - since) > SOONER * length / one.rate:
                return piece
        return None

    def done(self, peer: PeerId, piece: Piece, seconds: float) -> None:
        """A piece has come, and is right."""
        one = self._peers[peer]
        rate = self.offers[piece[0]].length(piece[1]) / max(seconds, 1e-6)
        one.rate = rate if one.rate is None else (1 - SMOOTHING) * one.rate + SMOOTHING * rate
        if self._under_way.pop(piece, None) is not None:
            self._left[piece[0]] -= 1

    def failed(self, peer: PeerId, piece: Piece) -> None:
        """A piece did not come; after some of these a peer is given up."""
        self._release(peer, piece)
        one = self._peers[peer]
        one.faults += 1
        one.gone = one.gone or one.faults >= FAULTS

    def drop(self, peer: PeerId) -> None:
        """Ask a peer for nothing more."""
        self._peers[peer].gone = True
        for piece in list(self._under_way):
            self._release(peer, piece)

    def _release(self, peer: PeerId, piece: Piece) -> None:
        askers = self._under_way.get(piece, {})
        if askers.pop(peer, None) is not None and not askers:
            del self._under_way[piece]
            self._free[piece[0]][piece[1]] = None
