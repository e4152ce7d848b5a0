"""What adapters add to blocks that are elsewhere, read from where peft put it: LoRA beside their linear layers.

Everything else that somebody has done to hollow blocks cannot be had, and is refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from swarm.errors import InvalidInput
from swarm.models.ends.hollow import HollowWeight, Layers
from swarm.models.lora import Pair, Place

LORA = "LoRA beside linear layers is what remote blocks take"


def pairs_of(layers: Any) -> dict[Place, Pair]:
    """The matrices of all adapters that are active, by layer; several on one layer are one of their ranks together.

    Raises InvalidInput for adapters of other kinds, and for weights of remote blocks that are to learn.
    """
    found: dict[Place, Pair] = {}
    if isinstance(layers, Layers):
        for index, block in layers.hollow.items():
            _visit(block, "", index, layers.original, found)
    return found


def _visit(module: nn.Module, path: str, block: int, original: Any, found: dict[Place, Pair]) -> None:
    before = original[module]
    for name, parameter in module._parameters.items():
        if parameter is not None and (parameter.requires_grad or not isinstance(parameter, HollowWeight)):
            raise InvalidInput(
                f"{path}{name} of block {block} is elsewhere and cannot be trained, or changed, here: {LORA}; call "
                "model.requires_grad_(False) and set it for what is to be trained"
            )
    for name, child in module._modules.items():
        if child is None:
            continue
        if child is before.get(name):
            _visit(child, f"{path}{name}.", block, original, found)
            continue
        pair = _pair(child, before.get(name), f"{path}{name}")
        if pair is not None:
            found[Place(block, f"{path}{name}")] = pair


def _pair(layer: Any, base: nn.Module | None, path: str) -> Pair | None:
    """What a layer of peft's adds to the layer that it wraps; None: nothing now."""
    kind = type(layer)
    if (kind.__module__, kind.__qualname__) != ("peft.tuners.lora.layer", "Linear") or layer.base_layer is not base:
        raise InvalidInput(f"{kind.__name__} in place of {path}: {LORA}")
    if layer.merged:
        raise InvalidInput(f"{path} is merged: the weights are elsewhere")
    if layer.disable_adapters:
        return None
    pairs = [_of(layer, name, path) for name in layer.active_adapters if name in layer.lora_A]
    if len(pairs) < 2:
        return pairs[0] if pairs else None
    if any(pair.dropout for pair in pairs):
        raise InvalidInput(f"lora_dropout of {path} with several adapters at a time: set it to 0.0, or call eval()")
    a, b = torch.cat([pair.a for pair in pairs]), torch.cat([pair.b for pair in pairs], dim=1)
    return Pair(a, b, tuple(mark for pair in pairs for mark in pair.mark))


def _of(layer: Any, name: str, path: str) -> Pair:
    if name in layer.lora_variant:
        kind = type(layer.lora_variant[name]).__name__
        raise InvalidInput(f"{kind} at {path}, adapter {name}: plain {LORA}")
    a, b = layer.lora_A[name], layer.lora_B[name]
    if b.bias is not None:
        raise InvalidInput(f"lora_bias of {path}, adapter {name}: a bias is not taken to remote blocks, leave it out")
    dropout = getattr(layer.lora_dropout[name], "p", 0.0) if layer.training else 0.0
    factor = layer.scaling[name]
    mark = id(a.weight), a.weight._version, id(b.weight), b.weight._version, factor
    return Pair(a.weight, b.weight * factor, mark, dropout)
