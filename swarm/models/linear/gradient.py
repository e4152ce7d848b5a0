"""Products with weights that do not learn, in a layout that torch has no gradient for."""

from __future__ import annotations

from typing import Any, Protocol

import torch


class Frozen(Protocol):
    """A layer whose weight does not learn."""

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, in_features]` → `[rows, out_features]`."""

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of a product's rows, `[rows, in_features]`, from that of the product, `[rows, out_features]`."""


def product_with_gradient(layer: Frozen, rows: torch.Tensor) -> torch.Tensor:
    """What `layer.product` gives, with the gradient of the rows. Nothing but the layer is kept for it."""
    product: torch.Tensor = _Product.apply(rows, layer)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layer: Frozen) -> torch.Tensor:
        ctx.layer = layer
        return layer.product(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.layer.back(gradients[0]), None
