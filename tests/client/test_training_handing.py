"""Hops of training hand on to each other, on the simulated network: what goes where, whatever happens on the way."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from swarm.config import ServerConfig
from swarm.errors import FrameRejected, Unauthorized
from swarm.jobs import Backward
from swarm.server.handing import Handing
from swarm.testing import ExactRunner, World, run
from swarm.testing.network import _Pipe
from swarm.types import Span
from swarm.wire import swarm_pb2 as pb
from tests.client.test_training import check, expected, held, sequences, standing
from tests.client.test_training_adapters import adapters_held, numbers
from tests.client.test_training_adapters import check as check_adapters

LONG = 20_000.0
"""Simulated seconds, after which something hangs."""


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[tuple[str, str]]]:
    """Bytes of large frames, by who sent them to whom."""
    counted = Counter[tuple[str, str]]()
    put = _Pipe.put

    def count(pipe: _Pipe, frame: bytes | None) -> None:
        if len(frame or b"") >= 1024:
            counted[pipe.source, pipe.target] += len(frame or b"")
        put(pipe, frame)

    monkeypatch.setattr(_Pipe, "put", count)
    yield counted


def test_the_client_carries_what_goes_into_the_first_hop_and_comes_out_of_the_last(
    carried: Counter[tuple[str, str]],
) -> None:
    async def main() -> None:
        world = World()
        await standing(world, "0:2", "2:5", "5:8", "8:9")
        training = world.training()
        rows = b"".join(sequences(1, 60)) * 2
        passed = await training.forward([rows])
        chain = [("client0", "s0"), ("s0", "s1"), ("s1", "s2"), ("s2", "s3"), ("s3", "client0")]
        assert set(carried) == set(chain)
        carried.clear()
        found = await training.backward(passed, [rows])
        assert set(carried) == {(target, source) for source, target in chain}
        assert max(carried.values()) < len(rows) + 200
        outputs, gradients = expected([rows], [rows])
        assert (list(passed.outputs), list(found.inputs)) == (outputs, gradients)
        await world.close()

    run(main())


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_in_the_middle_of_a_pass_gradients_are_the_same(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        room = rng.choice([2 << 30, 4000, 0])
        step = lambda positions: 0.02 + 0.002 * positions  # noqa: E731
        world = World(seed, server_config=ServerConfig(activation_bytes=room), step_seconds=step)
        await standing(world, "0:3", "3:6", "6:9", "0:2", "2:6", "3:6", "6:9", "0:9")
        names = [f"s{number}" for number in range(7)]
        for _ in range(rng.randrange(1, 6)):
            world.later(rng.uniform(0.0, 4.0), _harm(world, rng, names))
        training = world.training()
        async with asyncio.timeout(LONG):
            for number in range(4):
                beside = numbers(10 * seed + number, rng.sample(range(9), rng.randrange(1, 9)))
                first = min(beside) if rng.random() < 0.5 else None
                await check_adapters(training, 100 * seed + number, beside, first=first, count=rng.randrange(1, 9))
        await asyncio.sleep(2 * ServerConfig().training_expiry)
        assert held(world) == adapters_held(world) == 0
        assert all(not server.runner.complaints for server in world.servers.values())
        await world.close()

    run(main())


async def _harm(world: World, rng: random.Random, names: list[str]) -> None:
    """One of what can happen to a server, or to the way between two."""
    name, other = rng.sample(names, 2)
    match rng.choice(["kill", "freeze", "cut", "break"]):
        case "kill" if name in world.servers:
            await world.kill(name)
        case "freeze":
            world.network.freeze(name)
            await asyncio.sleep(rng.uniform(0.5, 30.0))
            world.network.thaw(name)
        case cut if name in world.servers and other in world.servers:
            world.network.cut(name, other, silent=cut == "cut")
            await asyncio.sleep(rng.uniform(0.5, 200.0))
            world.network.mend(name, other)


Disturb = Callable[[World], Coroutine[Any, Any, None]]


async def _cut(world: World) -> None:
    world.network.cut("s0", "s1")


async def _freeze(world: World) -> None:
    world.network.freeze("s1")


@pytest.mark.parametrize("disturb", [_cut, _freeze])
def test_what_cannot_be_handed_on_is_had_from_who_has_it_and_not_computed_again(disturb: Disturb) -> None:
    async def main() -> None:
        world = World(step_seconds=lambda positions: 0.5)
        await standing(world, "0:4", "4:9", "4:9")
        training = world.training()
        await check(training, 1, 2)
        before = world.servers["s0"].runner.computed
        rows = sequences(2, 1)[0]
        world.later(0.3, disturb(world))
        passed = await training.forward([rows])
        assert list(passed.outputs) == expected([rows], [rows])[0]
        assert world.servers["s0"].runner.computed == before + len(rows) // 8
        world.network.mend("s0", "s1")
        world.network.thaw("s1")
        await world.close()

    run(main())


def test_nobody_hands_over_what_was_not_asked_for_or_of_another_size() -> None:
    async def main() -> None:
        world = World()
        await standing(world, "0:9")
        handing, server = Handing(world.network.host("stranger"), ServerConfig()), world.servers["s0"]
        there: Any = server.handler.training
        name = bytes(16)
        with pytest.raises(FrameRejected, match="no pass waits"):
            await handing.give(server.record, name, b"rows")
        with there._handing.awaiting(name, "another", 4), pytest.raises(FrameRejected, match="another peer"):
            await handing.give(server.record, name, b"rows")
        with there._handing.awaiting(name, "stranger", 4) as rows:
            with pytest.raises(FrameRejected, match="9 bytes of 4"):
                await handing.give(server.record, name, b"more rows")
            with pytest.raises(Unauthorized, match="waits already"), there._handing.awaiting(name, "stranger", 4):
                pass
            await handing.give(server.record, name, b"rows")
            assert bytes(rows.result()) == b"rows"
            with pytest.raises(FrameRejected, match="nobody waits"):
                await handing.give(server.record, name, b"rows")
        await world.close()

    run(main())


class Failing(ExactRunner):
    """Cannot go on from what another gives it."""

    def run(self, job: Any) -> Any:
        if isinstance(job, Backward):
            raise ValueError("gradients that are not finite")
        return super().run(job)


def test_who_computes_nothing_of_what_another_hands_over_is_asked_alone_before_it_is_left() -> None:
    async def main() -> None:
        world = World()
        await world.add("s0", Span(0, 4), runner=Failing())
        await world.add("s1", Span(4, 9))
        await world.add("s2", Span(0, 4), decode_ms=50.0)
        training = world.training()
        await check(training, 1, 1)
        avoided = training.view.trust.peers.active(asyncio.get_running_loop().time())
        assert set(avoided) == {"s0"}
        await world.close()

    run(main())


def test_what_is_recalled_without_a_pass_is_refused() -> None:
    async def main() -> None:
        world = World()
        await standing(world, "0:9")
        stream = await world.network.host("stranger").open_stream("s0", "/swarm/training/1.0.0")
        await stream.send(pb.TrainingRequest(recall=True).SerializeToString())
        reply = pb.TrainingReply.FromString(await stream.receive(1 << 20))
        assert reply.failure.code == pb.Failure.MALFORMED
        await world.close()

    run(main())
