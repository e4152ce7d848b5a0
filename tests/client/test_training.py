"""Training passes on the simulated network: gradients are hashes of all that went into them, so nothing can be lost,
doubled or stale without a trace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from swarm.client.training import Training
from swarm.client.training_parts import COST_OF_A_PART, PART_POSITIONS, parts_of
from swarm.config import ServerConfig
from swarm.errors import ContextTooLong, InvalidInput, LimitExceeded, NoServerFits
from swarm.jobs import Afresh, Backward
from swarm.testing import ExactRunner, World, embed, generate, reference, run
from swarm.types import Span

SPAN = Span(0, 9)


def sequences(seed: int, count: int = 3) -> list[bytes]:
    rng = random.Random(seed)
    return [b"".join(embed(rng.randrange(997), i) for i in range(rng.randrange(1, 9))) for _ in range(count)]


def expected(inputs: Sequence[bytes], gradients: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
    """What one process computes."""
    runner, outputs, found = ExactRunner(), [], []
    for rows, gradient in zip(inputs, gradients, strict=True):
        count = len(rows) // 8
        given = runner.put(rows, count)
        outputs.append(bytes(runner.run(Afresh(SPAN, [count], given)).data))
        found.append(bytes(runner.run(Backward(SPAN, [count], given, runner.put(gradient, count))).data))
    return outputs, found


def held(world: World) -> int:
    trainings = [server.handler.training for server in world.servers.values()]
    return sum(each.kept.nbytes + each.activations.nbytes for each in trainings)


async def check(training: Training, seed: int, count: int = 3) -> None:
    inputs, gradients = sequences(seed, count), sequences(seed, count)
    outputs, found = expected(inputs, gradients)
    passed = await training.forward(inputs)
    assert list(passed.outputs) == outputs
    assert list((await training.backward(passed, gradients)).inputs) == found


async def standing(world: World, *spans: str) -> None:
    for number, span in enumerate(spans):
        await world.add(f"s{number}", Span.parse(span))


@pytest.mark.parametrize("spans", [["0:9"], ["0:4", "4:9"], ["0:2", "2:5", "5:8", "8:9"]], ids=len)
def test_gradients_come_through_any_number_of_spans(spans: list[str]) -> None:
    async def main() -> None:
        world = World()
        await standing(world, *spans)
        training = world.training()
        for seed in range(3):
            await check(training, seed)
        await asyncio.sleep(1.0)
        assert held(world) == 0
        assert all(server.bytes_held() == 0 for server in world.servers.values())
        await world.close()

    run(main())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_to_servers_gradients_are_the_same(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        world = World(seed)
        await standing(world, "0:4", "4:9", "0:4", "4:9", "0:2", "2:5", "3:9", "0:9")
        training = world.training()
        for name in rng.sample(["s0", "s1", "s2", "s3", "s4", "s5", "s6"], rng.randrange(1, 6)):
            await asyncio.sleep(0)
            moment = rng.uniform(0.0, 0.5)
            if rng.random() < 0.5:
                world.later(moment, world.kill(name))
            else:
                world.later(moment, _freeze(world, name))
                world.later(moment + rng.uniform(0.5, 20.0), _thaw(world, name))
        for step in range(6):
            await check(training, 100 * seed + step, rng.randrange(1, 6))
        await asyncio.sleep(2 * ServerConfig().training_expiry)
        assert held(world) == 0
        assert all(not server.runner.complaints for server in world.servers.values())
        await world.close()

    run(main())


async def _freeze(world: World, name: str) -> None:
    world.network.freeze(name)


async def _thaw(world: World, name: str) -> None:
    world.network.thaw(name)


def test_between_forward_and_backward_a_server_is_replaced_by_two_others() -> None:
    async def main() -> None:
        world = World()
        await standing(world, "0:3", "3:9")
        training = world.training()
        inputs, gradients = sequences(1), sequences(2, 3)
        gradients = [bytes(len(rows)) for rows in inputs]
        outputs, found = expected(inputs, gradients)
        passed = await training.forward(inputs)
        assert list(passed.outputs) == outputs
        await world.kill("s1")
        await world.add("t0", Span(3, 6))
        await world.add("t1", Span(6, 9))
        assert list((await training.backward(passed, gradients)).inputs) == found
        # What went into the lost blocks is computed once more where it came from, and nothing else.
        rows = sum(len(each) // 8 for each in inputs)
        assert world.servers["s0"].runner.computed == 3 * rows
        assert list((await training.backward(passed, gradients)).inputs) == found  # a second time, as with retain_graph
        await world.close()

    run(main())


def test_who_takes_no_training_is_not_asked_and_where_nobody_does_it_is_said() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(training_bytes=0))
        await standing(world, "0:9")
        with pytest.raises(NoServerFits, match=r"no server of blocks 0:9 takes training"):
            await world.training().forward(sequences(1))
        world.server_config = ServerConfig()
        await world.add("willing", Span(0, 9), decode_ms=100.0)
        await check(world.training(), 1)
        await world.close()

    run(main())


def test_what_is_too_much_is_refused_before_it_is_read_and_others_may_take_it() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(training_bytes=4096))
        await standing(world, "0:9")
        long = b"".join(embed(1, position) for position in range(300))
        with pytest.raises(LimitExceeded, match="a client may have 2048"):
            await world.training().forward([long])
        world.server_config = ServerConfig()
        await world.add("large", Span(0, 9), decode_ms=100.0)
        passed = await world.training().forward([long])
        assert len(passed.outputs[0]) == len(long)
        with pytest.raises(ContextTooLong, match="5000 positions, of 4096"):
            await world.training().forward([bytes(8 * 5000)])
        with pytest.raises(InvalidInput, match="3 bytes are no rows"):
            await world.training().forward([b"abc"])
        await world.close()

    run(main())


def test_who_begins_passes_and_never_ends_them_takes_what_a_client_may_have() -> None:
    async def main() -> None:
        world = World(server_config=ServerConfig(training_bytes=64 * 1024, activation_bytes=0))
        await standing(world, "0:9")
        careless, other = world.training(), world.training()
        for seed in range(200):
            await careless.forward(sequences(seed, 4))
        assert 0 < held(world) <= 32 * 1024
        await check(other, 1)
        first = await careless.forward(sequences(0))
        for seed in range(200):
            await careless.forward(sequences(seed, 4))
        gradients = sequences(0)
        # Long forgotten there; the client has it.
        found = await careless.backward(first, gradients)
        assert list(found.inputs) == expected(sequences(0), gradients)[1]
        await asyncio.sleep(2 * ServerConfig().training_expiry)
        assert held(world) == 0
        await world.close()

    run(main())


def test_generating_goes_on_beside_training() -> None:
    async def main() -> None:
        world = World()
        await standing(world, "0:4", "4:9")
        training, session = world.training(), world.session()

        async def train() -> None:
            for seed in range(10):
                await check(training, seed)

        tokens, _ = await asyncio.gather(generate(session, [1, 2, 3], 30), train())
        assert tokens == reference([1, 2, 3], 30)
        await world.close()

    run(main())


def test_parts_are_no_longer_than_asked_unless_one_sequence_is() -> None:
    assert parts_of([100, 100, 100, 300, 1]) == [(100, 100), (100,), (300,), (1,)]
    assert parts_of([]) == []


@pytest.mark.parametrize("hops", [2, 4])
@pytest.mark.parametrize(("count", "length"), [(8, 256), (16, 32), (64, 16), (4, 512), (3, 7)])
def test_no_other_size_of_parts_would_take_less_time_in_a_pipeline(hops: int, count: int, length: int) -> None:
    def seconds(parts: Sequence[int]) -> float:
        """Of a pipeline whose every hop takes as long as a part has positions, and what it costs beside."""
        ready = [0.0] * (hops + 1)
        for positions in parts:
            for hop in range(hops):
                ready[hop + 1] = max(ready[hop], ready[hop + 1]) + positions + COST_OF_A_PART
        return ready[-1]

    chosen = [sum(part) for part in parts_of([length] * count, hops)]
    assert sum(chosen) == count * length
    for together in range(1, max(PART_POSITIONS // length, 1) + 1):
        other = [length * together] * (count // together) + [length * (count % together)] * bool(count % together)
        assert seconds(chosen) <= 1.1 * seconds(other)
