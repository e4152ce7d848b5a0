"""What of a position travels from block to block, and how it stands in a row of numbers.

Most blocks give hidden states `[batch, T, hidden_size]`. Some have several of these for each position
(hyper-connections), in whichever order of axes; and some look at the token of a position as well, whose id then travels
behind them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from swarm.errors import UnsupportedModel

TOKENS = "input_ids"
"""What blocks call the ids of tokens."""

BATCH, COUNT = 5, 7
"""Of a probe that finds out: no model has five times seven hidden states a position."""
DIGITS, BASE = 3, 256
"""Of a token's id: whole numbers below 257 are exact in every dtype."""


@dataclass(frozen=True, slots=True)
class RowShape:
    """`before`, `behind`: the axes of what a block is given before those of batch and positions, and behind them;
    `tokens`: whether blocks are also given token ids."""

    before: tuple[int, ...]
    behind: tuple[int, ...]
    tokens: bool = False

    @classmethod
    def of(cls, probe: torch.Tensor, *, tokens: bool) -> RowShape:
        """From what a block is given of `BATCH` sequences of `COUNT` positions. Raises UnsupportedModel."""
        shape = tuple(probe.shape)
        place = next((i for i in range(len(shape) - 1) if shape[i : i + 2] == (BATCH, COUNT)), None)
        if place is None:
            raise UnsupportedModel(f"its blocks are given {shape} for {BATCH} sequences of {COUNT} positions")
        return cls(shape[:place], shape[place + 2 :], tokens)

    @property
    def numbers(self) -> int:
        """Of a position's hidden states."""
        return math.prod(self.before) * math.prod(self.behind)

    @property
    def size(self) -> int:
        """Numbers of a position."""
        return self.numbers + DIGITS * self.tokens

    @property
    def is_plain(self) -> bool:
        """Whether what a block is given is the row."""
        return not self.before and len(self.behind) == 1 and not self.tokens

    def rows(self, hidden: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """What a block is given, and the ids `[batch, T]` where it is given these → `[batch, T, size]`."""
        flat = self.numbers_of(hidden)
        if not self.tokens:
            return flat
        assert ids is not None
        digits = torch.stack([ids // BASE**place % BASE for place in range(DIGITS)], dim=-1)
        return torch.cat([flat, digits.to(flat.device, flat.dtype)], dim=-1)

    def numbers_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """What a block is given → `[batch, T, numbers]`."""
        axes = len(self.before)
        turned = hidden.movedim(tuple(range(axes)), tuple(range(2, 2 + axes)))
        return turned.reshape(*turned.shape[:2], self.numbers)

    def hidden(self, rows: torch.Tensor) -> torch.Tensor:
        """`[batch, T, size]` → what a block is given."""
        axes = len(self.before)
        shaped = rows[..., : self.numbers].reshape(*rows.shape[:2], *self.before, *self.behind)
        return shaped.movedim(tuple(range(2, 2 + axes)), tuple(range(axes))).contiguous()

    def ids(self, rows: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """`[batch, T, size]` → token ids `[batch, T]` below `vocabulary`, whatever strangers have sent."""
        digits = rows[..., self.numbers :].float().nan_to_num(0.0, 0.0, 0.0).clamp(0, BASE - 1).round().long()
        weights = torch.tensor([BASE**place for place in range(DIGITS)], device=rows.device)
        return (digits * weights).sum(dim=-1) % vocabulary
