"""Where the decoder blocks are in any causal LM of transformers, found by structure and not by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from swarm.errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Blocks:
    """`owner.attribute` is the ModuleList of blocks; `prefix`: of their tensors in the state dict, e.g. `model.layers.`;
    `total`: how many blocks the configuration says that the model has."""

    owner: nn.Module
    attribute: str
    prefix: str
    total: int

    @property
    def layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = getattr(self.owner, self.attribute)
        return layers


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the decoder."""
    return config.get_text_config(decoder=True)


def find_blocks(model: nn.Module) -> Blocks:
    """The decoder blocks of a causal LM: the outermost ModuleList whose owner has a configuration that counts them.

    Works on a whole model and on one that kept only some of its blocks. Raises UnsupportedModel when there is no
    such list, or more than one.
    """
    total = int(text_config(model.config).num_hidden_layers)  # type: ignore[arg-type]
    found: list[Blocks] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(blocks.prefix) for blocks in found)
        for attribute, child in module.named_children():
            if isinstance(child, nn.ModuleList) and not inside and 0 < len(child) <= total and hasattr(module, "config"):
                found.append(Blocks(module, attribute, f"{name}.{attribute}." if name else f"{attribute}.", total))
    if len(found) != 1:
        names = ", ".join(blocks.prefix for blocks in found) or "none"
        raise UnsupportedModel(f"{type(model).__name__} has no single list of {total} decoder blocks (found: {names})")
    return found[0]
