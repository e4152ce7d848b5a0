"""Imagined machines as the records that they would announce: each joins after those before it, as servers do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from swarm.config import PREFILL_POSITIONS
from swarm.contract import FINGERPRINT_BYTES, Contract
from swarm.errors import InvalidInput
from swarm.memory import SHARE
from swarm.planning.machines import MOST, Machine
from swarm.planning.shape import Shape
from swarm.server.placement import choose_span, coverage
from swarm.server.sizing import Allowance, Sizes
from swarm.types import ServerRecord, Span


def arrange(machines: Sequence[Machine], shape: Shape, cache_tokens: int) -> list[tuple[Machine, ServerRecord]]:
    """Who hosts what, each with a KV cache of `cache_tokens` positions. Raises InvalidInput where no block fits."""
    rng = random.Random(0)
    placed: list[tuple[Machine, ServerRecord]] = []
    for machine in machines:
        while len(placed) < MOST and not (machine.enough and _whole(placed, shape)):
            placed.append((machine, _join(machine, placed, shape, cache_tokens, rng)))
            if not machine.enough:
                break
    return placed


def _whole(placed: Sequence[tuple[Machine, ServerRecord]], shape: Shape) -> bool:
    return min(coverage((record for _, record in placed), shape.blocks)) > 0


def _join(
    machine: Machine,
    placed: Sequence[tuple[Machine, ServerRecord]],
    shape: Shape,
    cache_tokens: int,
    rng: random.Random,
) -> ServerRecord:
    memory = int(machine.memory_gb * 1e9 * SHARE)
    costs = Allowance(memory, 0, cache_tokens).block_bytes(Sizes(shape.weight_bytes, shape.cache_bytes))
    try:
        span = choose_span((record for _, record in placed), costs, memory, rng, shape.joined)
    except InvalidInput as error:
        raise InvalidInput(f"{machine.name}: {error}") from error
    return announced(machine, span, shape, f"{len(placed) + 1}", cache_tokens)


def announced(machine: Machine, span: Span, shape: Shape, peer_id: str, cache_tokens: int = 0) -> ServerRecord:
    """What a machine that hosts `span` would say of itself."""
    decode_ms = machine.decode_ms
    if decode_ms is None:
        mean = sum(shape.weight_bytes[block] for block in span) / len(span)
        decode_ms = mean / ((machine.bandwidth_gbs or 1.0) * 1e6) + machine.overhead_ms
    rate = machine.prefill_rate
    if rate is None:  # two operations a weight; the weights are read, too
        parameters = sum(shape.parameters[block] for block in span) / len(span)
        seconds = PREFILL_POSITIONS * 2 * parameters / ((machine.tflops or 1.0) * 1e12)
        rate = PREFILL_POSITIONS / (decode_ms / 1000 + seconds)
    whole = Contract("plan", Span(0, shape.blocks), joined=shape.joined)
    return ServerRecord(
        peer_id,
        replace(whole.on(span), fingerprints=(bytes(FINGERPRINT_BYTES),) * len(span)),
        free_tokens=cache_tokens,
        decode_ms=decode_ms,
        prefill_rate=rate,
        prefill_positions=PREFILL_POSITIONS,
        name=machine.name,
        expires=1.0,
    )
