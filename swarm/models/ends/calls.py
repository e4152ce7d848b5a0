"""How a model is being called, as its remote blocks must know it; what they cannot honour is refused by name."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from swarm.errors import InvalidInput
from swarm.models.ends.columns import check_mask, sees_ahead
from swarm.models.loading.identity import is_free

ELSEWHERE = "the blocks are computed elsewhere"
OUTPUTS = ("output_attentions", "output_hidden_states", "output_router_logits")
"""What blocks would give out beside hidden states."""
TAKEN = frozenset({
    "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "cache_params", "use_cache",
    "labels", "logits_to_keep", "return_dict", "num_items_in_batch", "shift_labels", "ignore_index", "tokenizer",
    "assistant_tokenizer", *OUTPUTS,
})  # fmt: skip
"""What a forward may be called with; the library's own code around the blocks sees to most of it."""
RANDOM, AT_ENDS = ("drop", "jitter"), ("classifier", "summary", "embd", "embed")
"""Words in the names of what is random in a model that is trained, and in those of them that blocks have nothing of."""

FOR_BLOCKS = frozenset({"is_causal", "cache_position", "head_mask"})
"""What models hand on in other shapes."""
DEEP_VALUES = "deepstack_visual_embeds"
DEEP = frozenset({DEEP_VALUES, "visual_pos_masks"})
"""By which the library's models add pieces of an image to the outputs of the first blocks."""
ENDS = frozenset({"vocab_size", "tie_word_embeddings"})
"""Entries of a configuration that the ends alone look at."""


@dataclass(frozen=True, slots=True)
class Call:
    """A forward that is under way: its mask, positions and labels, its cache, of how many of the last positions
    logits are asked for (0: all), and the names of all that was given."""

    mask: Any = None
    positions: Any = None
    labels: torch.Tensor | None = None
    logits_to_keep: int = 0
    cache: Cache | None = None
    given: frozenset[str] = frozenset()


class _Current(threading.local):
    """The call that is under way in this thread.

    Not a context variable: the tasks of a session begin in the context of its caller, and would keep the cache alive
    whose end is to end them.
    """

    call = Call()
    module: nn.Module | None = None
    generating = False
    all_rows = False
    on_begun: Callable[[], None] | None = None

    def end(self) -> None:
        """Nothing is called any more: what is remembered would keep the cache, and the servers', alive."""
        self.call, self.module = Call(), None


current = _Current()


@contextmanager
def when_begun(told: Callable[[], None]) -> Iterator[None]:
    """Call `told` when a forward of this thread has issued its remote step, and waits for the outputs.

    From then on another thread may begin the next forward on the same cache.
    """
    current.on_begun = told
    try:
        yield
    finally:
        current.on_begun = None


@contextmanager
def all_rows() -> Iterator[None]:
    """Have the hidden states of all positions of a forward of this thread, however few logits are asked for."""
    outer, current.all_rows = current.all_rows, True
    try:
        yield
    finally:
        current.all_rows = outer


@contextmanager
def generating() -> Iterator[None]:
    """Next tokens will be chosen from what forwards of this thread give."""
    outer, current.generating = current.generating, True
    try:
        yield
    finally:
        current.generating = outer
        current.end()


