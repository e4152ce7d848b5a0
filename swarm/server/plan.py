"""What a server is to host, before it knows which blocks, and what it has once they are loaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarm.contract import Contract
from swarm.server.ends import Ends
from swarm.server.runner import Runner
from swarm.server.throughput import Throughput
from swarm.types import ModelInfo, ServerRecord, Span


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A span that is ready to compute.

    `contract`: with fingerprints of 32 bytes a block; `max_positions`: 0 for no limit; `cache_bytes`: for KV cache and
    history, when it depends on the span; `offered`: the files of the blocks that other servers may have;
    `ends`: of the model, where they are served; `exact_rows`: rows hold what must not be rounded on the way;
    `parameters`: of each block, none where that is not known.
    """

    runner: Runner
    contract: Contract
    throughput: Throughput
    max_positions: int = 0
    cache_bytes: int | None = None
    offered: Mapping[int, Path] = field(default_factory=dict)
    ends: Ends | None = None
    exact_rows: bool = False
    parameters: tuple[int, ...] = ()


Choose = Callable[[Sequence[ServerRecord]], Span]
"""Which blocks to host, given the records of all others."""

Better = Callable[[ServerRecord, Sequence[ServerRecord]], Span | None]
"""Which blocks to host instead, given this server's own record and those of all others; None: none."""

Load = Callable[[Span], Awaitable[Loaded]]
"""Load a span, off the event loop; a cancelled load may finish in the background but holds up nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """One span of a model to be hosted. `choose` and `load` say what and how, `contract` in which numbers, of the whole
    model (None: in float32); without `settle` the first choice stands, whoever else joins; with `better` the span is
    given up for another one where the swarm needs that more."""

    model: ModelInfo
    choose: Choose
    load: Load
    contract: Contract | None = None
    settle: bool = True
    better: Better | None = None
