"""Linear layers that compute with 8-bit integers on a CPU: weights by output channel, inputs by position.

Dettmers, Lewis, Belkada, Zettlemoyer, "LLM.int8()", 2022, section 2.2, vector-wise quantization, without its separate
treatment of outliers. Each position has a scale of its own: nobody's numbers depend on whose positions share a batch.
The products are oneDNN's, made for processors with 8-bit dot products (VNNI).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from swarm.config import QUANTIZATIONS
from swarm.errors import UnsupportedModel
from swarm.models.linear.replace import replace

NONE, INT8 = QUANTIZATIONS
LEVELS = 127
ZERO = 128
"""Inputs are unsigned in these kernels: zero is in the middle."""
ROWS = 64
"""The layout of the weights is chosen for products of so many rows."""


class Int8Linear(nn.Module):
    """`[…, in_features]` → `[…, out_features]` in float32 or bfloat16, as the plain layer within about a hundredth.

    For inference only. Raises UnsupportedModel where this torch has no such products, or the weights are elsewhere.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = linear.weight.detach()
        if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
            what = f"{weight.dtype} on {weight.device.type}"
            raise UnsupportedModel(f"int8 computes on a CPU in float32 or bfloat16, not {what}")
        self.dtype = weight.dtype
        self.scales = (weight.float().abs().amax(dim=1) / LEVELS).clamp(min=1e-12)
        self.zeros = torch.zeros(self.out_features, dtype=torch.int64)
        levels = (weight.float() / self.scales[:, None]).round().to(torch.int8)
        try:
            self.weight: Any = _operators().qlinear_prepack(levels, [ROWS, self.in_features])
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            raise UnsupportedModel(f"this build of torch has no int8 products: {error}") from error
        self.bias = linear.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[…, in_features]` → `[…, out_features]` in the layer's dtype."""
        rows = input.reshape(-1, self.in_features).float()
        scale = (rows.abs().amax(dim=1, keepdim=True) / LEVELS).clamp(min=1e-12)
        levels = (rows / scale).round_().add_(ZERO).to(torch.uint8)
        product: torch.Tensor = _operators().qlinear_pointwise(
            levels, 1.0, ZERO, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        product = product * scale
        if self.bias is not None:
            product = product + self.bias
        return product.to(self.dtype).view(*input.shape[:-1], self.out_features)


def _operators() -> Any:
    """Operators of torch that its own quantization uses. Looked up when they are used: not every build has them."""
    return torch.ops.onednn


@torch.inference_mode()
def use_int8(module: nn.Module) -> int:
    """Replace every plain linear layer inside `module`, one after the other; returns how many.

    Raises UnsupportedModel when there is none, or it cannot be done here.
    """
    replaced = replace(module, lambda child: Int8Linear(child) if type(child) is nn.Linear else None)
    if not replaced:
        raise UnsupportedModel("its blocks have no plain linear layers that could compute with 8-bit integers")
    return replaced
