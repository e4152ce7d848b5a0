"""Which blocks of a model must stay on one machine: those that hand each other more than hidden states.

Nothing is computed: the outline of the model, shapes without numbers, is run once, and of every tensor it is noted
which block made it. A block that reads a tensor made in an earlier one, and not as its hidden states, must be where
that one is: keys and values of other blocks, positions that others have selected, and whatever comes next.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx.experimental import _config as fx_config
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel

from swarm.models.blocks import find_blocks
from swarm.models.linear.experts import expert_weights
from swarm.models.loading.form import Form, model_class
from swarm.models.loading.partial import outline
from swarm.span import Span

log = logging.getLogger(__name__)

POSITIONS = 4
MADE_IN = "_swarm_made_in"
"""Where a tensor has the number of the block that made it."""


def joined_blocks(config: PretrainedConfig, form: Form = Form.TEXT) -> tuple[Span, ...]:
    """Runs of at least two blocks between which a model of this configuration cannot be cut, in order. Empty where
    there are none, and where the outline does not run without numbers: the checks at load then say so."""
    return _found(_Model(type(config), config.to_json_string(use_diff=False), form, config))


@dataclass(frozen=True, slots=True)
class _Model:
    """What is asked of, by its text: opening the same model again, as many do, need not run it again."""

    kind: type[PretrainedConfig]
    text: str
    form: Form
    config: PretrainedConfig = field(compare=False)


@functools.lru_cache(maxsize=64)
def _found(model: _Model) -> tuple[Span, ...]:
    try:
        own = copy.deepcopy(model.config)  # how it attends is changed
        return runs(_read(outline(model_class(own, model.form), own, model.form)))
    except Exception as error:  # each model that looks at numbers says in its own way that there are none
        log.debug("which blocks belong together is seen at load: %r", error)
        return ()


def runs(read: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    """From pairs of blocks that belong together, with all between them, the longest runs."""
    found: list[Span] = []
    for first, last in sorted(read):
        if found and first < found[-1].last:
            found[-1] = Span(found[-1].first, max(found[-1].last, last + 1))
        else:
            found.append(Span(first, last + 1))
    return tuple(found)


class _Origins(TorchFunctionMode):
    """Marks what is made with the block that is running, and notes `read`: (maker, reader)."""

    def __init__(self) -> None:
        super().__init__()
        self.block: int | None = None
        self.read: set[tuple[int, int]] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = list(_tensors((args, kwargs or {})))
        before = [each._version for each in given]
        result = func(*args, **(kwargs or {}))
        makers = [maker for each in given if (maker := getattr(each, MADE_IN, None)) is not None]
        made = list(_made(given, before, result))
        if self.block is not None and made:  # of others' shapes every block may know
            self.read.update((maker, self.block) for maker in makers if maker != self.block)
        here = self.block if self.block is not None else max(makers, default=None)
        for each in made:
            if here is not None and not isinstance(each, nn.Parameter):
                setattr(each, MADE_IN, here)
        return result


def _made(given: Sequence[torch.Tensor], before: Sequence[int], result: Any) -> Iterator[torch.Tensor]:
    """What a function has made or changed, by the versions of what it was given: not what it gives back as it was, such
    as `to` where nothing changes."""
    as_it_was = {id(each) for each in given}
    yield from (each for each, version in zip(given, before, strict=True) if each._version != version)
    yield from (each for each in _tensors(result) if id(each) not in as_it_was)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)


def _read(model: PreTrainedModel) -> list[tuple[int, int]]:
    """(maker, reader) of all that blocks read of others. Raises whatever the model does."""
    blocks, origins = find_blocks(model), _Origins()
    base: Any = blocks.base.eval()
    base.config._attn_implementation_internal = "eager"
    ids = torch.zeros(1, POSITIONS, device="meta", dtype=torch.long)
    positions = torch.arange(POSITIONS, device="meta").unsqueeze(0)
    accepted = inspect.signature(base.forward).parameters
    given = {"position_ids": positions, "past_key_values": DynamicCache(config=base.config), "use_cache": True}
    all_of_them = fx_config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    with torch.no_grad(), all_of_them, _noted(blocks.layers, origins), origins:
        base(input_ids=ids, **{name: value for name, value in given.items() if name in accepted})
    return sorted(origins.read)


@contextmanager
def _noted(layers: nn.ModuleList, origins: _Origins) -> Iterator[None]:
    """Tell `origins` which block runs; what a block gets as hidden states was made by nobody."""

    def enter(index: int) -> Callable[..., Any]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name = list(inspect.signature(type(block).forward).parameters)[1]
            with torch._C.DisableTorchFunction():
                hidden = args[0] if args else kwargs[name]
                fresh = hidden.detach()
            origins.block = index
            return ((fresh, *args[1:]), kwargs) if args else (args, {**kwargs, name: fresh})

        return hook

    def leave(block: nn.Module, args: Any, output: Any) -> None:
        origins.block = None

    hooks: list[Any] = []
    for index, layer in enumerate(layers):
        hooks += [layer.register_forward_pre_hook(enter(index), with_kwargs=True), layer.register_forward_hook(leave)]
        for owner, _ in expert_weights(layer):
            vars(owner)["forward"] = _unmixed
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _unmixed(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """In place of experts, which look at numbers to find whose tokens are whose."""
    return torch.empty_like(hidden)
