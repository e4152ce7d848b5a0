"""Blocks that are elsewhere, as their modules are named and shaped: what adds adapters to a model finds them there.

They hold no numbers, and are never called: a `RemoteSpan` is, in their place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from swarm.errors import InvalidInput, SwarmError
from swarm.models.blocks import find_blocks
from swarm.models.loading.partial import skeleton

log = logging.getLogger(__name__)

aten = torch.ops.aten
SAME = (aten.detach.default, aten.alias.default)
CAST = (aten._to_copy.default, aten.to.dtype, aten.to.device)


class HollowWeight(torch.Tensor):
    """A weight of a block that is elsewhere: shape and dtype alone. Raises InvalidInput for whoever looks into it."""

    @staticmethod
    def __new__(cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> HollowWeight:
        plain: Any = torch.Tensor
        made: HollowWeight = plain._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        return made

    def __init__(self, *shape: Any, **options: Any) -> None:
        """Nothing is held."""

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"HollowWeight({tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        memo[id(self)] = twin = hollow(self.shape, self.dtype, self.device)
        return twin

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        weight = args[0] if args else None
        if isinstance(weight, HollowWeight) and function in SAME:
            return HollowWeight(weight.shape, weight.dtype, weight.device)
        if isinstance(weight, HollowWeight) and function in CAST:
            options = kwargs or {}
            dtype, device = options.get("dtype") or weight.dtype, options.get("device") or weight.device
            return HollowWeight(weight.shape, dtype, device)
        raise InvalidInput(
            f"{function}: the weights of remote blocks are elsewhere, and nothing here can look at them or change "
            "them: LoRA beside them can be trained, without DoRA, PiSSA and others that begin from the weights, and is "
            "not merged"
        )


def hollow(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> nn.Parameter:
    """As a parameter that does not learn."""
    parameter = nn.Parameter(HollowWeight(shape, dtype, device), requires_grad=False)
    setattr(parameter, "_is_hf_initialized", True)  # noqa: B010 - the library leaves alone what has it
    return parameter


def hollow_blocks(config: Any, indices: Sequence[int], dtype: torch.dtype) -> dict[int, nn.Module]:
    """The blocks of a model with these numbers; none where the library does not build it."""
    try:
        layers = find_blocks(skeleton(config)).layers
    except (SwarmError, RuntimeError, NotImplementedError) as error:
        log.debug("no adapters for remote blocks: %s", error)
        return {}
    blocks = {index: layers[index] for index in indices}
    for block in blocks.values():
        block.eval()
        for module in block.modules():
            _empty(module, dtype)
    return blocks


def _empty(module: nn.Module, dtype: torch.dtype) -> None:
    setattr(module, "_is_hf_initialized", True)  # noqa: B010
    for name, parameter in list(module._parameters.items()):
        if parameter is not None:
            module._parameters[name] = hollow(parameter.shape, dtype)
    module._buffers.clear()


class Layers(nn.ModuleList):
    """A model's list of layers. As it runs it is `running`: the local blocks, and a `RemoteSpan` in place of the
    others. Its modules have the blocks' own numbers, those of remote ones are `hollow`."""

    def __init__(self, running: Sequence[nn.Module], local: Mapping[int, nn.Module], hollow: Mapping[int, nn.Module]):
        super().__init__()
        vars(self)["running"] = list(running)
        vars(self)["hollow"] = dict(hollow)
        vars(self)["original"] = {m: dict(m._modules) for block in hollow.values() for m in block.modules()}
        for index, block in sorted({**local, **hollow}.items()):
            self._modules[str(index)] = block
        for layer in running:
            if layer not in local.values():
                self._modules["remote"] = layer
        self.register_state_dict_post_hook(_without_hollow)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_misses_no_hollow)  # type: ignore[no-untyped-call]

    running: list[nn.Module]
    hollow: dict[int, nn.Module]
    original: dict[nn.Module, dict[str, nn.Module | None]]
    """The modules of hollow blocks, and what each had in it at first."""

    def __len__(self) -> int:
        return len(self.running)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.running)

    def __getitem__(self, index: int | slice) -> Any:
        return self.running[index]

    @property
    def numbers(self) -> int:
        """Of hollow weights."""
        weights: Iterator[Any] = (weight for block in self.hollow.values() for weight in block.parameters())
        return sum(weight.numel() for weight in weights if isinstance(weight, HollowWeight))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Casts and moves, which leave hollow weights hollow."""
        taken = []
        for block in self.hollow.values():
            for module in block.modules():
                weights: dict[str, Any] = module._parameters
                for name, parameter in weights.items():
                    if isinstance(parameter, HollowWeight):
                        taken.append((module, name, nn.Parameter(fn(parameter.detach()), requires_grad=False)))
        for module, name, _ in taken:
            module._parameters[name] = None
        try:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        finally:
            for module, name, parameter in taken:
                module._parameters[name] = parameter


def _without_hollow(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in [name for name, value in state.items() if isinstance(value, HollowWeight)]:
        del state[name]


def _misses_no_hollow(module: nn.Module, incompatible: Any) -> None:
    names = {f".{name}" for name, weight in module.named_parameters() if isinstance(weight, HollowWeight)}
    missing: list[str] = incompatible.missing_keys
    missing[:] = [key for key in missing if not any(key.endswith(name) for name in names)]
