"""The base model around a span's blocks adds nothing of its own: the oracle is plain transformers, block by block."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from survey.configs import HIDDEN, small_config
from survey.reference import build
from swarm.errors import UnsupportedModel
from swarm.models.span.attention.ragged import RaggedAttention
from swarm.models.span.base_model import BaseModel
from swarm.types import Span
from tests.models.span.test_model import assert_close, boundaries

LENGTH = 10
KINDS = {
    "llama": "a norm behind the blocks, rotary embeddings beside them",
    "gpt2": "learned positions, added before the first block",
    "gemma2": "embeddings that are multiplied; blocks of two kinds",
    "bloom": "a norm before the first block",
    "granite": "a multiplier among the attributes",
    "ctrl": "a multiplier in the code alone, and a table of positions",
    "roberta": "a model that takes embeddings, around another that has the blocks",
}


def whole(kind: str) -> Any:
    config: Any = small_config(kind)
    if kind == "granite":
        config.embedding_multiplier = 12.0
    return build(config)


@torch.no_grad()
def run(base: BaseModel, hidden: torch.Tensor) -> torch.Tensor:
    """`[T, hidden_size]` of a sequence through the blocks that are not left out."""
    return base.run(hidden[None], torch.arange(len(hidden))[None], use_cache=False)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_any_part_of_a_span_is_the_whole_models_own(kind: str) -> None:
    model = whole(kind)
    states = boundaries(model, LENGTH)
    base = BaseModel(copy.deepcopy(model), Span(1, 5))
    base.check_identity()
    for part in (Span(1, 5), Span(2, 3), Span(3, 5), Span(1, 2), Span(1, 5)):
        base.narrow(part)
        assert_close(run(base, states[part.first]), states[part.last])


def test_what_cannot_be_taken_out_is_passed_by() -> None:
    model = whole("llama")
    states = boundaries(model, LENGTH)
    plain = type(model.model).forward

    def forward(self: Any, *args: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return plain(self, *args, inputs_embeds=3.0 * inputs_embeds + 1.0, **kwargs)

    model.model.__class__ = type("Shifted", (type(model.model),), {"forward": forward})
    base = BaseModel(model, Span(0, 3))
    base.check_identity()
    for part in (Span(0, 3), Span(1, 2)):
        base.narrow(part)
        assert_close(run(base, states[part.first]), states[part.last])


def test_blocks_that_are_given_the_embeddings_too_are_refused() -> None:
    model = whole("llama")
    plain = type(model.model).forward

    def forward(self: Any, *args: Any, inputs_embeds: Any = None, **kwargs: Any) -> Any:
        return plain(self, *args, inputs_embeds=inputs_embeds, first_states=inputs_embeds, **kwargs)

    model.model.__class__ = type("Remembering", (type(model.model),), {"forward": forward})
    with pytest.raises(UnsupportedModel, match="given more than hidden states and positions: first_states"):
        BaseModel(model, Span(0, 3)).check_identity()


def test_a_beat_after_each_block() -> None:
    base, beats = BaseModel(whole("llama"), Span(0, 4)), []
    base.check_identity()
    base.after_each_block(lambda: beats.append(1))
    base.narrow(Span(1, 3))
    run(base, torch.randn(LENGTH, HIDDEN))
    assert len(beats) == 2


def test_attention_is_ours_or_the_librarys() -> None:
    model = whole("gemma2")
    own = model.config._attn_implementation
    base = BaseModel(model, Span(0, 3))
    base.check_identity()
    states = torch.randn(LENGTH, HIDDEN)
    expected = run(base, states)
    base.use_attention(RaggedAttention())
    with pytest.raises(LookupError):
        run(base, states)  # it asks for the row, and there is none
    base.use_own_attention()
    assert {block.self_attn.config._attn_implementation for block in base.blocks} == {own}
    assert torch.equal(run(base, states), expected)
