"""Holes are tried for again, ever more rarely, and anew when addresses change; Noise is spoken as others speak it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from swarm.errors import MalformedFrame, PeerUnreachable, Unauthorized
from swarm.net.hivemind.holes import AT_ONCE, FIRST, LONGEST, SOON, TRIES, Holes, pause
from swarm.net.identity import Identity
from swarm.net.noise import secured
from swarm.testing import run

PEER, FORWARDER = "peer", "forwarder"
HERE = ["/ip4/192.168.1.2/udp/4001/quic-v1", "/ip4/11.0.0.2/udp/4001/quic-v1", "/ip4/11.0.0.2/tcp/4001"]


class Net:
    """What was tried, and when; a try takes `takes` seconds and comes to nothing."""

    def __init__(self) -> None:
        self.addresses = list(HERE)
        self.tried: list[tuple[str, str, float]] = []
        self.running = 0
        self.most = 0
        self.takes = 5.0
        self.holes = Holes(self.knock, lambda: self.addresses)

    async def knock(self, forwarder: str, peer_id: str) -> None:
        self.tried.append((forwarder, peer_id, asyncio.get_running_loop().time()))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.takes)
        self.running -= 1
        raise PeerUnreachable("no")

    async def look(self, seconds: float, circuits: dict[str, str]) -> None:
        for _ in range(round(seconds)):
            self.holes.look(circuits)
            await asyncio.sleep(1)


def watch(test: Callable[[Net], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        net = Net()
        await test(net)
        await net.holes.close()

    run(main())


def test_pauses_grow_up_to_a_limit_and_tries_end() -> None:
    async def test(net: Net) -> None:
        await net.look(3600, {PEER: FORWARDER})
        at = [when for _, _, when in net.tried]
        assert net.tried[0][:2] == (FORWARDER, PEER)
        assert [later - earlier for earlier, later in itertools.pairwise(at)] == [
            pause(count) for count in range(1, TRIES)
        ]
        assert len(at) == TRIES
        assert pause(0) == FIRST
        assert max(map(pause, range(100))) == LONGEST

    watch(test)


def test_with_other_addresses_it_is_tried_soon_and_anew() -> None:
    async def test(net: Net) -> None:
        await net.look(3600, {PEER: FORWARDER})
        before = len(net.tried)
        net.addresses.append("/ip4/192.168.1.3/udp/1/quic-v1")
        await net.look(60, {PEER: FORWARDER})
        assert len(net.tried) == before, "what is not seen from outside does not matter"
        net.addresses[1] = "/ip4/11.0.0.3/udp/4001/quic-v1"
        began = asyncio.get_running_loop().time()
        await net.look(3600, {PEER: FORWARDER})
        assert net.tried[before][2] - began <= SOON + 1
        assert len(net.tried) == before + TRIES

    watch(test)


def test_who_is_seen_over_quic_by_nobody_does_not_try_until_it_is() -> None:
    async def test(net: Net) -> None:
        net.addresses = HERE[:1]
        await net.look(600, {PEER: FORWARDER})
        assert not net.tried
        net.addresses = HERE
        await net.look(3, {PEER: FORWARDER})
        assert len(net.tried) == 1

    watch(test)


def test_after_a_direct_way_tries_begin_anew_and_few_are_under_way_at_a_time() -> None:
    async def test(net: Net) -> None:
        net.takes = 30.0
        many = {f"{PEER}{place}": FORWARDER for place in range(10)}
        await net.look(3600, many)
        assert net.most == AT_ONCE
        assert {peer for _, peer, _ in net.tried} == set(many)
        before = len(net.tried)
        net.holes.direct(f"{PEER}3")
        await net.look(FIRST + 2, many)
        assert [peer for _, peer, _ in net.tried[before:]] == [f"{PEER}3"]

    watch(test)


class Ends:
    """One end of a pair."""

    def __init__(self, said: bytes = b"") -> None:
        self.said, self.heard = bytearray(said), bytearray()

    async def read(self, n: int) -> bytes:
        data, self.said[:n] = bytes(self.said[:n]), b""
        return data

    async def write(self, data: bytes) -> None:
        self.heard += data


@pytest.mark.parametrize("size", [0, 10, 32, 96, 200])
def test_what_is_no_handshake_is_refused(size: int) -> None:
    one, other = Identity.generate(), Identity.generate()

    async def main() -> None:
        answer = bytes(range(1, 1 + size)) if size < 250 else b""
        with pytest.raises((MalformedFrame, Unauthorized)):
            await secured(Ends(size.to_bytes(2, "big") + answer), one, other.peer_id)

    run(main())
