"""Attention one lane after another, each with torch's own product: for a CPU, and for any device. Lanes of a single
position are left to the compiled kernel, all at once, where there is one.

It appends each sequence's keys and values to that sequence's own cache and attends within the sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from swarm.models.span.attention.base import RowMask, check_call, current_row, row_mask
from swarm.models.span.attention.singles import Singles
from swarm.models.span.kv.growing import GrowingCache


class RaggedAttention:
    """Lane by lane, over buffers that grow. An `Attention`."""

    name = "swarm_ragged"

    def register(self) -> None:
        """Make it known to transformers; may be called again."""
        AttentionInterface.register(self.name, ragged_attention)
        AttentionMaskInterface.register(self.name, row_mask)

    def new_cache(self) -> GrowingCache:
        """Of a sequence that has no positions yet."""
        return GrowingCache()


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: RowMask | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for each lane of the current row by itself.

    query `[1, query heads, T, head_dim]`, key and value `[1, kv heads, T, …]` → `[1, T, query heads, value_dim]`; or,
    of lanes that have as many positions each, `[lanes, query heads, T, head_dim]` and so on.
    Raises Unbatchable where a model asks for what is not there.
    """
    row, block = current_row.get(), int(module.layer_idx)  # type: ignore[arg-type]
    stacked = query.shape[0]
    if stacked > 1:  # each in a row of its own
        query, key, value = (each.transpose(0, 1).flatten(1, 2).unsqueeze(0) for each in (query, key, value))
    row_mask = check_call(query, key, attention_mask, position_bias, kwargs)
    row.called(block)
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    begin, singles = 0, Singles.of(query, key, value, scale, softcap, s_aux)
    for lane in row.lanes:
        end = begin + lane.count
        keys, values = lane.cache.write(block, lane.start, key[0, :, begin:end], value[0, :, begin:end])
        queries = query[0, :, begin:end]
        mask = row_mask.needed(lane.start, lane.count, query.device)
        if lane.count == 1 and singles is not None:
            singles.add(query, begin, keys, values, mask, output)
        elif softcap is not None or s_aux is not None:
            output[begin:end] = _attend_explicitly(queries, keys, values, mask, scale, softcap, s_aux)
        else:
            output[begin:end] = _attend(queries, keys, values, mask, scale)
        begin = end
    if singles is not None:
        singles.attend()
    return output.view(stacked, -1, *output.shape[1:]), None


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
