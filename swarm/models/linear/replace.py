"""Other layers in place of the linear layers of a module."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace(module: nn.Module, twin_of: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put `twin_of(child)` in place of every child inside `module` for which there is one; returns how many.

    One after the other, so that no more than one layer is in memory twice.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if (twin := twin_of(child)) is not None:
                setattr(parent, name, twin)
                replaced += 1
    return replaced
