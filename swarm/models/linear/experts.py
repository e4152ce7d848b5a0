"""Weights of experts on grids, in place of the one parameter that holds those of all.

Architectures index that parameter by an expert and multiply rows with what they get; transformers' own loop over the
experts that are hit ("eager") does nothing else with it. What is indexed here takes part in torch's products by its
protocol for foreign tensors (https://pytorch.org/docs/stable/notes/extending.html, `__torch_function__`), so that no
architecture has code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from swarm.errors import UnsupportedModel
from swarm.models.linear.grid import Grid
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.linear.schemes import can_quantize, quantize


class ExpertWeight:
    """One expert's weight: `linear(rows, weight)` with `[out, in]`, or `rows @ weight` with `[in, out]`."""

    def __init__(self, layer: QuantizedLinear, transposed: bool) -> None:
        self.layer = layer
        self.transposed = transposed

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> torch.Tensor:
        """Products of rows with the weight. Raises UnsupportedModel for anything else that is done with it."""
        products = {
            nn.functional.linear: False,
            torch.matmul: True,
            torch.Tensor.matmul: True,
            torch.Tensor.__matmul__: True,
        }
        rows, weight, *rest = args
        bias = rest[0] if rest else (kwargs or {}).get("bias")
        if products.get(function) != getattr(weight, "transposed", None) or not isinstance(weight, ExpertWeight):
            raise UnsupportedModel(f"its experts do more with their weights than products: {function}")
        product: torch.Tensor = weight.layer(rows)
        return product if bias is None else product + bias


class ExpertWeights(nn.Module):
    """Of all experts, `[experts, out, in]` or, `transposed`, `[experts, in, out]`: indexed by an expert."""

    def __init__(self, grids: Sequence[Grid], transposed: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList([QuantizedLinear(grid, dtype=dtype) for grid in grids])
        self.transposed = transposed
        self.dtype = dtype
        outputs, inputs = grids[0].shape
        self.shape = torch.Size((len(grids), inputs, outputs) if transposed else (len(grids), outputs, inputs))

    def __getitem__(self, expert: int | torch.Tensor) -> ExpertWeight:
        layer = self.layers[int(expert)]
        assert isinstance(layer, QuantizedLinear)
        return ExpertWeight(layer, self.transposed)


def expert_weights(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The parameters inside `module` that hold the weights of experts and could be on a grid: their owners and names.

    Owners are the modules that transformers lets choose how experts are computed.
    """
    owners = [each for each in module.modules() if hasattr(each, "is_transposed") and hasattr(each, "config")]
    found = [(owner, *entry) for owner in owners for entry in owner.named_parameters(recurse=False)]
    return [
        (owner, name) for owner, name, weight in found if weight.dim() == 3 and can_quantize(_columns(owner, weight))
    ]


def _columns(owner: nn.Module, weight: torch.Tensor) -> int:
    return int(weight.shape[1 if owner.is_transposed else 2])


@torch.inference_mode()
def put_experts_on_grids(module: nn.Module, scheme: str) -> int:
    """Quantize the weights of experts inside `module`, one parameter after the other; returns how many.

    Raises UnsupportedModel where their numbers are something else on the grid.
    """
    found = expert_weights(module)
    for owner, name in found:
        weight, transposed = getattr(owner, name).detach(), bool(owner.is_transposed)
        delattr(owner, name)
        grids = [quantize(each.T.contiguous() if transposed else each, scheme) for each in weight]
        setattr(owner, name, ExpertWeights(grids, transposed, weight.dtype))
        config: Any = owner.config
        config._experts_implementation_internal = "eager"
    return len(found)
