"""Who tells a peer behind NAT from where it is seen: over QUIC, by so many that go-libp2p believes them. Pure.

A hole is punched between the addresses that both sides are seen at, and go-libp2p takes one for its own when four peers
at different addresses have seen it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarm.net.addresses import components, is_peer_id, is_public
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.types import PeerId

WANTED = 4
MOST_TOLD = 8
"""Public peers that one answer tells of."""
MOST = 64
"""That are remembered."""
_TELLING = 4
"""Addresses of one."""

Public = Mapping[PeerId, Sequence[str]]
"""Peers that everybody can dial, and where."""


@dataclass(frozen=True, slots=True)
class Dials:
    """Whom to connect to over QUIC: who is not connected, and who is, but otherwise. With its addresses over QUIC."""

    fresh: Mapping[PeerId, Sequence[str]]
    again: Mapping[PeerId, Sequence[str]]


def lacking(connections: Iterable[tuple[PeerId, str]], known: Public, wanted: int = WANTED) -> Dials:
    """Whom to dial so that enough see us; nobody where there are not enough, for a few are of no use.

    `connections`: the other peer and the multiaddr of each. Those over TCP are left as they are where others do: they
    carry for us, and TCP does better where packets are lost.
    """
    connected, seeing = set[PeerId](), set[str]()
    for peer_id, address in connections:
        connected.add(peer_id)
        if is_public(address) and "/quic" in address:
            seeing.add(_ip(address))
    fresh: dict[PeerId, Sequence[str]] = {}
    again: dict[PeerId, Sequence[str]] = {}
    for peer_id in sorted(known, key=lambda peer_id: peer_id in connected):
        usable = [address for address in known[peer_id] if is_public(address) and "/quic-v1" in address]
        if not usable or _ip(usable[0]) in seeing or len(seeing) >= wanted:
            continue
        seeing.add(_ip(usable[0]))
        (again if peer_id in connected else fresh)[peer_id] = usable
    return Dials(fresh, again) if len(seeing) >= wanted else Dials({}, {})


def _ip(address: str) -> str:
    return (components(address) or [("", "")])[0][1]


def telling(peers: Public) -> list[pb.PublicPeer]:
    """What others are told of public peers."""
    told = list(peers.items())[:MOST_TOLD]
    return [pb.PublicPeer(peer=peer_id, addresses=list(addresses)[:_TELLING]) for peer_id, addresses in told]


def told(peers: Iterable[pb.PublicPeer]) -> dict[PeerId, list[str]]:
    """What somebody told, as far as it makes sense."""
    found: dict[PeerId, list[str]] = {}
    for peer in list(peers)[:MOST_TOLD]:
        addresses = [address for address in list(peer.addresses)[:_TELLING] if is_public(address)]
        if is_peer_id(peer.peer) and addresses:
            found[peer.peer] = addresses
    return found
