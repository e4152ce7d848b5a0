"""Adapters on the simulated network: what they add, and their gradients, are hashes of all that went into them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from swarm.client.matrices import Matrices
from swarm.client.training import Training
from swarm.client.training_parts import Passed
from swarm.config import ServerConfig
from swarm.errors import InvalidInput
from swarm.jobs import Afresh, Backward
from swarm.testing import ExactRunner, World, embed, generate, reference, run
from swarm.testing.exact import BESIDE
from swarm.types import Adapter, Span
from tests.client.test_training import held, sequences, standing

SPAN = Span(0, 9)


def numbers(seed: int, blocks: Sequence[int] = range(9)) -> dict[int, int]:
    rng = random.Random(seed)
    return {block: rng.getrandbits(60) for block in blocks}


def file_of(beside: dict[int, int], span: Span = SPAN) -> bytes:
    return b"".join(BESIDE.pack(block, beside[block]) for block in span if block in beside)


def matrices_of(beside: dict[int, int]) -> Matrices:
    return Matrices(lambda span: file_of(beside, span))


def adapter_of(beside: dict[int, int]) -> Adapter:
    return Adapter(b"", file_of(beside))


def expected(
    passed: Passed, inputs: Sequence[bytes], gradients: Sequence[bytes], beside: dict[int, int]
) -> tuple[list[bytes], list[bytes], list[tuple[int, int]]]:
    """What one process computes: outputs, gradients of the inputs, and of the adapter, in any order."""
    runner, outputs, found, of_adapter, index = ExactRunner(), [], [], list[tuple[int, int]](), 0
    for part in passed.parts:
        for count in part.counts:
            given = runner.put(inputs[index], count)
            outputs.append(bytes(runner.run(Afresh(SPAN, [count], given, adapter_of(beside), part.seed)).data))
            wanted = runner.put(gradients[index], count)
            job = Backward(SPAN, [count], given, wanted, adapter_of(beside), seed=part.seed)
            rows, file = runner.run(job)
            found.append(bytes(rows.data))
            of_adapter += BESIDE.iter_unpack(file)
            index += 1
    return outputs, found, sorted(of_adapter)


async def check(training: Training, seed: int, beside: dict[int, int], *, first: int | None, count: int = 3) -> None:
    inputs, gradients = sequences(seed, count), sequences(seed, count)
    passed = await training.forward(inputs, matrices_of(beside), seed, first)
    back = await training.backward(passed, gradients, first)
    outputs, found, of_adapter = expected(passed, inputs, gradients, beside)
    assert list(passed.outputs) == outputs
    assert list(back.inputs) == ([] if first is not None else found)
    assert sorted(pair for file in back.adapters for pair in BESIDE.iter_unpack(file)) == of_adapter


def adapters_held(world: World) -> int:
    return sum(server.handler.training.adapters.nbytes for server in world.servers.values())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_to_servers_gradients_of_adapters_are_the_same(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        # Sometimes hardly anything can be kept.
        room = rng.choice([2 << 30, 4000, 0])
        world = World(seed, server_config=ServerConfig(activation_bytes=room))
        await standing(world, "0:4", "4:9", "0:4", "4:9", "0:2", "2:5", "3:9", "0:9")
        trainings = [world.training() for _ in range(2)]
        for name in rng.sample(["s0", "s1", "s2", "s3", "s4", "s5", "s6"], rng.randrange(1, 6)):
            moment = rng.uniform(0.0, 0.5)
            if rng.random() < 0.5:
                world.later(moment, world.kill(name))
            else:
                world.later(moment, _set(world, name, frozen=True))
                world.later(moment + rng.uniform(0.5, 20.0), _set(world, name, frozen=False))

        async def train(number: int, training: Training) -> None:
            for step in range(3):
                beside = numbers(100 * seed + 10 * number + step, rng.sample(range(9), rng.randrange(1, 9)))
                first = min(beside) if rng.random() < 0.5 else None
                await check(training, 100 * seed + step, beside, first=first, count=rng.randrange(1, 5))

        await asyncio.gather(*(train(number, training) for number, training in enumerate(trainings)))
        await asyncio.sleep(2 * ServerConfig().training_expiry)
        assert held(world) == adapters_held(world) == 0
        assert all(not server.runner.complaints for server in world.servers.values())
        await world.close()

    run(main())


async def _set(world: World, name: str, *, frozen: bool) -> None:
    (world.network.freeze if frozen else world.network.thaw)(name)


@pytest.mark.parametrize("seed", range(8))
def test_sessions_with_several_adapters_and_none_share_passes_whatever_happens(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        world = World(seed)
        await standing(world, "0:4", "4:9", "0:4", "4:9", "0:9")
        adapters = [numbers(seed + 1), numbers(seed + 2, range(5)), {}, numbers(seed + 3, [8])]
        sessions = [world.session(matrices=matrices_of(each)) if each else world.session() for each in adapters]
        for name in rng.sample(["s0", "s1", "s2", "s3"], rng.randrange(0, 3)):
            world.later(rng.uniform(0.05, 1.0), world.kill(name))
        texts = await asyncio.gather(*(generate(session, [1, 2, 3], 24) for session in sessions))
        assert texts == [reference([1, 2, 3], 24, adapter=adapter_of(each)) for each in adapters]
        assert len({tuple(text) for text in texts}) == len(adapters)
        assert all(not server.runner.complaints for server in world.servers.values())
        await world.close()

    run(main())


def test_what_is_said_to_be_no_gradients_is_asked_of_another_server() -> None:
    async def main() -> None:
        world = World()
        await standing(world, "0:9")
        await world.add("other", SPAN, decode_ms=50.0)
        seen = list[bytes]()

        def refuse_first(matrices: bytes, found: bytes) -> None:
            seen.append(found)
            if len(seen) == 1:
                raise InvalidInput("gradients of other shapes")

        beside, training = numbers(1), world.training()
        inputs = [b"".join(embed(5, i) for i in range(4))]
        passed = await training.forward(inputs, Matrices(lambda span: file_of(beside, span), refuse_first), 1)
        back = await training.backward(passed, inputs)
        assert list(back.inputs) == expected(passed, inputs, inputs, beside)[1]
        assert len(seen) == 2
        assert "s0" in training.view.trust.peers.active(asyncio.get_running_loop().time())
        await world.close()

    run(main())
