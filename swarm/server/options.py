"""What a contributor may choose. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.types import Span


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to host and how; None, or no model, leaves the choice to swarm. `memory` in bytes, `threads` on a CPU.

    `rebalance`: whether other blocks are hosted instead when the swarm needs these more. `max_disk`: bytes that may
    stay on disk of what was fetched or quantized.
    """

    model: str
    blocks: Span | None = None
    device: str | None = None
    dtype: str | None = None
    memory: int | None = None
    cache_tokens: int | None = None
    threads: int | None = None
    token: str | None = None
    revision: str | None = None
    quantization: str | None = None
    max_disk: int | None = None
    rebalance: bool = True
