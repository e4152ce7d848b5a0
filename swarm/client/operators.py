"""Who may be one and the same behind several servers: those in one block of addresses. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from swarm.client.standby import places
from swarm.types import PeerId, ServerRecord

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
