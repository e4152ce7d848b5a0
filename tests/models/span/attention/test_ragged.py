"""Attention lane by lane is the library's own attention of each sequence by itself.

The oracle is the plain ("eager") attention of the library's models, with the library's own masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, MistralConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention
from transformers.models.llama.modeling_llama import eager_attention_forward as llama_attention

from swarm.models.span.attention.base import Lane, Row, RowMask, Unbatchable, current_row, row_mask
from swarm.models.span.attention.ragged import RaggedAttention, ragged_attention
from swarm.models.span.kv.growing import GrowingCache

HEADS, HEAD_DIM, VALUE_DIM, WINDOW = 4, 8, 8, 5
STEPS = [{"a": 7, "b": 6}, {"b": 1}, {"a": 1, "b": 3}, {"a": 4, "b": 1}, {"b": 1, "a": 1}]
"""Positions of two sequences in each of several rows, in the order in which they lie there."""

States = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Queries, keys and values `[1, heads, T, head_dim]`."""


def block(index: int, **attributes: Any) -> Any:
    """What attention is called for."""
    return SimpleNamespace(layer_idx=index, training=False, **attributes)


@contextmanager
def as_row(lanes: Sequence[Lane[Any]]) -> Iterator[Row]:
    """What a pass over these lanes does around the model."""
    row = Row(lanes, {})
    token = current_row.set(row)
    try:
        yield row
    finally:
        current_row.reset(token)


def states(seed: int, count: int, kv_heads: int) -> States:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, HEADS, count, HEAD_DIM, generator=generator)
    key = torch.randn(1, kv_heads, count, HEAD_DIM, generator=generator)
    return query, key, torch.randn(1, kv_heads, count, VALUE_DIM, generator=generator)


def library_mask(count: int, window: bool) -> torch.Tensor:
    """The library's own mask of a whole sequence, as numbers to add."""
    config: Any = MistralConfig(sliding_window=WINDOW) if window else LlamaConfig()
    config._attn_implementation = "eager"
    make = create_sliding_window_causal_mask if window else create_causal_mask
    embeds = torch.zeros(1, count, 4)
    return make(config=config, inputs_embeds=embeds, attention_mask=None, past_key_values=None)  # type: ignore[arg-type, return-value]


def our_mask(window: bool) -> RowMask:
    """What the library gives to an attention that is registered as ours."""
    RaggedAttention().register()
    config: Any = MistralConfig(sliding_window=WINDOW) if window else LlamaConfig()
    config._attn_implementation_internal = RaggedAttention.name
    make = create_sliding_window_causal_mask if window else create_causal_mask
    mask: Any = make(config=config, inputs_embeds=torch.zeros(1, 4, 4), attention_mask=None, past_key_values=None)
    assert isinstance(mask, RowMask)
    return mask


def whole(attention: Any, module: Any, of: States, window: bool, **options: Any) -> torch.Tensor:
    """`[T, heads, value_dim]` of a whole sequence, by the library."""
    output, _ = attention(
        module, *of, library_mask(of[0].shape[2], window), scaling=HEAD_DIM**-0.5, dropout=0.0, **options
    )
    return output[0]  # type: ignore[no-any-return]


def in_rows(of: dict[str, States], mask: RowMask, **options: Any) -> dict[str, torch.Tensor]:
    """The same in the rows of `STEPS`."""
    caches = {name: GrowingCache() for name in of}
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in of}
    for step in STEPS:
        lanes = [Lane(caches[name].length, count, caches[name]) for name, count in step.items()]
        ends = [slice(lane.start, lane.start + lane.count) for lane in lanes]
        parts = [[tensor[:, :, end] for tensor in of[name]] for name, end in zip(step, ends, strict=True)]
        row = [torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True)]
        with as_row(lanes) as noted:
            output, _ = ragged_attention(block(0), *row, mask, **options)  # type: ignore[arg-type]
        assert noted.calls == {0: 1}
        for name, part in zip(step, torch.split(output[0], list(step.values())), strict=True):
            outputs[name].append(part)
            caches[name].length += step[name]
    return {name: torch.cat(parts) for name, parts in outputs.items()}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [False, True], ids=["causal", "window"])
