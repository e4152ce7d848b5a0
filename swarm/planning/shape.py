"""What a plan must know of a model."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.span import Span


@dataclass(frozen=True, slots=True)
class Shape:
    """A model in numbers. Of each block: `parameters`, `weight_bytes`, and `cache_bytes` of one position;
    `row_bytes`: of one position's hidden state; `head_bytes`: what the client reads for each token; `joined`: runs of
    blocks that must stay together."""

    name: str
    parameters: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    cache_bytes: tuple[int, ...]
    row_bytes: int
    head_bytes: int
    joined: tuple[Span, ...] = ()

    @property
    def blocks(self) -> int:
        return len(self.weight_bytes)
