"""What a plan must know of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """A model in numbers. Of each block: `parameters`, `weight_bytes`, and `cache_bytes` of one position;
    `row_bytes`: of one position's hidden state; `head_bytes`: what the client reads for each token."""

    name: str
    parameters: tuple[int, ...]
    weight_bytes: tuple[int, ...]
    cache_bytes: tuple[int, ...]
    row_bytes: int
    head_bytes: int

    @property
    def blocks(self) -> int:
        return len(self.weight_bytes)
