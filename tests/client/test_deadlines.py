"""When a step is late and a hop dead: one history a line, and swarms in which nobody is dead."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.chunks import Stage
from swarm.client.deadlines import SHORT, Pace, expected_seconds
from swarm.config import ClientConfig
from swarm.testing import LinkConditions, World, generate, reference, run
from swarm.types import Span

CONFIG = ClientConfig(late_after=1.0, silence=3.0, probe_interval=0.5)


def pace(*seconds: float) -> Pace:
    made = Pace()
    for each in seconds:
        made.note(each, 1)
    return made


@pytest.mark.parametrize(
    ("steps", "positions", "late", "silence"),
    [
        pytest.param([0.07] * 20, 1, 0.21, 1.0, id="a few times a step, but not before a second"),
        pytest.param([0.2] * 20, 1, 0.6, 1.2, id="slow steps have longer"),
        pytest.param([0.07] * 20 + [0.3], 1, 0.9, 1.8, id="a stall is remembered"),
        pytest.param([0.3] + [0.07] * 256, 1, 0.21, 1.0, id="and forgotten"),
        pytest.param([0.001] * 20, 1, 0.1, 1.0, id="nothing is late at once"),
        pytest.param([2.0] * 20, 1, 1.0, 3.0, id="nor later than was said"),
        pytest.param([0.07] * 20, SHORT + 1, 1.0, 3.0, id="a prompt takes what it takes"),
        pytest.param([0.15], 1, 0.9, 1.8, id="one step says little"),
        pytest.param([0.001], 1, 0.6, 1.2, id="less than what the servers announce"),
        pytest.param([], 1, 0.6, 1.2, id="which is all there is before the first"),
    ],
)
def test_deadlines(steps: list[float], positions: int, late: float, silence: float) -> None:
    found = pace(*steps).deadlines(positions, 0.1, CONFIG)
    assert found.late == pytest.approx(late)
    assert found.silence == pytest.approx(silence)
    assert found.probe_interval == min(0.5, found.silence / 4)


def test_what_follows_a_change_of_route_is_no_measure() -> None:
    made = pace(*[0.07] * 20)
    made.begin()
    assert made.deadlines(1, 0.05, CONFIG).silence == CONFIG.silence
    made.note(9.0, 1)
    assert made.slowest == 0.07
    assert made.deadlines(1, 0.05, CONFIG).silence == 1.0


@given(st.lists(st.floats(0.0, 100.0)), st.integers(1, 100), st.floats(0.0, 10.0))
def test_limits_hold_whatever_was_seen(steps: list[float], positions: int, expected: float) -> None:
    found = pace(*steps).deadlines(positions, expected, CONFIG)
    assert 0.1 <= found.late <= CONFIG.late_after
    assert 1.0 <= found.silence <= CONFIG.silence
    assert found.probe_interval <= found.silence / 4


def test_a_step_takes_every_hop_and_the_way() -> None:
    assert expected_seconds([Stage(0.01, 0.001)] * 3, [20.0, 40.0, 0.0]) == pytest.approx(0.093)


# ---- nobody is dead ---------------------------------------------------------------------------------------------

TWICE = {"a1": Span(0, 3), "a2": Span(0, 3), "b1": Span(3, 6), "b2": Span(3, 6), "c1": Span(6, 9), "c2": Span(6, 9)}


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param(LinkConditions(delay=0.05, jitter=0.1), id="jitter"),
        pytest.param(LinkConditions(delay=0.04, loss=0.05, retransmit=0.3), id="loss"),
        pytest.param(LinkConditions(delay=0.1, jitter=0.4, loss=0.02), id="both"),
        pytest.param(LinkConditions(delay=0.02, rate=20_000.0), id="a thin line"),
    ],
)
def test_no_false_alarm_on_lines_that_stall(conditions: LinkConditions) -> None:
    async def main() -> None:
        world = World(conditions=conditions)
        for name, span in TWICE.items():
            await world.add(name, span)
        session = world.session()
        assert await generate(session, range(30), 300) == reference(range(30), 300)
        assert session.reroutes == 0
        await world.close()

    run(main())


def test_no_false_alarm_among_prompts_of_others_and_slow_passes() -> None:
    """Passes that now and then take a hundred times as long; five others send prompts and leave."""

    async def main() -> None:
        rng = random.Random(1)
        world = World(step_seconds=lambda n: (0.002 + 0.0005 * n) * (100 if rng.random() < 0.01 else 1))
        for name, span in TWICE.items():
            await world.add(name, span)
        session = world.session()
        others = [world.session() for _ in range(5)]

        async def prompts(index: int) -> None:
            for turn in range(4):
                await generate(others[index], range(300), 2, sequence=turn)
                await asyncio.sleep(0.7)

        tokens, *_ = await asyncio.gather(generate(session, range(30), 300), *(prompts(i) for i in range(5)))
        assert tokens == reference(range(30), 300)
        assert [each.reroutes for each in (session, *others)] == [0] * 6
        await world.close()

    run(main())


@pytest.mark.parametrize("at", [3, 40])
def test_a_frozen_hop_is_left_within_seconds(at: int) -> None:
    async def main() -> float:
        world = World(step_seconds=lambda n: 0.02)
        for name, span in TWICE.items():
            await world.add(name, span)
        session, times = world.session(), list[float]()

        def on_token(index: int) -> None:
            times.append(asyncio.get_running_loop().time())
            if index == at and session.route is not None:
                world.network.freeze(session.route.hops[1].peer_id)

        assert await generate(session, range(30), 60, on_token=on_token) == reference(range(30), 60)
        world.network.thaw(next(iter(world.network._frozen)))
        await world.close()
        return times[at + 1] - times[at]

    assert run(main()) < 2.9
