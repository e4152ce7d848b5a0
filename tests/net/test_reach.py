"""How a peer finds out who can dial it, what it makes of the answers, and through whom it lets itself be reached."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import MalformedFrame, PeerUnreachable
from swarm.net.addresses import is_public
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.net.forwarding import reach, ways
from swarm.net.forwarding.choice import Candidate, choose
from swarm.net.forwarding.reach import Reach, judged
from swarm.net.forwarding.tether import Tether, network_of
from swarm.net.forwarding.ways import answering, parted
from swarm.net.identity import Identity
from swarm.types import PeerId

PUBLIC, LAN = "/ip4/11.0.0.9/tcp/4000", "/ip4/192.168.1.7/tcp/4000"


@pytest.mark.parametrize(
    ("seen", "dialled", "means"),
    [
        ([PUBLIC], [b"where"], Reach.PUBLIC),
        ([PUBLIC], [False, b"where", None], Reach.PUBLIC),
        ([PUBLIC], [False, None], Reach.NAT),
        ([PUBLIC], [None], Reach.UNKNOWN),
        ([LAN, "/ip4/127.0.0.1/tcp/1"], [], Reach.LOCAL),
        ([LAN, PUBLIC], [False], Reach.NAT),
        ([], [], Reach.UNKNOWN),
    ],
)
def test_what_answers_mean(seen: list[str], dialled: list[bytes | bool | None], means: Reach) -> None:
    assert judged(seen, dialled) is means


def test_who_is_seen_from_elsewhere_than_it_is_is_behind_nat() -> None:
    assert reach.translated([PUBLIC], [LAN]) is Reach.NAT
    assert reach.translated([PUBLIC], [LAN, "/ip4/11.0.0.9/tcp/1"]) is Reach.UNKNOWN
    assert reach.translated([LAN], ["/ip4/192.168.1.8/tcp/1"]) is Reach.UNKNOWN
    assert reach.translated([], []) is Reach.UNKNOWN


def test_others_try_our_ports_at_the_ip_that_they_see() -> None:
    own = [LAN, "/ip4/127.0.0.1/udp/4001/quic-v1", "/ip6/::1/tcp/7", f"{PUBLIC}/p2p/Qm/p2p-circuit", LAN]
    tried = reach.to_try(own, "/ip4/11.0.0.9/tcp/33333")
    assert tried == ["/ip4/11.0.0.9/tcp/4000", "/ip4/11.0.0.9/udp/4001/quic-v1"]
    assert reach.to_try(own, "nonsense") == []


@given(st.binary(max_size=200))
def test_whatever_answers_come_they_are_understood_or_refused_by_type(frame: bytes) -> None:
    for read in (reach.was_dialled, reach.read_seen):
        with contextlib.suppress(MalformedFrame):
            read(frame)


def test_only_what_came_through_counts_as_dialled() -> None:
    for status, told in ((0, b"where"), (100, False), (101, None), (300, None)):
        response = pb.AutoNat.DialResponse(status=status, addr=b"where")
        message = pb.AutoNat(type=pb.AutoNat.DIAL_RESPONSE, dial_response=response)
        assert reach.was_dialled(message.SerializeToString()) == told


def test_addresses_are_public_where_the_internet_can_dial_them() -> None:
    assert is_public(PUBLIC)
    assert is_public("/dns4/swarm.example.org/tcp/1")
    for address in (LAN, "/ip4/100.64.0.3/tcp/1", "/ip4/127.0.0.1/tcp/1", "/ip6/fe80::1/tcp/1", "", "/ip4/x/tcp/1"):
        assert not is_public(address)
    assert not is_public(f"{PUBLIC}/p2p/{ONE}/p2p-circuit")


# ---- choosing ---------------------------------------------------------------------------------------------------

CANDIDATES = st.builds(
    Candidate,
    peer_id=st.sampled_from("abcdefgh"),
    delay=st.floats(0.001, 1.0) | st.just(math.inf),
    full=st.booleans(),
    failures=st.integers(0, 5),
    network=st.sampled_from(["1.1", "2.2", "3.3"]),
)


@given(st.lists(CANDIDATES, unique_by=lambda one: one.peer_id), st.integers(1, 4))
def test_a_choice_is_of_the_usable_and_stays_what_it_is(candidates: list[Candidate], wanted: int) -> None:
    chosen = choose(candidates, (), wanted)
    usable = {one.peer_id for one in candidates if not one.full}
    assert set(chosen) <= usable
    assert len(chosen) == len(set(chosen)) == min(wanted, len(usable))
    assert set(choose(candidates, chosen, wanted)) == set(chosen), "nothing changed, so nobody is left"


def test_the_near_are_chosen_and_not_all_in_one_network() -> None:
    near, beside, far = Candidate("a", 0.01, network="1.1"), Candidate("b", 0.02, network="1.1"), Candidate("c", 0.05)
    assert choose([far, near, beside], (), 2) == ["a", "c"]
    assert choose([far, near, beside], (), 3) == ["a", "c", "b"]


def test_the_one_held_stays_unless_another_is_clearly_better_or_it_fails() -> None:
    held, nearer, near = Candidate("a", 0.05, network="1"), Candidate("b", 0.04), Candidate("c", 0.01)
    assert choose([held, nearer], ["a"], 1) == ["a"]
    assert choose([held, near], ["a"], 1) == ["c"]
    assert choose([Candidate("a", 0.05, failures=2), nearer], ["a"], 1) == ["b"]
    assert choose([Candidate("a", 0.05, full=True)], ["a"], 1) == ["a"], "full is of no concern to who is in"


# ---- holding on -------------------------------------------------------------------------------------------------

ME, ONE, TWO, THREE, GONE = (Identity.generate().peer_id for _ in range(5))


class Line:
    """Forwarders that are there or not."""

    def __init__(self) -> None:
        self.there = {ONE: 0.01, TWO: 0.02, THREE: 0.03}
        self.links: set[PeerId] = set()
        self.dialled: list[PeerId] = []

    async def connected(self) -> set[PeerId]:
        return set(self.links)

    async def dial(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        self.dialled.append(peer_id)
        if peer_id not in self.there:
            raise PeerUnreachable("not there")
        self.links.add(peer_id)

    async def ask(self, peer_id: PeerId) -> tuple[pb.Seen, float]:
        return pb.Seen(address=PUBLIC, circuits=0, most=10), self.there[peer_id]

    def kill(self, peer_id: PeerId) -> None:
        self.links.discard(peer_id)
        self.there.pop(peer_id, None)


def at(number: int) -> list[str]:
    return [f"/ip4/11.{number}.0.1/udp/1/quic-v1", f"/ip4/11.{number}.0.1/tcp/1"]


def test_a_peer_is_reached_through_two_and_through_a_third_when_one_is_lost() -> None:
    async def main() -> None:
        line, told = Line(), list[list[str]]()
        tether = Tether(line, ME, 2, 2.0, lambda: told.append(list(tether.through)))
        tether.learn({ONE: at(1), TWO: at(2), THREE: at(3), ME: at(4)})
        await tether.look()
        assert tether.through == [ONE, TWO]
        assert tether.addresses[0] == f"/ip4/11.1.0.1/tcp/1/p2p/{ONE}/p2p-circuit/p2p/{ME}"
        line.kill(ONE)
        await tether.look()
        assert tether.through == [TWO], "what is lost is announced no more"
        await tether.look()
        await tether.look()
        assert tether.through == [TWO, THREE]
        assert told == [[ONE, TWO], [TWO], [TWO, THREE]]

    asyncio.run(main())


def test_the_only_one_is_dialled_until_it_is_back() -> None:
    async def main() -> None:
        line = Line()
        tether = Tether(line, ME, 2, 2.0, lambda: None)
        tether.learn({ONE: at(1)})
        await tether.look()
        line.kill(ONE)
        for _ in range(5):
            await tether.look()
        assert tether.addresses == []
        line.there[ONE] = 0.01
        await tether.look()
        assert tether.through == [ONE]

    asyncio.run(main())


def test_an_initial_peer_that_is_no_forwarder_is_not_announced_and_soon_left_alone() -> None:
    class Plain(Line):
        asked = 0

        async def ask(self, peer_id: PeerId) -> tuple[pb.Seen, float]:
            if peer_id != ONE:
                return await super().ask(peer_id)
            self.asked += 1
            raise PeerUnreachable("protocols not supported")

    async def main() -> None:
        line = Plain()
        tether = Tether(line, ME, 2, 2.0, lambda: None)
        tether.learn({ONE: at(1), TWO: at(2)})
        for _ in range(20):
            await tether.look()
        assert tether.through == [TWO]
        assert line.asked <= 6

    asyncio.run(main())


def test_a_flood_of_forwarders_is_bounded() -> None:
    async def main() -> None:
        line = Line()
        tether = Tether(line, ME, 2, 2.0, lambda: None)
        tether.learn({f"peer{number}": at(number % 200) for number in range(2000)})
        await tether.look()
        assert len(tether._known) <= 256
        assert len(line.dialled) <= 2 * 16 + 2

    asyncio.run(main())


# ---- calling ----------------------------------------------------------------------------------------------------


def through(peer_id: PeerId, number: int) -> str:
    return f"/ip4/11.{number}.0.1/tcp/1/p2p/{peer_id}/p2p-circuit/p2p/{ME}"


class Calling(Line):
    """Forwarders that answer after their delay; `THREE` is full, and those not there take for ever."""

    async def dial(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        if peer_id not in self.there:
            await asyncio.Event().wait()
        await super().dial(peer_id, addresses)

    async def ask(self, peer_id: PeerId) -> tuple[pb.Seen, float]:
        await asyncio.sleep(self.there[peer_id])
        return pb.Seen(address=PUBLIC, circuits=10 if peer_id == THREE else 0, most=10), 0.0


def test_a_peer_is_called_through_the_first_that_answers_and_a_dead_one_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        line = Calling()
        line.there = {ONE: 0.03, TWO: 0.01, THREE: 0.0}
        direct, circuits = parted([through(ONE, 1), LAN, through(GONE, 4), through(THREE, 3), through(TWO, 2)])
        assert direct == [LAN]
        taken = [way async for way in answering(line, circuits)]
        assert taken == [[through(TWO, 2)], [through(ONE, 1)], [through(THREE, 3)]]

    monkeypatch.setattr(ways, "PATIENCE", 0.1)
    asyncio.run(main())


def test_networks_are_told_apart() -> None:
    assert network_of("/ip4/11.2.3.4/tcp/1") == "11.2"
    assert network_of("/ip6/2a0e:100:7::1/tcp/1") == "2a0e:100:7"
    assert network_of("/dns4/a.example.org/tcp/1") == "a.example.org"
    assert network_of("/memory/x") == ""


@pytest.mark.parametrize(
    ("connections", "moved"),
    [
        ([], False),
        ([PUBLIC], False),
        ([PUBLIC, "/ip4/11.0.0.9/udp/7/quic-v1"], False),
        ([PUBLIC, LAN, "/ip4/127.0.0.1/tcp/3"], False),
        ([PUBLIC, "/ip6/2a0e:100::9/tcp/1"], False),
        ([PUBLIC, "/ip4/11.0.0.10/udp/7/quic-v1"], True),
        (["/ip6/2a0e:100::9/tcp/1", "/ip6/2a0e:100::a/tcp/1", PUBLIC], True),
    ],
)
def test_who_comes_from_two_ips_has_moved(connections: list[str], moved: bool) -> None:
    assert reach.moved(connections) is moved
