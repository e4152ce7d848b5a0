"""Whom a peer behind NAT is connected to so that it knows from where it is seen."""

from __future__ import annotations

import asyncio

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import NetworkError
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.net.forwarding.observers import MOST_TOLD, WANTED, lacking, telling, told
from swarm.net.hivemind.shorter_ways import LOOK_EVERY, ShorterWays
from swarm.net.identity import Identity
from swarm.testing import SimulatedNetwork, run

PEERS = [Identity.generate().peer_id for _ in range(12)]


def tcp(place: int) -> str:
    return f"/ip4/11.0.0.{place + 1}/tcp/4000"


def quic(place: int) -> str:
    return f"/ip4/11.0.0.{place + 1}/udp/4000/quic-v1"


KNOWN = {peer_id: [tcp(place), quic(place)] for place, peer_id in enumerate(PEERS)}


def test_others_are_dialled_before_those_that_carry_are_dialled_anew() -> None:
    connections = [(PEERS[0], tcp(0)), (PEERS[1], quic(1)), (PEERS[2], tcp(2) + "/p2p-circuit")]
    dials = lacking(connections, KNOWN)
    assert len(dials.fresh) == WANTED - 1
    assert not dials.again
    few = {peer_id: KNOWN[peer_id] for peer_id in PEERS[:4]}
    dials = lacking([(PEERS[0], tcp(0)), (PEERS[1], quic(1))], few)
    assert dict(dials.fresh) == {PEERS[2]: [quic(2)], PEERS[3]: [quic(3)]}
    assert dict(dials.again) == {PEERS[0]: [quic(0)]}


@pytest.mark.parametrize(
    "known",
    [
        pytest.param({peer_id: KNOWN[peer_id] for peer_id in PEERS[:3]}, id="too few"),
        pytest.param({peer_id: [tcp(place)] for place, peer_id in enumerate(PEERS)}, id="none over QUIC"),
        pytest.param({peer_id: [quic(0)] for peer_id in PEERS}, id="all at one address"),
        pytest.param(
            {peer_id: [f"/ip4/192.168.1.{i + 1}/udp/1/quic-v1"] for i, peer_id in enumerate(PEERS)}, id="local"
        ),
    ],
)
def test_where_there_are_not_enough_nothing_is_touched(known: dict[str, list[str]]) -> None:
    dials = lacking([(PEERS[0], tcp(0))], known)
    assert not dials.fresh
    assert not dials.again


@given(st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=12), st.sets(st.integers(0, 11)))
def test_with_what_is_dialled_enough_see_us_and_then_nobody_more(
    connected: list[tuple[int, bool]], known: set[int]
) -> None:
    connections = [(PEERS[place], quic(place) if over else tcp(place)) for place, over in connected]
    public = {PEERS[place]: KNOWN[PEERS[place]] for place in known}
    dials = lacking(connections, public)
    assert not set(dials.fresh) & {peer_id for peer_id, _ in connections}
    after = connections + [(peer_id, addresses[0]) for peer_id, addresses in {**dials.fresh, **dials.again}.items()]
    if dials.fresh or dials.again:
        assert len({address for _, address in after if "/quic" in address}) == WANTED
    again = lacking(after, public)
    assert not again.fresh
    assert not again.again


@given(
    st.lists(st.builds(pb.PublicPeer, peer=st.text(max_size=60), addresses=st.lists(st.text(max_size=80))), max_size=20)
)
def test_what_others_tell_is_taken_as_far_as_it_makes_sense(peers: list[pb.PublicPeer]) -> None:
    assert told(peers) == {}
    assert told(telling(KNOWN)) == {peer_id: KNOWN[peer_id] for peer_id in PEERS[:MOST_TOLD]}


def test_streams_through_forwarders_hear_of_a_direct_connection() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        here = network.host(PEERS[0])
        for peer_id in PEERS[1:3]:
            await network.host(peer_id).serve("/x", lambda stream: asyncio.sleep(1000))
        connections: list[tuple[bytes, str]] = []
        asked = 0

        async def look() -> list[tuple[bytes, str]]:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise NetworkError("for once")
            return connections

        ways = ShorterWays(look, here.streams)
        long, other, direct = [await here.open_stream(PEERS[i], "/x") for i in (1, 2, 1)]
        circuit = f"{tcp(5)}/p2p/{PEERS[5]}/p2p-circuit"
        ways.opened(long, circuit)
        ways.opened(other, circuit)
        ways.opened(direct, quic(1))
        connections.append((base58.b58decode(PEERS[1]), circuit))
        await asyncio.sleep(3 * LOOK_EVERY)
        assert not long.outdated.is_set()
        connections.append((base58.b58decode(PEERS[1]), quic(1)))
        await asyncio.sleep(2 * LOOK_EVERY)
        assert long.outdated.is_set()
        assert not other.outdated.is_set()
        assert not direct.outdated.is_set()
        other.close()
        before = asked
        await asyncio.sleep(10 * LOOK_EVERY)
        assert asked <= before + 2, "nobody is left to whom it matters"
        await ways.close()

    run(main())
