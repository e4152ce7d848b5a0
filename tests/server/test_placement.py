"""Where a new server goes, by tables of named machines and by properties."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.contract import Contract
from swarm.errors import InvalidInput
from swarm.server.placement import candidates, choose_span, coverage
from swarm.types import ServerRecord, ServerState, Span

GIB = 1024**3


@dataclass(frozen=True)
class Machine:
    """What a server has: memory in bytes, and milliseconds per block for one decode step."""

    memory: int
    decode_ms: float

    def serving(self, span: str, state: ServerState = ServerState.ONLINE) -> ServerRecord:
        parsed = Span.parse(span)
        prints = tuple(bytes(8) for _ in parsed)
        return ServerRecord(f"peer-{span}", Contract("model", parsed, prints), state, decode_ms=self.decode_ms)


RTX_4090 = Machine(memory=22 * GIB, decode_ms=0.9)
M2_MAX = Machine(memory=24 * GIB, decode_ms=2.2)
CPU_LAPTOP = Machine(memory=6 * GIB, decode_ms=60.0)

LLAMA_70B = [int(1.7 * GIB)] * 80
LLAMA_8B = [int(0.45 * GIB)] * 32


def chosen(records: list[ServerRecord], blocks: list[int], machine: Machine, seeds: int = 20) -> set[str]:
    """Every span that this machine may choose, over many sources of randomness."""
    return {str(choose_span(records, blocks, machine.memory, random.Random(seed))) for seed in range(seeds)}


def test_spans_begin_and_end_where_blocks_can_be_parted() -> None:
    joined = (Span(1, 4), Span(4, 6))
    assert [str(span) for span in candidates([1] * 8, 5, joined)] == ["0:4", "1:6", "4:8", "6:8", "7:8"]
    assert [str(span) for span in candidates([1] * 8, 2, joined)] == ["0:1", "4:6", "6:8", "7:8"]
    assert {str(choose_span([], [1] * 8, 3, random.Random(seed), joined)) for seed in range(20)} <= {
        "1:4",
        "4:7",
        "0:1",
    }
    with pytest.raises(InvalidInput, match=r"no blocks fit \(0:8 must stay together\): the smallest needs 80 B"):
        candidates([10] * 8, 79, (Span(0, 8),))


@pytest.mark.parametrize(
    ("situation", "records", "blocks", "machine", "expected"),
    [
        ("alone, all fits", [], LLAMA_8B, RTX_4090, {"0:32"}),
        ("alone, a part fits: an edge, so that one gap remains", [], LLAMA_70B, RTX_4090, {"0:12", "68:80"}),
        ("alone, a laptop", [], LLAMA_70B, CPU_LAPTOP, {"0:3", "77:80"}),
        ("the gap that is left", [RTX_4090.serving("0:40"), M2_MAX.serving("52:80")], LLAMA_70B, RTX_4090, {"40:52"}),
        (
            "a gap wider than the machine: at one of its ends",
            [RTX_4090.serving("0:40"), RTX_4090.serving("60:80")],
            LLAMA_70B,
            RTX_4090,
            {"40:52", "48:60"},
        ),
        (
            "a gap narrower than the machine, beside slow blocks: the gap, then the slow blocks",
            [CPU_LAPTOP.serving("0:10"), RTX_4090.serving("20:80")],
            LLAMA_70B,
            RTX_4090,
            {"8:20"},
        ),
        (
            "all hosted: where the slow one is",
            [RTX_4090.serving("0:16"), CPU_LAPTOP.serving("16:19"), RTX_4090.serving("19:32")],
            LLAMA_8B,
            Machine(memory=3 * GIB // 2, decode_ms=2.0),
            {"16:19"},
        ),
        (
            "two slow servers are stronger than one",
            [M2_MAX.serving("0:16"), M2_MAX.serving("0:16"), M2_MAX.serving("16:32")],
            LLAMA_8B,
            Machine(memory=8 * GIB, decode_ms=2.0),
            {"15:32"},
        ),
        (
            "a server that leaves does not count",
            [RTX_4090.serving("0:16"), RTX_4090.serving("16:32", ServerState.DRAINING)],
            LLAMA_8B,
            Machine(memory=int(16 * 0.45 * GIB) + 1024, decode_ms=2.0),
            {"16:32"},
        ),
        (
            "a server that is still loading does count",
            [RTX_4090.serving("0:16", ServerState.JOINING)],
            LLAMA_8B,
            Machine(memory=int(16 * 0.45 * GIB) + 1024, decode_ms=2.0),
            {"16:32"},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_where_machines_go(
    situation: str, records: list[ServerRecord], blocks: list[int], machine: Machine, expected: set[str]
) -> None:
    assert chosen(records, blocks, machine) == expected


def test_blocks_of_different_sizes_are_counted_as_they_are() -> None:
    dense_then_experts = [GIB, GIB, GIB] + [8 * GIB] * 5
    assert [str(span) for span in candidates(dense_then_experts, 10 * GIB)] == [
        "0:3", "1:4", "2:4", "3:4", "4:5", "5:6", "6:7", "7:8",
    ]  # fmt: skip


def test_no_room_says_how_much_is_missing() -> None:
    with pytest.raises(InvalidInput, match=r"1\.7 GiB.*1\.0 GiB.*--memory"):
        choose_span([], LLAMA_70B, GIB)


def test_servers_that_join_one_after_the_other_cover_the_model() -> None:
    machines = [RTX_4090, M2_MAX, RTX_4090, RTX_4090, M2_MAX, RTX_4090, RTX_4090]
    for seed in range(20):
        rng, records = random.Random(seed), list[ServerRecord]()
        for machine in machines:
            records.append(machine.serving(str(choose_span(records, LLAMA_70B, machine.memory, rng))))
        assert min(coverage(records, 80)) > 0, [str(record.span) for record in records]


BLOCKS = st.lists(st.integers(1, 100), min_size=1, max_size=24)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[ServerRecord], list[int], int]:
    blocks = draw(BLOCKS)
    records = []
    for _ in range(draw(st.integers(0, 6))):
        first = draw(st.integers(0, len(blocks) - 1))
        last = draw(st.integers(first + 1, len(blocks)))
        machine = Machine(0, draw(st.floats(0.1, 100.0)))
        records.append(machine.serving(f"{first}:{last}", draw(st.sampled_from(ServerState))))
    return records, blocks, draw(st.integers(min(blocks), 2000))


@given(situations(), st.integers())
def test_the_span_fits_and_cannot_grow(situation: tuple[list[ServerRecord], list[int], int], seed: int) -> None:
    records, blocks, memory = situation
    span = choose_span(records, blocks, memory, random.Random(seed))
    cost = sum(blocks[block] for block in span)
    assert cost <= memory
    assert span.last == len(blocks) or cost + blocks[span.last] > memory


@given(situations(), st.integers())
def test_the_same_randomness_gives_the_same_span(
    situation: tuple[list[ServerRecord], list[int], int], seed: int
) -> None:
    records, blocks, memory = situation
    backwards = list(reversed(records))
    first = choose_span(records, blocks, memory, random.Random(seed))
    assert first == choose_span(backwards, blocks, memory, random.Random(seed))


@given(situations(), st.integers())
def test_an_empty_block_is_preferred_to_a_hosted_one(
    situation: tuple[list[ServerRecord], list[int], int], seed: int
) -> None:
    records, blocks, memory = situation
    strength = coverage(records, len(blocks))
    span = choose_span(records, blocks, memory, random.Random(seed))
    closed = sum(strength[block] == 0 for block in span)
    assert closed == max(sum(strength[block] == 0 for block in other) for other in candidates(blocks, memory))


def test_coverage_ignores_blocks_that_the_model_does_not_have() -> None:
    assert coverage([RTX_4090.serving("30:40")], 32)[29:] == [
        0.0,
        pytest.approx(111.1, 0.01),
        pytest.approx(111.1, 0.01),
    ]
