"""A peer that takes more than its share of a server is refused in time and in words; others notice nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from swarm.config import PeerLimits, ServerConfig
from swarm.server.budget import CacheBudget
from swarm.testing import Peer, Talk, World, generate, reference, run
from swarm.types import Span
from swarm.wire import swarm_pb2 as pb

PROMPT = list(range(7))
BLOCKS = 3
LIMITS = PeerLimits(streams=20, all_streams=100, openings=10.0, openings_at_once=40.0, frames=50.0)


async def swarm_of(limits: PeerLimits = LIMITS, config: ServerConfig | None = None) -> World:
    world = World(blocks=BLOCKS, server_config=config, peer_limits=limits)
    await world.add("s", Span(0, BLOCKS))
    return world


async def well(world: World) -> None:
    """Somebody else is served."""
    good = world.session()
    assert await generate(good, PROMPT, 5) == reference(PROMPT, 5, BLOCKS)
    await good.close()


def test_streams_beyond_the_limits_are_refused_with_when_to_come_again() -> None:
    async def main() -> None:
        world = await swarm_of()
        peer = Peer(world, "attacker")
        talks = [await peer.control("s") for _ in range(20)]
        beyond = [await peer.control("s") for _ in range(10)]
        data = await peer.data("s", b"x" * 16, 1)
        await asyncio.sleep(0.5)
        assert not any(talk.over for talk in talks)
        for talk in (*beyond, data):
            assert talk.over
            (failure,) = (message.failure for message in talk.heard)
            assert failure.code == pb.Failure.BUSY
            assert failure.retry_after > 0.0
        await well(world)
        for talk in talks:
            talk.close()
        await asyncio.sleep(1.0)
        again = [await peer.control("s") for _ in range(20)]
        assert not any(talk.over for talk in again)
        many = [await peer.control("s") for _ in range(10)]
        await asyncio.sleep(0.5)
        assert all(talk.over for talk in many)
        await world.close()

    run(main())


def test_streams_that_are_opened_too_fast_are_refused() -> None:
    async def main() -> None:
        world = await swarm_of(replace(LIMITS, openings=1.0, openings_at_once=5.0))
        peer = Peer(world, "attacker")
        talks = [await peer.control("s", b"nonsense") for _ in range(12)]
        await asyncio.sleep(0.5)
        codes = [code for talk in talks for code in talk.failures]
        assert codes.count(pb.Failure.MALFORMED) == 5
        assert codes.count(pb.Failure.BUSY) == 7
        await well(world)
        await world.close()

    run(main())


def test_frames_beyond_the_rate_wait_unread() -> None:
    async def main() -> None:
        world = await swarm_of()
        peer = Peer(world, "attacker")
        talk = await peer.control("s", peer.opening("s", b"M" * 16))
        for nonce in range(400):
            await talk.say(pb.ControlRequest(probe=pb.Probe(nonce=nonce + 1)))
        await asyncio.sleep(2.0)
        answered = sum(reply.WhichOneof("kind") == "progress" for reply in talk.heard)
        assert 100 <= answered <= 50 + 2 * 50 + 5
        await well(world)
        await world.close()

    run(main())


def test_one_peer_has_so_many_sessions() -> None:
    async def main() -> None:
        world = await swarm_of(PeerLimits(), ServerConfig(max_sessions_per_peer=3))
        peer = Peer(world, "attacker")
        talks = [await peer.control("s", peer.opening("s", bytes([n]) * 16)) for n in range(1, 6)]
        await asyncio.sleep(0.5)
        assert [talk.heard[0].WhichOneof("kind") for talk in talks] == ["opened"] * 3 + ["failure"] * 2
        assert talks[3].failures == [pb.Failure.BUSY]
        await well(world)
        await world.close()

    run(main())


def test_who_is_blocked_in_the_middle_is_served_no_longer(tmp_path: Path) -> None:
    async def main() -> None:
        block = tmp_path / "block"
        block.write_text("")
        world = await swarm_of(replace(LIMITS, block=str(block)))
        peer = Peer(world, "12D3KooWLbNwybUnfALpSQaHbRx5GvrtNSPZwTMQNsYqEqhaBJGi")
        talk = await peer.control("s", peer.opening("s", b"M" * 16))
        await asyncio.sleep(2.0)
        assert not talk.over
        block.write_text(peer.name)
        await asyncio.sleep(2.0)
        await talk.say(pb.ControlRequest(probe=pb.Probe(nonce=1)))
        await asyncio.sleep(0.5)
        assert talk.over
        refused = await peer.control("s")
        await asyncio.sleep(0.5)
        assert refused.failures == [pb.Failure.BUSY]
        await well(world)
        await world.close()

    run(main())


def test_what_never_reads_holds_no_more_than_its_limit_of_all_its_sessions() -> None:
    async def main() -> None:
        limits = PeerLimits(flight_bytes=400_000, all_flight_bytes=1_000_000)
        world = await swarm_of(limits, ServerConfig(cache_bytes=1 << 24, inbox_bytes=200_000, stuck=30.0))
        peer, steps = Peer(world, "attacker"), []
        for number in range(1, 21):
            session = bytes([number]) * 16
            talk = await peer.control("s", peer.opening("s", session))
            await talk.say(pb.ControlRequest(prepare=pb.Prepare(epoch=1)))
            await talk.say(pb.ControlRequest(resume=pb.Resume(epoch=1)))
            data = await peer.data("s", session, 1)
            steps.append((data, asyncio.ensure_future(flood(data))))
        await asyncio.sleep(5.0)
        places = world.servers["s"].handler.flight.places
        assert 300_000 < places.held < 400_000 + 21 * 72_000
        await well(world)
        for data, task in steps:
            task.cancel()
            data.close()
        world.network.kill("attacker")
        await asyncio.sleep(60.0)
        assert places.held == 0
        await world.close()

    run(main())


async def flood(data: Talk) -> None:
    for start in range(0, 4000, 40):
        rows = [pb.Rows(sequence=0, start=start, count=40, want=40)]
        await data.say(pb.Data(step=pb.Step(rows=rows, hidden=bytes(320))))
        await asyncio.sleep(0.001)


class Held:
    def __init__(self, client: str, kv: int, last_used: float = 0.0) -> None:
        self.client, self.kv_bytes, self.last_used, self.history_bytes = client, kv, last_used, 0

    def evict(self) -> None:
        self.kv_bytes = 0

    def drop_history(self) -> None: ...


def test_one_clients_caches_take_so_much_of_the_budget() -> None:
    budget = CacheBudget(100, 0.0, 5.0, share_per_client=0.5)
    old, new, other = Held("a", 30), Held("a", 15, 10.0), Held("b", 0, 10.0)
    budget.holders += [old, new, other]
    assert not budget.make_room(60, other, 10.0)
    assert budget.make_room(50, other, 10.0)
    assert budget.make_room(10, new, 10.0), "its own idle cache gives way"
    assert (old.kv_bytes, new.kv_bytes) == (0, 15)
    assert not budget.make_room(40, new, 10.0)
