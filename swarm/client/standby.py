"""Where a standby computes: on other peers than the route it stands by for, and at other addresses. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from swarm.types import PeerId, Route, ServerRecord

SAME_PEER_MS = 10_000.0
"""What a block on a peer of the other route costs: no server is so slow that it would not be better to stand by."""
SAME_ADDRESS_MS = 100.0
"""What one at the same address costs: it is likely to fail together with it."""


def apart_from(route: Route | None, records: Iterable[ServerRecord]) -> dict[PeerId, float]:
    """By peer, in ms a block, what keeps a standby of `route` away from it."""
    if route is None:
        return {}
    near = {where for hop in route.hops for where in places(hop.server)}
    apart = {record.peer_id: SAME_ADDRESS_MS for record in records if near & places(record)}
    return {**apart, **{hop.peer_id: SAME_PEER_MS for hop in route.hops}}


def places(record: ServerRecord) -> set[str]:
    """The addresses of machines in a record; a circuit's is its forwarder's, which tells nothing."""
    direct = [address.split("/") for address in record.addresses if "p2p-circuit" not in address]
    return {parts[2] for parts in direct if len(parts) > 2 and parts[1] in ("ip4", "ip6", "dns", "dns4", "dns6")}
