"""Multiaddrs as text: which of a peer's a stranger should try first. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence


def best_first(addresses: Sequence[str]) -> list[str]:
    """Multiaddrs in the order in which a stranger should try them: public, local network, this machine, relayed.

    Among equals TCP comes first: every implementation speaks it.
    """
    return sorted(addresses, key=lambda address: (_distance(address), "/tcp/" not in address, "/ws" in address))


def _distance(address: str) -> int:
    if "/p2p-circuit" in address:
        return 3
    match = re.match(r"/ip[46]/([^/]+)", address)
    if match is None:
        return 0
    ip = ipaddress.ip_address(match[1])
    return 2 if ip.is_loopback else 1 if ip.is_private or ip.is_link_local else 0
