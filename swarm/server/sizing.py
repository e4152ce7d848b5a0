"""How much memory a span takes, and how much there is. The arithmetic is pure; `available_memory` asks the machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from swarm.errors import InvalidInput
from swarm.types import Span

SHARE = 0.8
"""Of the memory that is free now, what a server takes when nobody says how much: the rest is for activations."""
CACHE_SHARE = 0.25
"""The default KV cache takes no more than this share of the memory."""


def size(count: float) -> str:
    """`count` bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


@dataclass(frozen=True, slots=True)
class Sizes:
    """For each block of a model: bytes of weights, and bytes of KV cache for one position."""

    weights: tuple[int, ...]
    cache: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a server may use, in bytes; `cache_tokens`: positions of KV cache, when asked for, else `cache_bytes`."""

    memory: int
    cache_bytes: int
    cache_tokens: int | None = None

    def fixed(self) -> int:
        """Bytes of KV cache that do not depend on the span."""
        return 0 if self.cache_tokens is not None else min(self.cache_bytes, int(self.memory * CACHE_SHARE))

    def block_bytes(self, sizes: Sizes) -> list[int]:
        """What each block costs: weights, and its part of a KV cache of `cache_tokens` positions."""
        tokens = self.cache_tokens or 0
        return [weights + cache * tokens for weights, cache in zip(sizes.weights, sizes.cache, strict=True)]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What hosting `span` takes. `token_bytes`: KV cache for one position through the whole span."""

    span: Span
    weight_bytes: int
    cache_bytes: int
    token_bytes: int

    @property
    def total(self) -> int:
        return self.weight_bytes + self.cache_bytes

    @property
    def cache_tokens(self) -> int:
        return self.cache_bytes // max(self.token_bytes, 1)


def footprint(span: Span, sizes: Sizes, allowance: Allowance) -> Footprint:
    """What `span` takes. Raises InvalidInput when the model does not have these blocks."""
    if span.last > len(sizes.weights):
        raise InvalidInput(f"blocks {span} do not exist: the model has blocks 0:{len(sizes.weights)}")
    token_bytes = sum(sizes.cache[block] for block in span)
    tokens = allowance.cache_tokens
    cache_bytes = allowance.fixed() if tokens is None else tokens * token_bytes
    return Footprint(span, sum(sizes.weights[block] for block in span), cache_bytes, token_bytes)


def available_memory(device: str) -> int:
    """Bytes that a server may use on `device` by default: most of what is free now."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0] * SHARE)
    return int(min(_free_memory(), *_container_limits()) * SHARE)


def _free_memory() -> int:
    """Main memory that can be had without swapping."""
    if sys.platform == "linux":
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # macOS does not say how much it could free in a word; half of what is there is a guess on the safe side.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _container_limits(root: Path = Path("/sys/fs/cgroup")) -> Iterable[int]:
    """What a container leaves of its limit, if there is one."""
    try:
        limit = (root / "memory.max").read_text(encoding="ascii").strip()
        used = (root / "memory.current").read_text(encoding="ascii").strip()
        yield int(limit) - int(used)
    except (OSError, ValueError):
        yield sys.maxsize
