"""Blocks that live in main memory and are on the device while they are computed.

Between two passes such a block holds one number for all in each tensor, which is none: whoever computes with it unmoved
gets NaN, and not wrong numbers. (Tensors on `meta` would not do: torch's products take them beside others without an
error.) No copy goes back, as weights do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swarm.models.linear.grid import Grid
from swarm.models.linear.quantized import QuantizedLinear

Move = Callable[[torch.Tensor], torch.Tensor]
"""A tensor in one memory → the same in another."""


@dataclass(frozen=True, slots=True)
class Offload:
    """So many blocks, the last of a span, are in main memory; `keep`: how a tensor is kept there, `move`: how it comes
    to the `device`."""

    count: int
    device: str
    keep: Move
    move: Move

    @classmethod
    def to(cls, device: str, count: int) -> Offload:
        """For a device; in memory that is not paged out, from where it comes faster."""
        return cls(count, device, torch.Tensor.pin_memory, lambda tensor: tensor.to(device, non_blocking=True))

    def take(self, blocks: Sequence[nn.Module]) -> None:
        """Have the last of these blocks in main memory. The first stays: by it the device is known."""
        for block in blocks[1:][-self.count :] if self.count else ():
            _Away(block, self)


class _Away:
    """A block's weights in main memory. The block is taken over: from now on its weights are here."""

    def __init__(self, block: nn.Module, how: Offload) -> None:
        self._how = how
        self._tensors: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        self._grids: list[tuple[QuantizedLinear, Grid]] = []
        for module in block.modules():
            if isinstance(module, QuantizedLinear):
                self._grids.append((module, _each(module.grid, how.keep)))
            for held in (module._parameters, module._buffers):
                there = {name: tensor for name, tensor in held.items() if tensor is not None}
                self._tensors += [(held, name, how.keep(tensor.data)) for name, tensor in there.items()]
        self.leave()
        block.register_forward_pre_hook(self.come)
        block.register_forward_hook(self.leave, always_call=True)

    def come(self, *call: object) -> None:
        """Be on the device."""
        self._put(self._how.move)

    def leave(self, *call: object) -> None:
        """Take no room there."""
        self._put(self._hollow)

    def _hollow(self, tensor: torch.Tensor) -> torch.Tensor:
        number = torch.nan if tensor.is_floating_point() and tensor.itemsize > 1 else 0
        return torch.full((), number, dtype=tensor.dtype, device=self._how.device).expand(tensor.shape)

    def _put(self, there: Move) -> None:
        for held, name, tensor in self._tensors:
            held[name] = _as(held[name], there(tensor))
        for layer, grid in self._grids:
            layer.put(_each(grid, there))


def is_offloaded(block: nn.Module) -> bool:
    """Whether a block is in main memory until it is computed."""
    return any(isinstance(getattr(hook, "__self__", None), _Away) for hook in block._forward_pre_hooks.values())


def _as(like: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter, where that was one."""
    return nn.Parameter(tensor, requires_grad=like.requires_grad) if isinstance(like, nn.Parameter) else tensor


def _each(grid: Grid, change: Move) -> Grid:
    """The same with a change to all that is held."""
    return Grid(**{name: change(part) for name, part in grid.parts().items()}, table=grid.table)