def watch(model: nn.Module, owner: nn.Module) -> None:
    """Note the calls of a model, and those of its part `owner`, which has the blocks, by itself."""
    vars(model)["swarm_blocks"] = owner  # past nn.Module, which would take it for a further part of the model
    for module in dict.fromkeys((model, owner)):
        module.register_forward_pre_hook(_note, with_kwargs=True)
        module.register_forward_hook(_forget, always_call=True)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before each forward: what the remote span must know of it. Raises InvalidInput for what cannot be had."""
    if current.module is not None and vars(current.module).get("swarm_blocks") is module:
        # A part of the model that is being called, which knows best where its positions stand.
        inner = named_arguments(module, args, kwargs)
        _check_inner(module, inner, current.call)
        current.call = replace(current.call, positions=inner.get("position_ids"))
        return
    arguments = named_arguments(module, args, kwargs)
    _check(module, arguments)
    keep = arguments.get("logits_to_keep", 0)
    current.call = Call(
        arguments.get("attention_mask"),
        arguments.get("position_ids"),
        arguments.get("labels"),
        keep if isinstance(keep, int) else 0,
        _cache_in(arguments),
        frozenset(arguments),
    )
    current.module = module


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _forget(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """After each forward, also one that failed, unless it was interrupted."""
    if current.module is module:
        current.end()


def _check(module: Any, arguments: Mapping[str, Any]) -> None:
    _check_config(module)
    if module.training and (name := _random(module.config.get_text_config(decoder=True))) is not None:
        raise InvalidInput(
            f"train(): {name} is more than 0, but {ELSEWHERE}, and there as after eval(): call model.eval(), which can "
            f"be trained as well, or load the model with {name}=0.0"
        )
    check_mask(arguments.get("attention_mask"))
    for name in OUTPUTS:
        asked = arguments.get(name)
        if asked or (asked is None and getattr(module.config, name, False)):
            raise InvalidInput(f"{name} is not available: {ELSEWHERE}")
    for name, value in arguments.items():
        if name not in TAKEN and not _is_replaced(module) and not _is_harmless(module, name, value, arguments):
            raise InvalidInput(f"{name} cannot be honoured: {ELSEWHERE}, and see only hidden states")


def _is_replaced(module: nn.Module) -> bool:
    """Whether somebody gave it a forward of their own around the library's: its arguments are theirs to know, and the
    part that has the blocks is asked for what comes to it."""
    return "forward" in vars(module)


def _random(config: Any) -> str | None:
    """What would make blocks draw numbers while they are trained, by a configuration; None: nothing."""
    named = [(name, value) for name, value in vars(config).items() if any(word in name for word in RANDOM)]
    used = [(name, value) for name, value in named if not any(word in name for word in AT_ENDS)]
    return next((name for name, value in used if isinstance(value, float | int) and value > 0), None)


def _check_inner(owner: Any, inner: Mapping[str, Any], call: Call) -> None:
    """What the model's own code makes of its inputs for the part that has the blocks. Raises InvalidInput for what
    these cannot be told."""
    if sees_ahead(inner.get("attention_mask")):
        raise InvalidInput(f"images: {type(owner).__name__} sees them as a whole, and remote blocks see what is before")
    for name, value in inner.items():
        if name in TAKEN or name in call.given or value is None or name in DEEP:
            continue
        raise InvalidInput(f"{name} cannot be honoured: {ELSEWHERE}, and see only hidden states")
    depth = len(inner.get(DEEP_VALUES) or ())
    if depth > (local := _leading(owner)):
        raise InvalidInput(
            f"images: they are added to the outputs of the first {depth} blocks, of which {local} are here; "
            f"load the model with local_blocks='0:{depth}'"
        )


def _leading(owner: Any) -> int:
    """Blocks at the beginning that are here."""
    layers = owner.swarm_layers()
    return next((index for index, layer in enumerate(layers) if hasattr(layer, "open_session")), len(layers))


def _is_harmless(module: Any, name: str, value: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether an argument changes nothing, or nothing but the embeddings."""
    if value is None or (name == "is_causal" and value is True):
        return True
    owner = getattr(module, "swarm_blocks", module)
    if owner is not module and name in _parameters(module) and name not in _parameters(owner):
        return name not in FOR_BLOCKS  # of images and the like: what the blocks get of it is looked at there
    if name == "cache_position":
        return _goes_on(value, arguments)
    if name == "token_type_ids":
        takes = [name in _parameters(each) for each in (owner, module)]
        return takes[0] or not takes[1] or not bool(value.any())
    return name == "num_logits_to_keep"  # of old; the library passes over it


def _cache_in(arguments: Mapping[str, Any]) -> Any:
    """Models that have nothing but states call their cache otherwise."""
    found = arguments.get("past_key_values")
    return arguments.get("cache_params") if found is None else found


def _goes_on(positions: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether columns are numbered from the length of the cache on."""
    given = arguments.get("input_ids")
    given = arguments.get("inputs_embeds") if given is None else given
    held = _cache_in(arguments)
    past = held.get_seq_length() if isinstance(held, Cache) else 0
    return given is not None and torch.equal(positions.cpu(), torch.arange(past, past + given.shape[1]))


def named_arguments(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a module is called with, by name."""
    return {**dict(zip(_parameters(module), args, strict=False)), **kwargs}


def _parameters(module: Any) -> tuple[str, ...]:
    return _named(type(module).forward)


@cache
def _named(forward: Callable[..., Any]) -> tuple[str, ...]:
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    return tuple(each.name for each in parameters if each.kind is not each.VAR_KEYWORD)


# ---- configurations that are changed after loading -------------------------------------------------------------


@dataclass(slots=True)
class Followed:
    """A configuration that users see and may change, and its copy, by which the module that has the blocks runs."""

    seen: PretrainedConfig
    own: PretrainedConfig
    known: dict[str, Any]


def follow(owner: nn.Module, seen: Any) -> Any:
    """Give the module that has the blocks a configuration of its own, which follows what users change in theirs."""
    own = copy.deepcopy(seen)
    vars(owner).update(config=own, swarm_followed=Followed(seen, own, copy.deepcopy(vars(seen))))
    return own


def _check_config(module: Any) -> None:
    """Raises InvalidInput where a change would change what the blocks compute."""
    followed: Followed | None = getattr(getattr(module, "swarm_blocks", module), "swarm_followed", None)
    if followed is None or vars(followed.seen) == followed.known:
        return
    for name, value in vars(followed.seen).items():
        if name in followed.known and followed.known[name] == value:
            continue
        if name not in ENDS and not is_free(followed.seen, name, value):
            raise InvalidInput(f"config.{name} was changed, but {ELSEWHERE}, as the checkpoint says")
        vars(followed.own)[name] = value
    followed.known = copy.deepcopy(vars(followed.seen))
