"""Linear layers on a CPU with their weights laid out for the processor, once at load: for a kernel of ours (float32,
`panels.py`), else in oneDNN's blocked format.

torch's own product of a few rows with a plain weight takes two to three times as long (docs/measurements.md): the
library lays the weight out anew, or falls back to a slow kernel, with every call. Batches of decode steps and windows
of speculation are such products.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from swarm.models.linear.gradient import product_with_gradient
from swarm.models.linear.panels import panels
from swarm.models.linear.replace import replace

log = logging.getLogger(__name__)

ROWS = 64
"""The layout is chosen for products of so many rows; measured from 4 to 256 rows there is no better one."""
PROBE_ROWS = 4
"""oneDNN's products of one to three rows take longer than of so many."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""Largest difference from the plain product, relative to its largest value."""


class LaidOutLinear(nn.Module):
    """`[…, in_features]` → `[…, out_features]`, as nn.Linear, whose weights do not learn.

    `weight`: while it is where it was laid out, a shape and a dtype for architectures that ask (its numbers, if one
    looks, are none); a plain tensor once the module was moved to another device or dtype.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = linear.weight.detach()
        self._panels = panels(weight)
        if self._panels is not None:
            self.weight = weight.new_full((), torch.nan).expand(weight.shape)
        else:
            self.weight = _operators()._reorder_linear_weight(weight, ROWS)
        self.bias = linear.bias

    @property
    def fewest_rows(self) -> int:
        """Rows of a product that does not take longer than one of more rows."""
        return PROBE_ROWS if self.weight.is_mkldnn else 1

    @property
    def is_laid_out(self) -> bool:
        """Whether it is where its weight was laid out."""
        return self._panels is not None or bool(self.weight.is_mkldnn)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[…, in_features]` → `[…, out_features]`. Gradients are had for the input and the bias."""
        rows = input.reshape(-1, self.in_features)
        if torch.is_grad_enabled() and self.bias is not None and self.bias.requires_grad:
            product = nn.functional.linear(rows, self.dense(), self.bias)
        elif torch.is_grad_enabled() and rows.requires_grad:
            product = product_with_gradient(self, rows)
        else:
            product = self.product(rows)
        return product.view(*input.shape[:-1], self.out_features)

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """`[rows, in_features]` → `[rows, out_features]`, without a gradient where it is laid out."""
        if self._panels is not None:
            if rows.dtype == torch.float32 and rows.device.type == "cpu":
                return self._panels.multiply(rows, self.bias)
            return nn.functional.linear(rows, self.dense(), self.bias)
        if not self.weight.is_mkldnn:
            return nn.functional.linear(rows, self.weight, self.bias)
        product: torch.Tensor = _operators()._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return product

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of a product's rows, `[rows, in_features]`, from that of the product, `[rows, out_features]`."""
        return gradient @ self.dense()

    def dense(self) -> torch.Tensor:
        """The weight `[out_features, in_features]` in the usual layout."""
        if self._panels is not None:
            return self._panels.dense()
        weight: torch.Tensor = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        return weight

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.dense()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> LaidOutLinear:
        """What `to`, `cuda`, `half` and the like call."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        dense = self.dense()
        moved = fn(dense)
        if (moved.device, moved.dtype) != (dense.device, dense.dtype):
            self.weight, self._panels = moved, None
        return self


def _operators() -> Any:
    """Two operators of torch, which inductor uses for the same purpose. Looked up when they are used: not every build
    has them."""
    return torch.ops.mkldnn


def use_laid_out(module: nn.Module) -> int:
    """Lay out the weights of every plain linear layer inside `module` that is on a CPU; returns how many.

    A layer whose product in this layout is not that of the layer itself stays as it is, as do all where this build of
    torch, or this processor, cannot.
    """
    return replace(module, laid_out_linear)


def use_plain(module: nn.Module) -> int:
    """The opposite of `use_laid_out`, for modules that look into the weights of their layers."""
    return replace(module, _plain_linear)


def _plain_linear(layer: nn.Module) -> nn.Linear | None:
    if not isinstance(layer, LaidOutLinear):
        return None
    linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    with torch.inference_mode(mode=False), torch.no_grad():
        dense = layer.dense()
        # What was made in inference mode, also a view of it, is nothing that gradients go through.
        linear.weight = nn.Parameter(dense.clone() if dense.is_inference() else dense, requires_grad=False)
    linear.bias = layer.bias
    return linear


@torch.inference_mode()
def laid_out_linear(linear: nn.Module, kind: type[LaidOutLinear] = LaidOutLinear) -> LaidOutLinear | None:
    """A plain linear layer in the processor's layout, if that can be had and computes the same."""
    if type(linear) is not nn.Linear or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype not in TOLERANCE or not weight.numel():
        return None
    probe = torch.randn(PROBE_ROWS, linear.in_features, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    try:
        twin = kind(linear)
        ours, plain = twin(probe).float(), linear(probe).float()
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        log.debug("a linear layer stays as it is: %s", error)
        return None
    same = (ours - plain).abs().max() <= TOLERANCE[weight.dtype] * plain.abs().max()
    return twin if bool(same) else None
