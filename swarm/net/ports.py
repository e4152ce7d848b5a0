"""Whether somebody listens already where a peer is to listen.

libp2p shares its ports on purpose: a second peer at the same one would start, and get some of the other's callers.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from swarm.errors import DaemonFailed
from swarm.net.addresses import components


def check_free(addresses: Iterable[str]) -> None:
    """Raises DaemonFailed for an address of this machine, with a port of its own, at which another program listens."""
    for address in addresses:
        if _is_taken(components(address) or []):
            raise DaemonFailed(
                f"cannot listen at {address}: address already in use. Another program listens there: choose other "
                "ports with --host-maddrs, or end it."
            )


def _is_taken(parts: list[tuple[str, str]]) -> bool:
    match parts:
        case [("ip4" | "ip6" as family, ip), ("tcp" | "udp" as transport, port), *_] if port != "0":
            return _is_bound(family, transport, ip, int(port))
    return False


def _is_bound(family: str, transport: str, ip: str, port: int) -> bool:
    version = socket.AF_INET if family == "ip4" else socket.AF_INET6
    kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
    try:
        with socket.socket(version, kind) as trial:
            if kind is socket.SOCK_STREAM:
                # What an ended process left half closed is in nobody's way; two for UDP would share the port.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if version is socket.AF_INET6:
                trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            trial.bind((ip, port))
    except OSError as error:
        # Of everything else p2pd complains itself.
        return error.errno == errno.EADDRINUSE
    return False
