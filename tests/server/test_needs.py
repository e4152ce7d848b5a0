"""Which model of a swarm a server is needed for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from swarm.contract import Contract
from swarm.server.needs import most_needed, need
from swarm.types import ModelInfo, ServerRecord, ServerState, Span


def model(name: str) -> ModelInfo:
    return ModelInfo(name, name, 4, 8)


def record(
    span: tuple[int, int], decode_ms: float = 10, state: ServerState = ServerState.ONLINE, queue: int = 0
) -> ServerRecord:
    return ServerRecord(str(span), Contract("", Span(*span)), state=state, decode_ms=decode_ms, queue=queue)


def ranked(**records: Sequence[ServerRecord]) -> list[str]:
    return [one.model.name for one in most_needed(need(model(name), found) for name, found in records.items())]


def test_what_no_session_can_run_through_comes_first_and_of_it_what_lacks_least() -> None:
    assert ranked(
        whole=[record((0, 4))],
        none=[],
        nearly=[record((0, 3))],
        leaving=[record((0, 2)), record((2, 4), state=ServerState.DRAINING)],
    ) == ["nearly", "leaving", "none", "whole"]


def test_among_whole_models_the_weakest_block_decides_then_who_waits() -> None:
    assert ranked(
        fast=[record((0, 4))],
        slow_end=[record((0, 2), 1), record((2, 4), 80)],
        busy=[record((0, 4), queue=5)],
    ) == ["slow_end", "busy", "fast"]


def test_one_who_loads_counts_as_one_who_serves() -> None:
    one = need(model("m"), [record((0, 4), state=ServerState.JOINING)])
    assert (one.unserved, one.servers) == (0, 1)


def test_the_numbers_are_those_of_most_blocks() -> None:
    other = record((0, 3))
    other = replace(other, contract=replace(other.contract, dtype="bfloat16", quantization="int8-g32-v1"))
    one = need(model("m"), [other, record((0, 2))])
    assert (one.dtype, one.quantization) == ("bfloat16", "int8-g32-v1")
    assert (need(model("m"), []).dtype, need(model("m"), []).quantization) == ("", "")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.floats(0.01, 1e6)), max_size=6))
def test_a_server_more_never_makes_a_model_needier(found: list[tuple[int, int, float]]) -> None:
    records = [record((first, first + count), ms) for first, count, ms in found]
    before = need(model("m"), records)
    after = need(model("m"), [*records, record((0, 4))])
    assert after.unserved <= before.unserved
    assert after.weakest >= before.weakest
