"""Chunks: against playing the pipeline through, and for named machines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.chunks import GRAIN, LARGEST, Stage, best_chunk, grain_of, pipeline_seconds, stage
from swarm.contract import Contract
from swarm.types import Hop, ServerRecord, Span

stages = st.lists(st.builds(Stage, st.floats(0.0, 0.2), st.floats(1e-5, 0.01)), min_size=1, max_size=6)


def played(positions: int, chunk: int, stages: list[Stage]) -> float:
    """Each stage computes one chunk at a time, in order, as soon as it has it."""
    chunks = -(-positions // chunk)
    free = [0.0] * len(stages)
    for _ in range(chunks):
        arrived = 0.0
        for index, one in enumerate(stages):
            arrived = free[index] = max(arrived, free[index]) + one.seconds(positions / chunks)
    return free[-1]


@given(st.integers(1, 3000), st.integers(1, 600), stages)
def test_the_formula_is_what_happens(positions: int, chunk: int, stages: list[Stage]) -> None:
    assert pipeline_seconds(positions, chunk, stages) == pytest.approx(played(positions, chunk, stages))


@given(st.integers(1, 3000), stages)
def test_no_size_in_use_is_better_than_the_best(positions: int, stages: list[Stage]) -> None:
    best = played(positions, best_chunk(positions, stages), stages)
    assert all(best <= played(positions, size, stages) * 1.000001 for size in (8, 64, 128, 256, LARGEST))


LAPTOP = Stage(0.025, 0.0017)
GPU = Stage(0.002, 0.00002)


@pytest.mark.parametrize(
    ("positions", "stages", "least", "most"),
    [
        pytest.param(512, [LAPTOP, LAPTOP], 48, 128, id="a prompt over two laptops: several chunks"),
        pytest.param(512, [GPU, GPU], 160, 512, id="over two fast ones, whose passes cost more than positions: few"),
        pytest.param(512, [LAPTOP], LARGEST, LARGEST, id="one hop: nothing to overlap"),
        pytest.param(1, [LAPTOP] * 3, LARGEST, LARGEST, id="a decode step is one pass"),
        pytest.param(8, [LAPTOP] * 3, LARGEST, LARGEST, id="so is a window of guesses"),
        pytest.param(64, [LAPTOP] * 3, 16, 64, id="a large batch goes in micro-batches"),
    ],
)
def test_named_machines(positions: int, stages: list[Stage], least: int, most: int) -> None:
    assert least <= best_chunk(positions, stages) <= most


def test_a_stage_is_read_off_a_record() -> None:
    record = ServerRecord("a", Contract("m", Span(0, 16)), decode_ms=2.0, prefill_rate=4000.0)
    read = stage(Hop(record, Span(4, 12)))
    assert read.seconds(1) == pytest.approx(0.016, rel=0.2)
    assert read.seconds(128) == pytest.approx(128 * 8 / 4000.0)
    nonsense = ServerRecord("a", Contract("m", Span(0, 16)), decode_ms=-1.0, prefill_rate=0.0)
    assert stage(Hop(nonsense, Span(0, 1))).per_position > 0


@pytest.mark.parametrize(
    ("prefix_chunks", "grain"),
    [((), GRAIN), ((0, 0), GRAIN), ((1, 2, 4), GRAIN), ((16, 0), 16), ((12, 16), 48), ((509, 8), GRAIN)],
)
def test_prompts_are_cut_where_all_hops_compare_them(prefix_chunks: tuple[int, ...], grain: int) -> None:
    assert grain_of(prefix_chunks) == grain
    assert best_chunk(2000, [Stage(0.01, 0.001)] * 3, grain) % grain == 0
