"""The checks at load find what is so, and say it once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from survey.configs import HEAD_DIM, KV_HEADS, small_config
from survey.reference import build
from swarm.errors import UnsupportedModel
from swarm.models.span.attention.base import RowMask
from swarm.models.span.attention.ragged import RaggedAttention
from swarm.models.span.base_model import BaseModel
from swarm.models.span.kv.cost import OBJECT_BYTES, Cost
from swarm.models.span.proof import NO_INTERFACE, NOT_PLAIN, Proven, prove
from swarm.types import Span

BLOCK = Cost(OBJECT_BYTES, 2 * KV_HEADS * HEAD_DIM * 4, rooms=True)
"""What keys and values of all KV heads take in one block."""


def proven(kind: str, span: str = "1:4", change: Any = None) -> Proven:
    model: Any = build(small_config(kind))
    if change is not None:
        change(model)
    return prove(BaseModel(model, Span.parse(span)), RaggedAttention())


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss"])
def test_batched(kind: str) -> None:
    assert proven(kind) == Proven(True, "", True, (BLOCK,) * 3, places=1)


def test_attention_of_its_own_is_unbatched() -> None:
    found = proven("bloom")
    assert (found.batched, found.why_unbatched, found.can_rollback) == (False, NO_INTERFACE, True)
    assert len(found.costs) == 3
    assert len(set(found.costs)) == 1
    assert not found.costs[0].rooms, "the library's cache has no more room than it needs"


def test_a_running_state_is_unbatched_and_does_not_roll_back() -> None:
    found = proven("lfm2", "2:4")
    assert (found.batched, found.why_unbatched, found.can_rollback) == (False, NOT_PLAIN, False)
    assert [cost.of(5) > cost.of(0) == 0 for cost in found.costs] == [True, True]


def test_a_finding_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        proven("llama").batched = False  # type: ignore[misc]


def test_blocks_that_look_at_later_positions_are_refused() -> None:
    def mix(model: Any) -> None:
        for layer in model.model.layers:
            layer.register_forward_pre_hook(lambda module, args: (args[0] + args[0].mean(dim=1, keepdim=True),))

    with pytest.raises(UnsupportedModel, match="later positions"):
        proven("llama", change=mix)


def test_blocks_that_hand_each_other_more_than_hidden_states_are_refused() -> None:
    def whisper(model: Any) -> None:
        said: list[torch.Tensor] = []

        def tell(module: Any, args: Any) -> None:
            said[:] = [args[0]]

        def listen(module: Any, args: Any) -> Any:
            same = said and said[0].shape == args[0].shape
            return (args[0] + (said.pop() if same else 0.0),)

        model.model.register_forward_pre_hook(lambda module, args: said.clear())
        model.model.layers[1].register_forward_pre_hook(tell)
        model.model.layers[3].register_forward_pre_hook(listen)

    with pytest.raises(UnsupportedModel, match="hand each other more"):
        proven("llama", change=whisper)


def test_attention_that_is_called_twice_is_unbatched() -> None:
    def twice(model: Any) -> None:
        for layer in model.model.layers:
            attention, plain = layer.self_attn, layer.self_attn.forward

            def forward(*args: Any, plain: Any = plain, **kwargs: Any) -> Any:
                if isinstance(kwargs["attention_mask"], RowMask):
                    plain(*args, **kwargs)
                return plain(*args, **kwargs)

            attention.forward = forward

    found = proven("llama", change=twice)
    assert (found.batched, found.why_unbatched) == (
        False,
        "its blocks do not call the attention interface exactly once each",
    )