def test_each_sequence_gets_what_it_gets_alone(kv_heads: int, window: bool) -> None:
    of = {name: states(seed, sum(step.get(name, 0) for step in STEPS), kv_heads) for seed, name in enumerate("ab")}
    got = in_rows(of, our_mask(window))
    for name in of:
        right = whole(llama_attention, block(0, num_key_value_groups=HEADS // kv_heads), of[name], window)
        torch.testing.assert_close(got[name], right, rtol=1e-4, atol=1e-5)


def test_capped_scores_are_gemmas() -> None:
    of = {name: states(seed, sum(step.get(name, 0) for step in STEPS), 2) for seed, name in enumerate("ab")}
    got = in_rows(of, our_mask(True), softcap=1.5)
    for name in of:
        right = whole(gemma2_attention, block(0, num_key_value_groups=2), of[name], True, softcap=1.5)
        torch.testing.assert_close(got[name], right, rtol=1e-4, atol=1e-5)
        plain = whole(llama_attention, block(0, num_key_value_groups=2), of[name], True)
        assert not torch.allclose(got[name], plain, atol=1e-3), "the cap matters here"


def test_learned_sinks_are_those_of_gpt_oss() -> None:
    sinks = torch.randn(HEADS, generator=torch.Generator().manual_seed(9))
    of = {name: states(seed, sum(step.get(name, 0) for step in STEPS), 2) for seed, name in enumerate("ab")}
    got = in_rows(of, our_mask(False), s_aux=sinks)
    for name in of:
        module = block(0, num_key_value_groups=2, sinks=sinks)
        right = whole(gpt_oss_attention, module, of[name], False, s_aux=sinks)
        torch.testing.assert_close(got[name], right, rtol=1e-4, atol=1e-5)


def test_values_may_be_narrower_than_keys() -> None:
    query, key, _ = states(0, 6, 2)
    value = torch.randn(1, 2, 6, 3)
    with as_row([Lane(0, 6, GrowingCache())]):
        output, _ = ragged_attention(block(0), query, key, value, our_mask(False))
    right = whole(llama_attention, block(0, num_key_value_groups=2), (query, key, value), False)
    torch.testing.assert_close(output[0], right, rtol=1e-4, atol=1e-5)


def test_a_mask_is_made_once_a_pass_for_lanes_of_one_shape() -> None:
    calls = []

    def note(batch: Any, head: Any, query: Any, key: Any) -> Any:
        calls.append(1)
        return key <= query

    mask = row_mask(mask_function=note)
    first = mask.of(3, 2, torch.device("cpu"))
    assert mask.of(3, 2, torch.device("cpu")) is first
    assert first.tolist() == [[True] * 4 + [False], [True] * 5]
    assert len(calls) == 1
    assert mask.needed(3, 1, torch.device("cpu")) is not None, "only of a plain causal mask it is known what it allows"
    assert row_mask().needed(3, 1, torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_mask": None}, "without the library's mask"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "without the library's mask"),
        ({"position_bias": torch.zeros(1)}, "position bias"),
        ({"output_attentions": True}, "returns weights"),
        ({"key": torch.zeros(1, 2, 5, HEAD_DIM)}, "as it is"),
        ({"query": torch.zeros(2, HEADS, 3, HEAD_DIM)}, "as it is"),
    ],
)
def test_what_a_row_does_not_have_is_refused(changes: dict[str, Any], words: str) -> None:
    query, key, value = states(0, 3, 2)
    call = {"query": query, "key": key, "value": value, "attention_mask": row_mask()} | changes
    with as_row([Lane(0, 3, GrowingCache())]), pytest.raises(Unbatchable, match=words):
        ragged_attention(block(0), **call)
