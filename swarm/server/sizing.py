"""How much memory a span takes. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.errors import InvalidInput
from swarm.types import Span

CACHE_SHARE = 0.25
"""The default KV cache takes no more than this share of the memory."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """For each block of a model: bytes of weights, and bytes of KV cache for one position.

    `joined`: runs of blocks that must stay together.
    """

    weights: tuple[int, ...]
    cache: tuple[int, ...]
    joined: tuple[Span, ...] = ()


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


def held(span: Span, sizes: Sizes, offload: int) -> tuple[int, int]:
    """Bytes of a span's weights on the device, and in main memory where the last `offload` blocks are; on the device
    is room for the largest of these. One block at least stays there."""
    away = list(span)[1:][-offload:] if offload else []
    weights = [sizes.weights[block] for block in away]
    total = sum(sizes.weights[block] for block in span)
    return total - sum(weights) + max(weights, default=0), sum(weights)


def gained(sizes: Sizes, offload: int) -> int:
    """Bytes by which a span may be larger than the device if so many blocks, whichever, are in main memory."""
    return max(0, offload * min(sizes.weights) - max(sizes.weights)) if offload else 0


def footprint(span: Span, sizes: Sizes, allowance: Allowance) -> Footprint:
    """What `span` takes. Raises InvalidInput when the model does not have these blocks."""
    if span.last > len(sizes.weights):
        raise InvalidInput(f"blocks {span} do not exist: the model has blocks 0:{len(sizes.weights)}")
    token_bytes = sum(sizes.cache[block] for block in span)
    tokens = allowance.cache_tokens
    cache_bytes = allowance.fixed() if tokens is None else tokens * token_bytes
    return Footprint(span, sum(sizes.weights[block] for block in span), cache_bytes, token_bytes)
