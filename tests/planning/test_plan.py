"""What swarm-plan says of machines and a model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.cli import plan
from swarm.client.chunks import Stage
from swarm.client.routing import Conditions
from swarm.config import ClientConfig
from swarm.errors import InvalidInput, MissingBlocks
from swarm.planning.arrange import arrange
from swarm.planning.distances import distances
from swarm.planning.flow import flow_rate, shared_prompt
from swarm.planning.machines import Machine, parse, read
from swarm.planning.shape import Shape
from swarm.planning.speed import Line, lines, together
from swarm.testing import LinkConditions, World
from swarm.testing.clock import run as simulate
from swarm.types import ServerState, Span

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SHAPE = Shape("m", (10**9,) * 8, (10**9,) * 8, (1000,) * 8, 8192, 10**8)
GOOD = '[[machines]]\nname = "a"\nmemory_gb = 6\nbandwidth_gbs = 100\ntflops = 10\n'


def planned(machines: list[Machine], delay: float = 0.0) -> list[Line]:
    records = [record for _, record in arrange(machines, SHAPE, 1000)]
    rtt = {record.peer_id: 2 * delay for record in records}
    return list(lines(records, 8, Conditions(rtt_ms=rtt), {}, 0.001))


def machine(memory: float = 6, bandwidth: float = 100, enough: bool = False) -> Machine:
    return Machine("a", memory, bandwidth, overhead_ms=0.5, tflops=10, enough=enough)


@pytest.mark.parametrize(("memory", "count"), [(11, 1), (6, 2), (4, 3), (1.5, 8)])
def test_there_are_as_many_machines_as_the_model_needs(memory: float, count: int) -> None:
    assert len(arrange([machine(memory, enough=True)], SHAPE, 1000)) == count


def test_a_token_takes_the_weights_the_overheads_and_the_ways() -> None:
    (line,) = planned([machine()] * 2, delay=20)
    # 8 blocks of 10 ms and 0.5 ms, three ways of 20 ms, two hops' framing, the head
    assert line.latency() == pytest.approx(0.084 + 0.060 + 0.002 + 0.001, rel=0.02)
    assert line.bottleneck()[0] == "blocks"
    assert planned([machine()] * 2, delay=500)[0].bottleneck()[0] == "delays"


def test_blocks_that_nobody_hosts_are_named() -> None:
    with pytest.raises(MissingBlocks):
        planned([machine()])
    with pytest.raises(InvalidInput, match="a: no block fits"):
        planned([machine(memory=1)])


def test_machines_that_make_a_second_route_serve_other_sessions() -> None:
    one, two = planned([machine()] * 2), planned([machine()] * 4)
    assert (len(one), len(two)) == (1, 2)
    assert together(two, 2) == pytest.approx(2 * together(one, 1))
    assert together(one, 1) < together(one, 8) < together(two, 8)


@settings(max_examples=15)
@given(st.floats(1, 1000), st.floats(0, 500), st.integers(1, 24))
def test_several_sessions_are_not_slower_than_one_together_and_never_faster_each(
    bandwidth: float, delay: float, sessions: int
) -> None:
    (line,) = planned([machine(bandwidth=bandwidth)] * 2, delay)
    assert line.rate(sessions) <= sessions * line.rate(1) * 1.05
    assert line.rate(sessions) >= line.rate(1) * 0.95
    assert line.rate(1) == pytest.approx(1 / line.latency(), rel=1e-6)
    assert 0 < line.prompt(64) <= line.prompt(128)


def test_sessions_in_flow_are_as_fast_as_such_a_swarm_was() -> None:
    # Three servers 40 ms away whose passes take 30 ms and 3 for each row made 5.05 tokens/s of one session, and 23.8 of
    # eight (docs/measurements.md); the client took about 19 ms.
    hops, ways = [Stage(0.030, 0.003)] * 3, [0.020] * 4
    assert flow_rate(hops, ways, 0.019, 1) == pytest.approx(5.05, rel=0.02)
    assert flow_rate(hops, ways, 0.019, 8) == pytest.approx(23.8, rel=0.15)


def test_what_is_on_one_machine_shares_its_cores() -> None:
    # Every row is a pass's whole cost: nothing is gained by company, and all that can be done at a time is.
    hops, ways = [Stage(0.0, 0.010)] * 4, [0.0] * 5
    rates = [flow_rate(hops, ways, 1e-6, 8, cores) for cores in (1.0, 2.0, 4.0)]
    assert rates[0] == pytest.approx(25.0, rel=0.15) and rates[0] < 1.4 * rates[0] < rates[1] <= rates[2]
    assert flow_rate(hops, ways, 1e-6, 1, 1.0) == pytest.approx(flow_rate(hops, ways, 1e-6, 1))
    assert shared_prompt(1.0, [0.5, 0.5, 0.5], 1.0) == 1.5
    assert shared_prompt(1.0, [0.5, 0.5, 0.5], None) == shared_prompt(1.0, [0.5], 2.0) == 1.0


def test_one_client_makes_one_token_after_the_other_and_many_do_not() -> None:
    assert flow_rate([Stage(0.001, 0.0)], [0.0, 0.0], 0.1, 8, 9.0) == pytest.approx(10.0, rel=0.05)
    assert flow_rate([Stage(0.001, 0.0)], [0.0, 0.0], 0.1, 8) > 70.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no machines"),
        ("[[machines", "not TOML"),
        ("machines = 3", "no machines"),
        ("machines = [3]", "not a table"),
        (GOOD + "colour = 1", "'colour' is not one of"),
        (GOOD + "count = 0", "count is neither"),
        (GOOD + "count = true", "count is neither"),
        (GOOD + "decode_ms = 1", "one of bandwidth_gbs and decode_ms"),
        (GOOD + "prefill_rate = 1", "one of tflops and prefill_rate"),
        (GOOD + "delay_ms = nan", "delay_ms is not between"),
        (GOOD + "delay_ms = true", "delay_ms is not a number"),
        (GOOD.replace("6", "-6"), "memory_gb is not between"),
        (GOOD.replace("memory_gb = 6", ""), "memory_gb is missing"),
        (GOOD + "[client]\nbandwidth_gbs = 0", "bandwidth_gbs is not between"),
        (GOOD.replace('"a"', "1"), "name is not a text"),
    ],
)
def test_what_is_no_plan_is_refused_in_a_line(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        parse(text)
    assert "\n" not in str(refused.value)


@given(st.text(max_size=200) | st.text(max_size=60).map(lambda more: GOOD + more))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        machines, _ = parse(text)
    except InvalidInput:
        return
    assert machines


def test_a_model_without_weights_is_planned() -> None:
    asked = [str(EXAMPLES / "llama-3.1-405b" / "config.json"), "--machines", str(EXAMPLES / "machines.toml")]
    done = CliRunner().invoke(plan.main, [*asked, "--quantization", "int4", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["blocks"], len(report["machines"])) == (126, 14)
    assert report["block_bytes"] == pytest.approx(3.19e9 * 5 / 8, rel=0.01)
    assert list(report["tokens_per_second"]) == ["1", "8", "64"]


def test_machines_have_to_come_from_somewhere(tmp_path: Path) -> None:
    done = CliRunner().invoke(plan.main, ["m", "--machines", str(tmp_path / "none.toml")])
    assert done.exit_code == 1 and "No such file" in done.stderr


def test_files_that_never_end_are_not_read_to_their_end(tmp_path: Path) -> None:
    long = tmp_path / "long.toml"
    long.write_text("# " + "long " * 300_000)
    for path, words in ((Path("/dev/zero"), "not a file"), (tmp_path, "not a file"), (long, "longer than")):
        with pytest.raises(InvalidInput, match=words):
            read(path)


def test_servers_are_as_far_as_they_are_from_here() -> None:
    async def run() -> None:
        world = World(conditions=LinkConditions(delay=0.02, rate=1e6))
        for name, span in (("a", Span(0, 4)), ("b", Span(4, 9))):
            await world.add(name, span, codecs=("raw", "int8"))
        host = world.network.host("planner")
        records = [server.record for server in world.servers.values()]
        gone = replace(records[0], peer_id="nobody")
        far = await distances(host, [*records, gone], ClientConfig())
        assert sorted(far) == ["a", "b"]
        for one in far.values():
            assert one.rtt_ms == pytest.approx(40, rel=0.1)
            assert one.bytes_per_second == pytest.approx(1e6, rel=0.2)
        await asyncio.sleep(1)  # for what was closed here to be heard of there
        assert all(not server.hosted.statistics().sessions for server in world.servers.values())
        await host.close()
        await world.close()

    simulate(run())


def test_only_servers_that_take_sessions_are_planned_with() -> None:
    records = [record for _, record in arrange([machine()] * 2, SHAPE, 1000)]
    joining = replace(records[0], state=ServerState.JOINING)
    assert plan.computing_alike([joining, records[1]], None, None) == [records[1]]
