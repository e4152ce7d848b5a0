"""Where the decoder blocks are in any causal LM of transformers, found by structure and not by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from swarm.errors import UnsupportedModel
from swarm.span import Span


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where the blocks are: `owner.attribute` is their ModuleList.

    `prefix`: of their tensors in the state dict, e.g. `model.layers.`; `total`: how many the configuration counts;
    `base`: the module that is run, which takes embeddings in place of tokens: the owner, or what is next around it.
    """

    owner: nn.Module
    attribute: str
    prefix: str
    total: int
    base: nn.Module

    @property
    def layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = getattr(self.owner, self.attribute)
        return layers


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the decoder."""
    return config.get_text_config(decoder=True)


def recount(config: Any, blocks: int, lists: Mapping[str, list[Any]] | None = None) -> None:
    """Let a configuration count so many blocks, with these per-block lists.

    Past its own validation, which would see the lists and their length disagree in between.
    """
    name = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    vars(config).update(lists or {}, **{name: blocks})


def per_block(config: Any, total: int) -> dict[str, list[Any]]:
    """The configuration's lists that have one entry a block. Those that it computes (Jamba, Bamba) are settled: from
    now on they can be set as others."""
    lists = {name: value for name, value in vars(config).items() if _is_list(value, total)}
    for name in dir(type(config)):
        if isinstance(getattr(type(config), name), property) and _is_list(value := _computed(config, name), total):
            lists[name] = value
    computed = lists.keys() - vars(config).keys()
    if computed:
        kind = type(config)
        config.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **dict.fromkeys(computed)})
        vars(config).update({name: lists[name] for name in computed})
    return lists


def _is_list(value: Any, total: int) -> bool:
    return isinstance(value, list) and len(value) == total


def _computed(config: Any, name: str) -> Any:
    try:
        return getattr(config, name)
    except Exception:  # whatever it needs is not there
        return None


def context_length(config: Any) -> int | None:
    """Positions that a decoder's configuration allows; None where it sets no limit.

    With rotary embeddings that change for all positions once one passes a threshold, the threshold: what is cached
    then would have to be computed anew.
    """
    return min(filter(None, (rotary_threshold(config), _positions(config))), default=None)


def _positions(config: Any) -> int | None:
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    return next((int(value) for name in names if (value := getattr(config, name, None))), None)


def rotary_threshold(config: Any) -> int | None:
    """From which position on rotary embeddings are others for all positions; None: they never change."""
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if parameters.get("rope_type") in ("longrope", "dynamic"):
            first = parameters.get("original_max_position_embeddings")
            return first or getattr(config, "original_max_position_embeddings", None) or _positions(config)
    return None


def leading_blocks(config: Any) -> Span | None:
    """The first blocks of a model of images and text that need more than hidden states: the library's models add what
    was seen to their outputs. None: there are none."""
    depth = len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ())
    return Span(0, depth) if depth else None


def find_blocks(model: nn.Module) -> Blocks:
    """The decoder blocks of a causal LM: the ModuleList of the module that has the decoder's configuration.

    Works on a whole model, and on one whose list holds only some blocks, or none. Raises UnsupportedModel when there
    is no such list, or no single one.
    """
    decoder: Any = text_config(model.config)
    total = int(decoder.num_hidden_layers)
    found = list(_lists(model, decoder.model_type, total))
    whole = [blocks for blocks in found if len(blocks.layers) == total]
    if len(whole or found) != 1:
        names = ", ".join(blocks.prefix for blocks in found) or "none"
        raise UnsupportedModel(f"{type(model).__name__} has no single list of {total} decoder blocks (found: {names})")
    return (whole or found)[0]


def _lists(model: nn.Module, model_type: str, total: int) -> Iterator[Blocks]:
    """The outermost ModuleLists in modules that have the decoder's configuration."""
    inside: list[str] = []
    base = {"": model}
    for name, module in model.named_modules():
        around = base[name.rpartition(".")[0]]
        base[name] = module if takes_embeddings(module) or not takes_embeddings(around) else around
        if any(name.startswith(prefix) for prefix in inside) or not hasattr(module, "config"):
            continue
        if getattr(module.config, "model_type", model_type) != model_type:
            continue
        for attribute, child in module.named_children():
            if isinstance(child, nn.ModuleList) and not _is_auxiliary(child):
                inside.append(f"{name}.{attribute}." if name else f"{attribute}.")
                yield Blocks(module, attribute, inside[-1], total, base[name])


def takes_embeddings(module: nn.Module) -> bool:
    """Whether a module can be called with embeddings in place of tokens."""
    return _takes_embeddings(type(module).forward)


@cache
def _takes_embeddings(forward: Callable[..., Any]) -> bool:
    return "inputs_embeds" in inspect.signature(forward).parameters


def _is_auxiliary(children: nn.ModuleList) -> bool:
    """Whether a list holds rotary embeddings, one a kind of block: they have no parameters."""
    return any("rotary" in type(child).__name__.lower() for child in children)
