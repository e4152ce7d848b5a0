"""Two ways to run the lanes of a row give the same, and leave the caches at the same length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from survey.configs import HIDDEN, small_config
from survey.reference import build
from swarm.models.span.attention.base import Lane
from swarm.models.span.attention.ragged import RaggedAttention
from swarm.models.span.base_model import BaseModel
from swarm.models.span.passes import Batched, Unbatched
from swarm.types import Span
from tests.models.span.test_model import assert_close

STEPS = [(7, 5), (1, 0), (0, 2), (1, 1), (3, 4)]
"""Positions of two sequences in each of several rows."""


def passes(kind: str) -> tuple[Batched, Unbatched]:
    """Both ways over the blocks of one model, each with weights of its own that are the same."""
    batched, unbatched = (BaseModel(build(small_config(kind)), Span(0, 4)) for _ in range(2))  # type: ignore[arg-type]
    for base in (batched, unbatched):
        base.check_identity()
    batched.use_attention(RaggedAttention())
    return Batched(batched, RaggedAttention()), Unbatched(unbatched)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_oss"])
def test_in_one_row_or_one_after_the_other(kind: str) -> None:
    ways: tuple[Any, Any] = passes(kind)
    caches = [[way.new_cache() for _ in range(2)] for way in ways]
    generator = torch.Generator().manual_seed(0)
    for counts in STEPS:
        hidden = torch.randn(1, sum(counts), HIDDEN, generator=generator)
        outputs = []
        for way, its in zip(ways, caches, strict=True):
            lanes = [Lane(cache.length, count, cache) for cache, count in zip(its, counts, strict=True) if count]
            outputs.append(way.run(lanes, hidden))
        assert outputs[0].shape == hidden.shape
        assert_close(outputs[0], outputs[1])
    assert [[cache.length for cache in its] for its in caches] == [[12, 12]] * 2


@torch.inference_mode()
def test_a_row_that_is_filled_up_leaves_no_trace() -> None:
    batched, _ = passes("llama")
    batched._model.fewest_rows = 4
    cache = batched.new_cache()
    hidden = torch.randn(1, 4, HIDDEN)
    parts = [batched.run([Lane(at, 1, cache)], hidden[:, at : at + 1]) for at in range(4)]
    assert cache.length == 4
    whole = batched.run([Lane(0, 4, batched.new_cache())], hidden)
    assert_close(torch.cat(parts, dim=1), whole)


@torch.inference_mode()
def test_a_pass_that_fails_does_not_count() -> None:
    batched, unbatched = passes("llama")
    for way in (batched, unbatched):
        any_way: Any = way
        cache = any_way.new_cache()
        any_way.run([Lane(0, 4, cache)], torch.randn(1, 4, HIDDEN))
        with pytest.raises(RuntimeError):
            any_way.run([Lane(4, 2, cache)], torch.randn(1, 2, HIDDEN + 1))
        assert cache.length == 4
