"""What stands around a span's blocks: in place of what the client has computed already, and where hidden states enter
and leave."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from swarm.models.loading.partial import Absent
from swarm.models.row_shape import TOKENS, RowShape


def hidden_among(values: Sequence[Any], hidden_size: int) -> torch.Tensor | None:
    """The first of `values` that are hidden states `[.., hidden_size]`; None: there are none."""
    tensors = (value for value in values if isinstance(value, torch.Tensor))
    return next((t for t in tensors if t.is_floating_point() and t.shape[-1:] == (hidden_size,)), None)


class PassThrough(Absent):
    """In place of a module that changes the hidden states outside the blocks: returns what it is given."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return hidden_among((*args, *kwargs.values()), self.hidden_size)


class AddsNothing(nn.Module):
    """In place of learned position embeddings, which the client has added already. `value`: what it gives instead."""

    def __init__(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.value = 0.0
        self.register_buffer("weight", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.hidden_size = hidden_size

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        weight: Any = self.weight
        return weight.new_full((1, 1, self.hidden_size), self.value)  # type: ignore[no-any-return]


class Reached(Exception):
    """A block has been reached, with these hidden states and arguments beside them, by name."""

    def __init__(self, hidden: torch.Tensor, others: dict[str, Any]) -> None:
        super().__init__()
        self.hidden = hidden
        self.others = others

    def difference(self, other: Reached) -> str | None:
        """The name of an argument that is another there; None: there is none."""
        names = self.others.keys() | other.others.keys()
        return next((n for n in sorted(names) if not _same(self.others.get(n), other.others.get(n))), None)


def reach(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A hook before a block that raises Reached."""
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    given = {**{names[i] if i < len(names) else f"argument {i}": value for i, value in enumerate(args)}, **kwargs}
    raise Reached(given.pop(names[0]), given)


def _same(one: Any, other: Any) -> bool:
    """Of what a block is called with; caches and the like are not looked into."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, torch.Tensor) == isinstance(other, torch.Tensor)


class Entered:
    """Puts hidden states in at the first block, whatever comes to it, and takes them at the last; where blocks are
    given tokens, these too. `shape`: of rows; `vocabulary`: how many tokens there are."""

    def __init__(self, shape: RowShape, vocabulary: int) -> None:
        self.shape = shape
        self.vocabulary = vocabulary

    @contextmanager
    def between(self, blocks: Sequence[nn.Module], hidden: torch.Tensor) -> Iterator[Callable[[], torch.Tensor]]:
        """`hidden` `[batch, T, size]` is what the first of `blocks` gets of a forward within; gives what the last has
        left, of the same shape."""
        entering, shape = self.shape.hidden(hidden), self.shape
        ids = shape.ids(hidden, self.vocabulary) if shape.tokens else None
        left: list[torch.Tensor] = []

        def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (entering, *args[1:]), kwargs
            first = list(inspect.signature(type(block).forward).parameters)[1]
            return args, {**kwargs, first: entering}

        def tell(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, TOKENS: ids}

        def leave(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            left.append(output[0] if isinstance(output, tuple) else output)

        hooks = [
            blocks[0].register_forward_pre_hook(enter, with_kwargs=True),
            blocks[-1].register_forward_hook(leave),
        ]
        if ids is not None:
            hooks += [block.register_forward_pre_hook(tell, with_kwargs=True) for block in blocks]
        try:
            yield lambda: torch.cat([shape.numbers_of(left[-1]), hidden[..., shape.numbers :]], dim=-1)
        finally:
            for hook in hooks:
                hook.remove()
