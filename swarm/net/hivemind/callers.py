"""Who opens a stream whose bytes are taken as they are."""

from __future__ import annotations

from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from swarm.types import PeerId


@dataclass(frozen=True, slots=True)
class Caller:
    """Who opened a stream, and from where: a multiaddr, that of a circuit if it came through one."""

    peer_id: PeerId
    address: str


RawHandler = Callable[[Caller, StreamReader, StreamWriter], Awaitable[None]]
