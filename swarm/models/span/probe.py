"""Random inputs for the checks at load, and whether two ways of computing them agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from swarm.models.span.attention.base import Lane
from swarm.models.span.base_model import BaseModel
from swarm.models.span.passes import Passes

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
"""Largest difference, relative to the largest value, that two orders of the same computation may show."""
ROUNDED = 1e-2
"""The same where layers round their inputs to whole numbers: what differs in its last bit may be rounded otherwise, and
is 1e-3 apart after thirty blocks."""
MOST = 0.6
"""Below float32 a tie between experts may turn out otherwise in another order: so many positions must agree."""


def random_states(model: BaseModel, counts: Sequence[int]) -> list[torch.Tensor]:
    """Hidden states `[1, count, hidden_size]` for each of `counts`, the same with every call."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, count, model.hidden_size, generator=generator).to(model.device, model.dtype) for count in counts
    ]


def run_whole(passes: Passes[Any], hidden: torch.Tensor) -> torch.Tensor:
    """`[1, T, hidden_size]` of one new sequence through all blocks, at once."""
    return passes.run([Lane(0, hidden.shape[1], passes.new_cache())], hidden)


def close(one: torch.Tensor, other: torch.Tensor, quantized: bool = False) -> bool:
    """Whether two results `[1, T, hidden_size]` of the same computation agree; `quantized`: by layers on a grid."""
    if one.shape != other.shape:
        return False
    differences = (one.float() - other.float()).abs().amax(dim=(0, 2)) / other.float().abs().max()
    agree = differences <= max(TOLERANCE[other.dtype], ROUNDED if quantized else 0.0)
    return bool(agree.all()) if other.dtype == torch.float32 else float(agree.float().mean()) >= MOST
