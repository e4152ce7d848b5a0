"""Attention over many sequences that lie one after another in one row (continuous batching).

Registered with transformers under the name `swarm_ragged` through its public attention and mask interfaces. Every
linear layer runs once over all tokens of the row; only this function looks at the segments: it appends each
sequence's keys and values to that sequence's own cache and attends within the sequence. The segments reach it by a
context variable, because some models do not pass keyword arguments down to their attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from swarm.models.span.kv.growing import SequenceCache

NAME = "swarm_ragged"

MaskFunction = Callable[[Any, Any, Any, Any], Any]
"""(batch, head, query position, key position) → whether to attend; given tensors, a tensor."""


class Unbatchable(Exception):
    """This model's attention needs something that a row of many sequences does not have."""


@dataclass(slots=True)
class Lane:
    """One segment of the row: `count` positions from absolute position `start`, and the sequence's cache."""

    start: int
    count: int
    cache: SequenceCache


@dataclass(slots=True)
class Row:
    """What one forward pass computes. `calls`: how often attention was called, by block."""

    lanes: Sequence[Lane]
    calls: dict[int, int]


current_row: ContextVar[Row] = ContextVar("swarm_row")


class RaggedMask:
    """The library's own mask as a function of absolute positions, evaluated for each sequence by itself."""

    __slots__ = ("_cache", "causal", "function")

    def __init__(self, function: MaskFunction) -> None:
        self.function = function
        self.causal = function is causal_mask_function
        self._cache: dict[tuple[int, int], torch.Tensor] = {}

    def of(self, start: int, count: int, device: torch.device) -> torch.Tensor:
        """`[count, start + count]`, True where a query may attend to a key."""
        mask = self._cache.get((start, count))
        if mask is None:
            zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
            queries = torch.arange(start, start + count, device=device).view(1, 1, -1, 1)
            keys = torch.arange(start + count, device=device).view(1, 1, 1, -1)
            allowed = self.function(zero, zero, queries, keys)
            mask = self._cache[start, count] = allowed.expand(1, 1, count, start + count)[0, 0]
        return mask


def ragged_mask(*args: Any, mask_function: MaskFunction = causal_mask_function, **kwargs: Any) -> RaggedMask:
    """What transformers calls instead of building a mask tensor."""
    return RaggedMask(mask_function)


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: RaggedMask | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for each segment of the row by itself.

    query `[1, query heads, T, head_dim]`, key and value `[1, kv heads, T, …]` → `[1, T, query heads, value_dim]`.
    Raises Unbatchable where a model asks for what is not there.
    """
    row = current_row.get()
    if not isinstance(attention_mask, RaggedMask):
        raise Unbatchable("its attention is called without the library's mask")
    if position_bias is not None or kwargs.get("output_attentions"):
        raise Unbatchable("its attention takes a position bias, or returns weights")
    index = int(module.layer_idx)  # type: ignore[arg-type]
    row.calls[index] = row.calls.get(index, 0) + 1
    if query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise Unbatchable("its attention does not see the row as it is")
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    begin = 0
    for lane in row.lanes:
        end = begin + lane.count
        keys, values = lane.cache.block(index).write(lane.start, key[0, :, begin:end], value[0, :, begin:end])
        queries = query[0, :, begin:end]
        mask = _needed_mask(attention_mask, lane, query.device)
        if softcap is not None or s_aux is not None:
            attended = _attend_explicitly(queries, keys, values, mask, scale, softcap, s_aux)
        else:
            attended = _attend(queries, keys, values, mask, scale)
        output[begin:end] = attended
        begin = end
    return output.unsqueeze(0), None


def _needed_mask(mask: RaggedMask, lane: Lane, device: torch.device) -> torch.Tensor | None:
    """None where a single new position attends to everything before it."""
    if lane.count == 1 and mask.causal:
        return None
    return mask.of(lane.start, lane.count, device)


def _attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """queries `[Hq, n, d]`, keys and values `[Hkv, L, …]` → `[n, Hq, dv]`, without copying keys for grouped heads.

    The query heads of one group lie next to each other: they become more queries of their one key head.
    """
    heads, count, _ = queries.shape
    groups = heads // keys.shape[0]
    grouped = queries.reshape(1, keys.shape[0], groups * count, -1)
    if mask is not None and groups > 1:
        mask = mask.repeat(groups, 1)
    attended = scaled_dot_product_attention(
        grouped, keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask, scale=scale
    )
    return attended.reshape(heads, count, -1).transpose(0, 1)


def _attend_explicitly(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The same with capped scores (Gemma 2) or a learned sink beside the keys (gpt-oss)."""
    heads, count, _ = queries.shape
    groups = heads // keys.shape[0]
    grouped = queries.reshape(keys.shape[0], groups * count, -1)
    scores = (grouped @ keys.transpose(1, 2) * scale).reshape(heads, count, -1)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        scores = torch.cat([scores, sinks.reshape(-1, 1, 1).expand(heads, count, 1).to(scores.dtype)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    weights = weights[..., : keys.shape[1]].reshape(keys.shape[0], groups * count, -1)
    return (weights @ values).reshape(heads, count, -1).transpose(0, 1)


def register() -> None:
    """Make the attention known to transformers; may be called again."""
    AttentionInterface.register(NAME, ragged_attention)
    AttentionMaskInterface.register(NAME, ragged_mask)
