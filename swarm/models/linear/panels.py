"""float32 weights laid out for the compiled kernel (floats.c), and rows multiplied with them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from swarm.models.linear.compiled import Kernel, kernel

WIDTH = 1024
"""Inputs and outputs of the layer that is measured."""
ROWS = (1, 8, 128)
"""Rows of the products that are measured."""
ROUNDS = 3
WORSE = 1.25
"""So many times as long in all may the kernel take as oneDNN and be used: its results are a row's own."""


class Panels:
    """A weight `[out, in]` in float32 as floats.c wants it: `[panels, in, outputs of a panel]`.

    A row's result does not depend on what shares the call.
    """

    def __init__(self, weight: torch.Tensor, compiled: Kernel) -> None:
        self.out_features, self.in_features = weight.shape
        missing = -self.out_features % compiled.float_panel
        if missing:
            weight = torch.cat([weight, weight.new_zeros(missing, self.in_features)])
        self._kernel = compiled
        self._numbers = weight.view(-1, compiled.float_panel, self.in_features).transpose(1, 2).contiguous()

    def multiply(self, rows: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`[rows, in_features]` → `[rows, out_features]`, all float32 on the CPU."""
        rows = rows.contiguous()
        product = torch.empty(rows.shape[0], self.out_features)
        self._kernel.multiply_floats(self._numbers, rows, None if bias is None else bias.detach(), product)
        return product

    def dense(self) -> torch.Tensor:
        """The weight `[out_features, in_features]`."""
        return self._numbers.transpose(1, 2).reshape(-1, self.in_features)[: self.out_features].contiguous()

    def __deepcopy__(self, memo: dict[int, Any]) -> Panels:
        return Panels(self.dense(), self._kernel)


def panels(weight: torch.Tensor) -> Panels | None:
    """A weight laid out; None where there is no kernel for it, or the kernel takes longer than oneDNN."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or (compiled := _kernel()) is None:
        return None
    return Panels(weight, compiled)


@functools.cache
def _kernel() -> Kernel | None:
    compiled = kernel()
    return compiled if compiled is not None and compiled.float_panel and _pays(compiled) else None


@torch.inference_mode()
def _pays(compiled: Kernel) -> bool:
    """Whether it is about as fast as oneDNN here, or faster; measured once."""
    weight = torch.ones(WIDTH, WIDTH)
    ours = Panels(weight, compiled)
    operators: Any = torch.ops.mkldnn
    try:
        theirs = operators._reorder_linear_weight(weight, 64)
    except (RuntimeError, AttributeError, NotImplementedError):
        return True
    took = their = 0.0
    for count in ROWS:
        rows = torch.ones(count, WIDTH)
        took += _seconds(functools.partial(ours.multiply, rows))
        their += _seconds(functools.partial(operators._linear_pointwise, rows, theirs, None, "none", [], ""))
    return took <= WORSE * their


def _seconds(product: Callable[[], object]) -> float:
    times = []
    for _ in range(1 + ROUNDS):
        began = time.perf_counter()
        product()
        times.append(time.perf_counter() - began)
    return min(times)
