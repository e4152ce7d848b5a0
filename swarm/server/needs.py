"""Which model of a swarm needs a server most. Pure: models and their records in, an order out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swarm.server.placement import coverage
from swarm.types import ModelInfo, ServerRecord, ServerState


@dataclass(frozen=True, slots=True)
class Need:
    """How a model is served. `unserved`: blocks that no server hosts or loads; `weakest`: decode steps per second of
    all servers together that have the block which has least; `servers`: that serve or load; `queue`: steps that wait
    at them; `dtype`, `quantization`: the numbers that most blocks are computed in, as contracts name them ("": in
    none)."""

    model: ModelInfo
    unserved: int
    weakest: float
    servers: int
    queue: int
    dtype: str = ""
    quantization: str = ""


def need(model: ModelInfo, records: Sequence[ServerRecord]) -> Need:
    """What the records of a model's servers say of it."""
    strength = coverage(records, model.blocks)
    staying = [record for record in records if record.state is not ServerState.DRAINING]
    peers = {record.peer_id for record in staying}
    served: Counter[tuple[str, str]] = Counter()
    for record in staying:
        served[record.contract.dtype, record.contract.quantization] += len(record.span)
    numbers = max(served, key=lambda each: (served[each], each), default=("", ""))
    queue = sum(record.queue for record in staying)
    return Need(model, strength.count(0.0), min(strength), len(peers), queue, *numbers)


def most_needed(needs: Iterable[Need]) -> list[Need]:
    """Those that a session cannot run through come first, of these what lacks the fewest blocks: a server completes
    it soonest. Then what is weakest, which most wait for."""
    return sorted(needs, key=lambda one: (one.unserved == 0, one.unserved, one.weakest, -one.queue, one.model.name))
