"""What a contributor may choose. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.config import ANY
from swarm.types import Span


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to host and how; None, or no model, leaves the choice to swarm. `memory` in bytes, `threads` on a CPU.

    `rebalance`: whether other blocks are hosted instead when the swarm needs these more. `max_disk`: bytes that may
    stay on disk of what was fetched or quantized. `offer_blocks`: whether other servers may have blocks from
    this one, by default where everybody may have the model from the hub; `blocks_from`: of `BLOCK_SOURCES`.
    `serve_ends`: whether head and embeddings are served, too. `cpu_offload`: how many blocks are in main memory until
    they are computed on the device.
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
    offer_blocks: bool | None = None
    blocks_from: str = ANY
    serve_ends: bool = False
    cpu_offload: int = 0
