"""Who may be one and the same behind several servers: those in one block of addresses. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from swarm.client.standby import SAME_PEER_MS, places
from swarm.types import PeerId, Route, ServerRecord

BITS = {4: 24, 6: 48}
"""What one customer of a provider usually has."""


def operators(record: ServerRecord) -> frozenset[str]:
    """The blocks of public addresses that a server is in; a private one, or a forwarder's, says nothing."""
    found = set()
    for place in places(record):
        try:
            address = ipaddress.ip_address(place)
        except ValueError:
            found.add(place)
            continue
        if address.is_global:
            found.add(str(ipaddress.ip_network((place, BITS[address.version]), strict=False)))
    return frozenset(found)


def strangers(records: Iterable[ServerRecord], others: Iterable[ServerRecord]) -> list[ServerRecord]:
    """Those records that are of none of the others' peers and operators."""
    known = list(others)
    peers: set[PeerId] = {record.peer_id for record in known}
    blocks = frozenset[str]().union(*(operators(record) for record in known))
    return [record for record in records if record.peer_id not in peers and not blocks & operators(record)]


def wholly_apart_from(route: Route | None, records: Iterable[ServerRecord]) -> dict[PeerId, float]:
    """By peer, in ms a block, what keeps a route away from all peers and operators of another one."""
    if route is None:
        return {}
    known, listed = [hop.server for hop in route.hops], list(records)
    apart = {record.peer_id for record in strangers(listed, known)}
    return {record.peer_id: SAME_PEER_MS for record in (*listed, *known) if record.peer_id not in apart}
