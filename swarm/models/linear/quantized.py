"""A linear layer whose weight is on a grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from swarm.errors import UnsupportedModel
from swarm.models.linear.compiled import kernel
from swarm.models.linear.gradient import product_with_gradient
from swarm.models.linear.grid import Grid
from swarm.models.linear.packed import PAIR, Packed, laid_out

TILE = 1 << 22
"""Numbers that are taken off the grid at once where there is no kernel for it."""
PROBED = 64
"""Outputs of a layer that are compared with what its numbers give."""
TOLERANCE = 1e-2
"""Largest distance from it, as a share of its norm; healthy kernels are within 2e-4."""


class QuantizedLinear(nn.Module):
    """`[…, in_features]` → `[…, out_features]`, in the inputs' dtype; products are summed in float32.

    A row's result does not depend on what shares the call. Gradients are had for the input, by taking the weight off
    its grid. `weight`: has the shape and the dtype of the plain layer's for architectures that ask, and no numbers.
    """

    def __init__(
        self, weight: Packed | Grid, bias: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        self.dtype = dtype
        self._weight = laid_out([weight], weight.out_features) if isinstance(weight, Grid) else weight

    def extra_repr(self) -> str:
        bits, group = self._weight.bits, self._weight.group
        return f"in_features={self.in_features}, out_features={self.out_features}, {bits} bits in groups of {group}"

    @property
    def weight(self) -> torch.Tensor:
        """`[out_features, in_features]` that takes no memory."""
        return torch.zeros((), dtype=self.dtype, device=self._weight.device).expand(self.out_features, self.in_features)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self._weight.nbytes

    @property
    def grid(self) -> Grid:
        """The weight."""
        weight = self._weight
        return weight if isinstance(weight, Grid) else weight.grid()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[…, in_features]` → `[…, out_features]`."""
        rows = input.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and rows.requires_grad:
            product = product_with_gradient(self, rows)
        else:
            product = self.product(rows)
        return product.view(*input.shape[:-1], self.out_features)

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, in_features]` → `[rows, out_features]`, without a gradient."""
        product = self._multiply(rows if rows.dtype == torch.float32 else rows.float())
        if self.bias is not None:
            product += self.bias
        return product if rows.dtype == torch.float32 else product.to(rows.dtype)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of a product's rows, `[rows, in_features]`, from that of the product, `[rows, out_features]`:
        the weight comes off its grid tile by tile."""
        total = torch.zeros(len(gradient), self.in_features, device=gradient.device)
        for part, first, last in tiles(self._weight):
            total.addmm_(gradient[:, first:last].float(), part)
        return total.to(gradient.dtype)

    def without_bias(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, in_features]` → `[rows, out_features]`, without a gradient either."""
        return self._multiply(rows.float()).to(rows.dtype)

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        weight, compiled = self._weight, kernel()
        if isinstance(weight, Grid) or compiled is None:
            return _bytiles(rows, weight)
        return weight.multiply(compiled, rows)

    def put(self, grid: Grid) -> None:
        """From now on compute with this copy of the weight, as it is."""
        self._weight = grid

    @torch.inference_mode()
    def checked(self) -> QuantizedLinear:
        """The same. Raises UnsupportedModel where the first outputs are not what the numbers of the grid give."""
        weight = self._weight
        grid = weight.rows(0, PROBED)
        for count in (1, 8, 40):
            rows = torch.randn(count, self.in_features, generator=torch.Generator().manual_seed(count))
            rows[:, :: self.in_features // 3] *= 100
            right = rows.double() @ grid.dense().double().T
            got = self._multiply(rows)[:, : grid.out_features]
            if not float((got - right).norm()) <= TOLERANCE * float(right.norm()):
                raise UnsupportedModel("this machine's kernel for weights on a grid computes something else")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> QuantizedLinear:
        """What `to`, `cuda`, `half` and the like call: the grid moves, its numbers stay."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved = fn(torch.empty(0, dtype=self.dtype, device=self._weight.device))
        self.dtype = moved.dtype
        if moved.device != self._weight.device:
            self._weight = self.grid.to(moved.device)
        return self


def _bytiles(rows: torch.Tensor, weight: Packed | Grid) -> torch.Tensor:
    """`[rows, in]` float32 → `[rows, out]` float32."""
    return torch.cat([rows @ part.T for part, _, _ in tiles(weight)], dim=1)


def tiles(weight: Packed | Grid) -> Iterator[tuple[torch.Tensor, int, int]]:
    """Some outputs' numbers `[outputs, in]` in float32 after others, with the first and the last output."""
    many = max(1, TILE // weight.in_features // PAIR) * PAIR
    for first in range(0, weight.out_features, many):
        last = min(first + many, weight.out_features)
        yield weight.rows(first, last).dense(), first, last
