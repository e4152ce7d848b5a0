"""What adapters add to blocks that are elsewhere, read from where peft put it: LoRA beside their linear layers.

Everything else that somebody has done to hollow blocks cannot be had, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from swarm.errors import InvalidInput
from swarm.models.ends.hollow import HollowWeight, Layers
from swarm.models.lora import Pair, Place

LORA = "LoRA beside linear layers is what remote blocks take"


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """What is added in a call, for some rows of a batch or for all. `lanes`: for each row, which of `groups`; None: the
    only one is for all."""

    groups: Sequence[Mapping[Place, Pair]]
    lanes: tuple[int, ...] | None = None

    @property
    def learns(self) -> bool:
        """Whether gradients of any of it are wanted."""
        return any(
            matrix.requires_grad for pairs in self.groups for pair in pairs.values() for matrix in (pair.a, pair.b)
        )

    @property
    def marks(self) -> tuple[object, ...]:
        """Others where anything has changed."""
        of_groups = tuple((place, pair.mark) for pairs in self.groups for place, pair in pairs.items())
        return of_groups if self.lanes is None else (*of_groups, self.lanes)

    def rows(self, group: int, batch: int) -> list[int]:
        """The rows of a group. Raises InvalidInput where the batch is not that of the call."""
        if self.lanes is None:
            return list(range(batch))
        if len(self.lanes) != batch:
            raise InvalidInput(f"adapter_names has {len(self.lanes)} names for a batch of {batch}")
        return [row for row, lane in enumerate(self.lanes) if lane == group]


def beside(layers: Any) -> Beside:
    """What adapters add now: those that are active, or those that `adapter_names` names. Raises as `pairs_of`."""
    wrapped = list(_wrapped(layers))
    names = _names(wrapped[0].layer) if wrapped else None
    if names is None:
        return Beside([_pairs(wrapped, None)])
    known = list(dict.fromkeys(names))
    return Beside([_pairs(wrapped, name) for name in known], tuple(map(known.index, names)))


def pairs_of(layers: Any) -> dict[Place, Pair]:
    """The matrices of all adapters that are active, by layer; several on one layer are one of their ranks together.

    Raises InvalidInput for adapters of other kinds, and for weights of remote blocks that are to learn.
    """
    return _pairs(_wrapped(layers), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Wrapped:
    """A layer that somebody has put where `base` was."""

    place: Place
    layer: Any
    base: nn.Module | None


def _wrapped(layers: Any) -> Iterator[_Wrapped]:
    if isinstance(layers, Layers):
        for index, block in layers.hollow.items():
            yield from _visit(block, "", index, layers.original)


def _visit(module: nn.Module, path: str, block: int, original: Any) -> Iterator[_Wrapped]:
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
            yield from _visit(child, f"{path}{name}.", block, original)
        else:
            yield _Wrapped(Place(block, f"{path}{name}"), child, before.get(name))


def _names(layer: nn.Module) -> list[str] | None:
    """An adapter for each row, as peft tells its layers by hooks while it is called so; None: it is not."""
    given = [getattr(hook, "keywords", {}) for hook in layer._forward_pre_hooks.values()]
    if any("alora_offsets" in each for each in given):
        raise InvalidInput(f"alora_offsets: {LORA}, at all positions")
    # The last one counts, as in peft, where those of a call that failed may be left.
    return next((list(each["adapter_names"]) for each in reversed(given) if "adapter_names" in each), None)


def _pairs(wrapped: Iterable[_Wrapped], adapter: str | None) -> dict[Place, Pair]:
    found = {each.place: _pair(each.layer, each.base, each.place.path, adapter) for each in wrapped}
    return {place: pair for place, pair in found.items() if pair is not None}


def _pair(layer: Any, base: nn.Module | None, path: str, adapter: str | None) -> Pair | None:
    """What a layer of peft's, or one `adapter` in it, adds to the layer that it wraps; None: nothing now."""
    kind = type(layer)
    if (kind.__module__, kind.__qualname__) != ("peft.tuners.lora.layer", "Linear") or layer.base_layer is not base:
        raise InvalidInput(f"{kind.__name__} in place of {path}: {LORA}")
    if layer.merged:
        raise InvalidInput(f"{path} is merged: the weights are elsewhere")
    if layer.disable_adapters:
        return None
    names = layer.active_adapters if adapter is None else [adapter]
    pairs = [_of(layer, name, path) for name in names if name in layer.lora_A]
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
