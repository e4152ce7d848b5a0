"""How fast a loaded span computes, measured briefly before it is announced."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from swarm.config import PREFILL_POSITIONS
from swarm.jobs import compute
from swarm.server.runner import Runner
from swarm.types import Segment, SequenceKey, Span

DECODE_STEPS = 16
BUDGET = 2.0
"""Seconds after which no further step is begun; at least one prefill and one decode step are made."""

SEQUENCE: SequenceKey = (b"\0" * 16, 0)


@dataclass(frozen=True, slots=True)
class Throughput:
    """`decode_ms`: milliseconds per block for one decode step; `prefill_rate`: positions per second through a block,
    in a pass of `prefill_positions`."""

    decode_ms: float
    prefill_rate: float
    prefill_positions: int = PREFILL_POSITIONS


def measure(
    runner: Runner,
    span: Span,
    hidden_size: int,
    row_bytes: int,
    max_positions: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Throughput:
    """Time a prefill of 128 positions and some decode steps of one sequence, alone on the device; fewer of either
    where a sequence may have only `max_positions`.

    Call it where the runner may be called, before an engine owns it. The first pass warms up and is not counted.
    """
    deadline = clock() + BUDGET
    prefill, decode = _lengths(max_positions)
    row = _random_row(hidden_size, row_bytes)

    def step(start: int, count: int) -> float:
        began = clock()
        compute(runner, span, [Segment(SEQUENCE, start, count)], row * count)
        return clock() - began

    try:
        warm_up = step(0, 1)
        prompt = step(1, prefill) if prefill else warm_up
        steps = [] if decode else [warm_up]
        while len(steps) < decode and (not steps or clock() < deadline):
            steps.append(step(1 + prefill + len(steps), 1))
    finally:
        runner.free(SEQUENCE)
    return Throughput(
        decode_ms=statistics.median(steps) * 1000.0 / len(span),
        prefill_rate=max(prefill, 1) * len(span) / max(prompt, 1e-9),
        prefill_positions=max(prefill, 1),
    )


def _lengths(max_positions: int | None) -> tuple[int, int]:
    """Positions of the prefill, and decode steps, that fit behind the position that warms up."""
    if max_positions is None or max_positions > PREFILL_POSITIONS + DECODE_STEPS:
        return PREFILL_POSITIONS, DECODE_STEPS
    decode = min(DECODE_STEPS, max_positions // 4)
    return max(max_positions - 1 - decode, 0), decode


def _random_row(hidden_size: int, row_bytes: int) -> bytes:
    """One position of harmless numbers, so that a mixture of experts routes as it does at work.

    Random bits would hold NaN. With 0x3c or 0xbc as the high byte they are within ±[1, 1.25) as float16 and within
    ±[0.007, 0.032) as bfloat16 or float32.
    """
    rng = random.Random(0)
    size = row_bytes // hidden_size
    row = bytearray(rng.randbytes(row_bytes))
    row[size - 1 :: size] = bytes(rng.choice((0x3C, 0xBC)) for _ in range(hidden_size))
    return bytes(row)
