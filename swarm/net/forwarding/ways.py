"""Which forwarder a peer is called through: the first that answers, so the nearest of those that live and have room."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from swarm.errors import NetworkError, SwarmError
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.tasks import ended
from swarm.types import PeerId

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for a forwarder to answer."""


class Asker(Protocol):
    """What is needed of the peer that calls."""

    async def dial(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        """Connect to a peer. Raises NetworkError."""

    async def ask(self, peer_id: PeerId) -> tuple[pb.Seen, float]:
        """What a forwarder that is connected says. Raises NetworkError."""


def parted(addresses: Sequence[str]) -> tuple[list[str], dict[PeerId, list[str]]]:
    """Addresses that are dialled directly, and those that lead through each forwarder."""
    direct: list[str] = []
    circuits: dict[PeerId, list[str]] = {}
    for address in addresses:
        forwarder, circuit, _ = address.partition("/p2p-circuit")
        if circuit:
            circuits.setdefault(forwarder.rpartition("/p2p/")[2], []).append(address)
        else:
            direct.append(address)
    return direct, circuits


async def answering(asker: Asker, circuits: dict[PeerId, list[str]]) -> AsyncGenerator[list[str], None]:
    """The addresses through each forwarder, as the forwarders answer; last those through who is full, or no forwarder
    of ours. go-libp2p would try one after the other, and spend five seconds on each that is gone."""
    asking = {asyncio.create_task(_answers(asker, peer, ways)): ways for peer, ways in circuits.items()}
    rest: list[list[str]] = []
    try:
        pending = set(asking)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None and task.result():
                    yield asking[task]
                elif task.exception() is None:
                    rest.append(asking[task])
        for ways in rest:
            yield ways
    finally:
        await ended(*asking)


async def _answers(asker: Asker, peer_id: PeerId, circuits: Sequence[str]) -> bool:
    """Whether it has room; False also for one that is none of ours. Raises NetworkError for one that is not there."""
    try:
        async with asyncio.timeout(PATIENCE):
            await asker.dial(peer_id, [circuit.partition("/p2p-circuit")[0] for circuit in circuits])
            try:
                seen, _ = await asker.ask(peer_id)
            except SwarmError:
                return False
    except TimeoutError:
        raise NetworkError(f"the forwarder {peer_id} does not answer") from None
    return seen.circuits < seen.most
