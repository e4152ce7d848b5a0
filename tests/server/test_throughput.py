"""Measuring a span with a clock that the runner moves."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from swarm.client.chunks import stage
from swarm.contract import Contract
from swarm.server.throughput import SEQUENCE, measure
from swarm.testing import ByteRunner
from swarm.types import Hop, Segment, SequenceKey, ServerRecord, Span


class SlowRunner(ByteRunner):
    """Takes 10 ms for a pass and 1 ms for each position, whatever the span."""

    can_rollback = True
    on_block = None

    def __init__(self, fails_at: int | None = None) -> None:
        self.now = 0.0
        self.fails_at = fails_at
        self.passes: list[Segment] = []
        self.freed: list[SequenceKey] = []

    def forward(self, span: Span, segments: Sequence[Segment], hidden: bytes) -> memoryview:
        (segment,) = segments
        assert len(hidden) == segment.count * 8
        assert segment.start == sum(earlier.count for earlier in self.passes)
        if len(self.passes) == self.fails_at:
            raise RuntimeError("out of memory")
        self.passes.append(segment)
        self.now += 0.010 + 0.001 * segment.count
        return memoryview(hidden)

    def free(self, sequence: SequenceKey) -> None:
        self.freed.append(sequence)

    def clock(self) -> float:
        return self.now


def test_milliseconds_are_per_block_and_positions_per_second_through_one_block() -> None:
    runner = SlowRunner()
    result = measure(runner, Span(4, 8), hidden_size=4, row_bytes=8, clock=runner.clock)
    assert result.decode_ms == pytest.approx(11.0 / 4)
    assert result.prefill_rate == pytest.approx(128 * 4 / 0.138)
    assert runner.freed == [SEQUENCE]


@pytest.mark.parametrize("max_positions", [None, 400, 40, 5, 1])
def test_clients_read_off_the_record_what_a_pass_takes(max_positions: int | None) -> None:
    """Also where the context is shorter than the prefill by which others measure."""
    runner, span = SlowRunner(), Span(0, 4)
    result = measure(runner, span, hidden_size=4, row_bytes=8, max_positions=max_positions, clock=runner.clock)
    record = ServerRecord(
        "a", Contract("m", span), decode_ms=result.decode_ms, prefill_rate=result.prefill_rate,
        prefill_positions=result.prefill_positions,
    )  # fmt: skip
    read, measured = stage(Hop(record, span)), result.prefill_positions
    assert read.seconds(measured) == pytest.approx(0.010 + 0.001 * measured, rel=0.1)


def test_a_slow_machine_is_measured_briefly() -> None:
    runner = SlowRunner()
    runner.now = 0.0
    ticks = iter(range(0, 1000, 3))
    measure(runner, Span(0, 1), hidden_size=4, row_bytes=8, clock=lambda: float(next(ticks)))
    assert len(runner.passes) == 3


def test_what_a_failed_measurement_held_is_freed() -> None:
    runner = SlowRunner(fails_at=1)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure(runner, Span(0, 1), hidden_size=4, row_bytes=8, clock=runner.clock)
    assert runner.freed == [SEQUENCE]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 16, 64, 128, 144, 145, 146, 4096])
def test_a_short_context_is_measured_within_it(most: int) -> None:
    runner = SlowRunner()
    result = measure(runner, Span(0, 2), hidden_size=4, row_bytes=8, max_positions=most, clock=runner.clock)
    positions = sum(segment.count for segment in runner.passes)
    assert min(most, 145) - 1 <= positions <= min(most, 145)
    assert result.decode_ms == pytest.approx(11.0 / 2)
    assert result.prefill_rate >= 2 / 0.011
    assert runner.freed == [SEQUENCE]
