"""What attention over a row of many sequences is given, whatever computes it (continuous batching).

Every linear layer runs once over all positions of a row; only attention looks at the lanes, each a sequence's part of
the row with that sequence's own cache. The lanes reach it by a context variable, because some models do not pass
keyword arguments down to their attention. It is made known to transformers by a name, through the library's public
attention and mask interfaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from transformers.masking_utils import causal_mask_function

from swarm.models.lora import Pair, Place
from swarm.models.span.kv.base import KeyValueCache, SequenceCache

C = TypeVar("C", bound=SequenceCache)

MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""(batch, head, query position, key position) → whether to attend; given tensors, a tensor."""


class Unbatchable(Exception):
    """This model's attention needs something that a row of many sequences does not have."""


@dataclass(slots=True)
class Lane(Generic[C]):
    """One sequence's part of a row: `count` positions from absolute position `start`, and the sequence's cache.

    `places`: `[planes, count]`, where the positions stand for rotary embeddings and the like; None: as they are
    counted. `adapter`: what is added beside linear layers; `seed`: of what of their inputs it drops, none for nothing.
    `rollback`: the sequence is to be able to go back.
    """

    start: int
    count: int
    cache: C
    places: torch.Tensor | None = None
    adapter: Mapping[Place, Pair] | None = None
    seed: bytes = b""
    rollback: bool = False

    @property
    def planes(self) -> int:
        """Places that each position has; 0: none of its own."""
        return 0 if self.places is None else len(self.places)


@dataclass(slots=True)
class Row:
    """What one forward pass computes. `calls`: how often attention was called, by block."""

    lanes: Sequence[Lane[Any]]
    calls: dict[int, int]

    def called(self, block: int) -> None:
        """Count one call of a block's attention."""
        self.calls[block] = self.calls.get(block, 0) + 1


current_row: ContextVar[Row] = ContextVar("swarm_row")


class Attention(Protocol):
    """Attention over the lanes of `current_row`, and the kind of cache that it reads and writes."""

    @property
    def name(self) -> str:
        """By which transformers knows it."""

    def register(self) -> None:
        """Make it known to transformers; may be called again."""

    def new_cache(self) -> KeyValueCache:
        """Of a sequence that has no positions yet."""


class RowMask:
    """The library's own mask as a function of absolute positions, evaluated for each sequence by itself."""

    __slots__ = ("_made", "causal", "function")

    def __init__(self, function: MaskFunction) -> None:
        self.function = function
        self.causal = function is causal_mask_function
        self._made: dict[tuple[int, int], torch.Tensor] = {}

    def of(self, start: int, count: int, device: torch.device) -> torch.Tensor:
        """`[count, start + count]`, True where a query may attend to a key."""
        mask = self._made.get((start, count))
        if mask is None:
            zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
            queries = torch.arange(start, start + count, device=device).view(1, 1, -1, 1)
            keys = torch.arange(start + count, device=device).view(1, 1, 1, -1)
            allowed = self.function(zero, zero, queries, keys)
            mask = self._made[start, count] = allowed.expand(1, 1, count, start + count)[0, 0]
        return mask

    def needed(self, start: int, count: int, device: torch.device) -> torch.Tensor | None:
        """As `of`; None where a single new position attends to everything before it."""
        return None if count == 1 and self.causal else self.of(start, count, device)


def row_mask(*args: Any, mask_function: MaskFunction = causal_mask_function, **kwargs: Any) -> RowMask:
    """What transformers calls instead of building a mask tensor."""
    return RowMask(mask_function)


def check_call(
    query: torch.Tensor, key: torch.Tensor, attention_mask: object, position_bias: object, options: dict[str, Any]
) -> RowMask:
    """The mask of a call of attention, query `[1, heads, T, head_dim]` and key `[1, kv heads, T, head_dim]`.

    Raises Unbatchable where a model asks for what a row of many sequences does not have.
    """
    if not isinstance(attention_mask, RowMask):
        raise Unbatchable("its attention is called without the library's mask")
    if position_bias is not None or options.get("output_attentions"):
        raise Unbatchable("its attention takes a position bias, or returns weights")
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise Unbatchable("its attention does not see the row as it is")
    return attention_mask
