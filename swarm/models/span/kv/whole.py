"""In place of a cache, where all positions of a sequence come at once and none follows."""

from __future__ import annotations

import torch


class WholeSequence:
    """Keeps nothing: keys and values are attended to as they come, all from position 0. A `KeyValueCache`."""

    __slots__ = ("length",)

    nbytes = reach = 0

    def __init__(self) -> None:
        self.length = 0

    def write(
        self, block: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[heads, count, head_dim]`: the same."""
        return keys, values

    def fork(self, length: int) -> WholeSequence:
        """There is nothing that could be copied."""
        return WholeSequence()

    def truncate(self, length: int) -> None:
        """There is nothing to forget."""

    def position_bytes(self, block: int) -> int:
        """None."""
        return 0
