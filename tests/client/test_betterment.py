"""A session leaves hops that have become slow where others are faster by enough, and stays where they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from swarm.client.betterment import FEWEST_STEPS, Stopwatch, is_worth
from swarm.testing import InlineEngine, World, generate, reference, run
from swarm.types import Span
from swarm.wire import swarm_pb2 as pb

PROMPT = list(range(7))
KEY = "a", Span(0, 3)


def tally(steps: int, seconds: float, phase: pb.Tally.Phase = pb.Tally.DECODE) -> pb.Tally:
    return pb.Tally(phase=phase, steps=steps, queue=seconds / 4, compute=seconds * 3 / 4)


def test_what_counts_are_the_steps_since_the_last_look() -> None:
    watch = Stopwatch()
    assert watch.take({KEY: [tally(10, 1.0), tally(3, 50.0, pb.Tally.PREFILL)]}) == {KEY: pytest.approx(0.1)}
    assert watch.take({KEY: [tally(30, 5.0)]}) == {KEY: pytest.approx(0.2)}
    assert watch.take({KEY: [tally(30 + FEWEST_STEPS - 1, 9.0)]}) == {}
    assert watch.take({}) == {}


@pytest.mark.parametrize(
    ("now_ms", "then_ms", "steps", "replay_seconds", "expected"),
    [
        pytest.param(100.0, 50.0, 100, 1.0, True, id="half the time"),
        pytest.param(100.0, 80.0, 10_000, 0.0, False, id="a little faster"),
        pytest.param(100.0, 50.0, 10, 1.0, False, id="the past costs more than the rest gains"),
        pytest.param(50.0, 100.0, 100, 0.0, False, id="slower"),
    ],
)
def test_what_is_worth_it(now_ms: float, then_ms: float, steps: int, replay_seconds: float, expected: bool) -> None:
    assert is_worth(now_ms, then_ms, steps, replay_seconds) is expected


def slow_down(world: World, name: str, seconds: float) -> None:
    engine = world.servers[name].hosted.engine
    assert isinstance(engine, InlineEngine)
    engine._seconds = lambda positions: seconds


async def text(
    world: World, tokens: int, after: float = 0.0, happening: Callable[[], None] = lambda: None
) -> tuple[list[int], int, float]:
    """A text, the reroutes in it, and the seconds that it took; something happens in the middle."""
    loop, session = asyncio.get_running_loop(), world.session()
    loop.call_later(after, happening)
    began = loop.time()
    found = await generate(session, PROMPT, tokens)
    took, reroutes = loop.time() - began, session.reroutes
    await session.close()
    return found, reroutes, took


def test_a_hop_that_became_slow_is_left() -> None:
    async def scenario() -> None:
        world = World(step_seconds=lambda positions: 0.003 + 0.0002 * positions)
        for name, span in {"a": Span(0, 4), "b": Span(4, 9), "c": Span(4, 9)}.items():
            await world.add(name, span, decode_ms=1.0 if name != "c" else 1.1)
        found, reroutes, took = await text(world, 1500, 5.0, lambda: slow_down(world, "b", 0.5))
        assert found == reference(PROMPT, 1500)
        assert reroutes == 1
        assert took < 1500 * 0.5 / 4
        await world.close()

    run(scenario())


def test_where_all_are_alike_it_stays() -> None:
    async def scenario() -> None:
        world = World(step_seconds=lambda positions: 0.05)
        for name in ("a", "b", "c"):
            await world.add(name, Span(0, 9), decode_ms=1.0)
        texts = await asyncio.gather(*(text(world, 1000) for _ in range(4)))
        assert [reroutes for _, reroutes, _ in texts] == [0] * 4
        await world.close()

    run(scenario())


def test_a_server_that_is_slow_alone_is_kept() -> None:
    async def scenario() -> None:
        world = World(step_seconds=lambda positions: 0.003)
        await world.add("a", Span(0, 9), decode_ms=1.0)
        found, reroutes, _ = await text(world, 300, 0.2, lambda: slow_down(world, "a", 0.5))
        assert found == reference(PROMPT, 300) and reroutes == 0
        await world.close()

    run(scenario())
