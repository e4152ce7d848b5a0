"""What the listeners of all transports share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from multiaddr import Multiaddr  # type: ignore[import-untyped]

Arrive = Callable[[Any, bool], Awaitable[None]]
"""Takes a libp2p connection with streams, and whether its streams keep what is not read at once."""

UNSENT = 512 * 1024
"""Bytes that a connection holds back before its writers wait."""


class Listener(Protocol):
    """One address at which browsers are served."""

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """With the port that it has got; the rest of it is not said."""

    async def close(self) -> None: ...

    def abandon(self) -> None:
        """Free the address, from any thread, after trio's loop has failed."""


class Handshakes:
    """Those under way: so many in all, and from one ip a quarter of that, so that nobody takes all places."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._ips: Counter[str] = Counter()

    def begin(self, ip: str) -> bool:
        """Whether there is room; then `end` has to be called."""
        if self._ips.total() >= self._most or self._ips[ip] >= max(1, self._most // 4):
            return False
        self._ips[ip] += 1
        return True

    def end(self, ip: str) -> None:
        self._ips[ip] -= 1
        if not self._ips[ip]:
            del self._ips[ip]


def place_of(address: str) -> tuple[str, int]:
    """The ip and the port in a multiaddr that begins with them."""
    _, _, ip, _, port = address.split("/")[:5]
    return ip, int(port)


def abandon(trio_socket: Any) -> None:
    """Close a socket of trio's without trio."""
    if trio_socket.fileno() >= 0:
        os.close(trio_socket.detach())
