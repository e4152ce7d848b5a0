"""Weights of experts on grids, in place of the one parameter that holds those of all.

Architectures index that parameter by an expert and multiply rows with what they get; transformers' own loop over the
experts that are hit ("eager") does nothing else with it. What is indexed here takes part in torch's products by its
protocol for foreign tensors (https://pytorch.org/docs/stable/notes/extending.html, `__torch_function__`), so that no
architecture has code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from swarm.errors import UnsupportedModel
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.linear.schemes import can_quantize, quantize

PRODUCTS: Mapping[Any, bool] = {
    nn.functional.linear: False,
    torch.matmul: True,
    torch.Tensor.matmul: True,
    torch.Tensor.__matmul__: True,
}
"""What an expert's weight may take part in, and whether it is the transposed one there."""


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
        rows, weight, *rest = args
        bias = rest[0] if rest else (kwargs or {}).get("bias")
        if PRODUCTS.get(function) != getattr(weight, "transposed", None) or not isinstance(weight, ExpertWeight):
            raise UnsupportedModel(f"its experts do more with their weights than products: {function}")
        product: torch.Tensor = weight.layer(rows)
        return product if bias is None else product + bias


class ExpertWeights(nn.Module):
    """Of all experts, `[experts, out, in]` or, `transposed`, `[experts, in, out]`: indexed by an expert."""

    def __init__(self, layers: Iterable[QuantizedLinear], transposed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.transposed = transposed
        first = self[0].layer
        shape = (first.in_features, first.out_features) if transposed else (first.out_features, first.in_features)
        self.shape, self.dtype = torch.Size((len(self.layers), *shape)), first.dtype

    def __getitem__(self, expert: int | torch.Tensor) -> ExpertWeight:
        layer = self.layers[int(expert)]
        assert isinstance(layer, QuantizedLinear)
        return ExpertWeight(layer, self.transposed)


def expert_weights(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The parameters inside `module` that hold the weights of experts and could be on a grid: owners and names."""
    named = [(owner, *entry) for owner in module.modules() for entry in owner.named_parameters(recurse=False)]
    return [
        (owner, name)
        for owner, name, weight in named
        if is_of_experts(owner, name) and can_quantize(weight.shape[1 if owner.is_transposed else 2])
    ]


def is_of_experts(owner: nn.Module, name: str) -> bool:
    """Whether that is, or was, the weights of experts, in a module that transformers has several ways to compute."""
    held = getattr(owner, name, None)
    is_choosing = hasattr(owner, "is_transposed") and hasattr(owner, "config")
    return is_choosing and isinstance(held, torch.Tensor) and (held.dim() == 3 or not held.numel())


@torch.inference_mode()
def put_experts_on_grids(module: nn.Module, scheme: str) -> int:
    """Quantize the weights of experts inside `module`, one parameter after the other; returns how many.

    Raises UnsupportedModel where their numbers are something else on the grid.
    """
    found = expert_weights(module)
    for owner, name in found:
        weight = getattr(owner, name).detach()
        experts = (each.T.contiguous() if owner.is_transposed else each for each in weight)
        put_experts(owner, name, (QuantizedLinear(quantize(each, scheme), dtype=weight.dtype) for each in experts))
    return len(found)


def put_experts(owner: nn.Module, name: str, layers: Iterable[QuantizedLinear]) -> None:
    """In place of the parameter of that name."""
    weights = ExpertWeights(layers, bool(owner.is_transposed))
    delattr(owner, name)
    setattr(owner, name, weights)
    config: Any = owner.config
    config._experts_implementation_internal = "eager"
