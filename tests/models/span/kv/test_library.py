"""The library's cache, one sequence at a time: what is computed from it is what plain transformers computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from survey.configs import small_config
from survey.reference import build
from swarm.models.span.kv.cost import OBJECT_BYTES
from swarm.models.span.kv.library import LibraryCache

TOKENS = 24
"""More than the windows of the small models."""


@pytest.fixture(scope="module", params=["llama", "gemma2", "lfm2"])
def model(request: pytest.FixtureRequest) -> Any:
    return build(small_config(request.param))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, cache: LibraryCache | None = None) -> torch.Tensor:
    """Of all positions, `[T, vocabulary]`; with a cache they stand behind what it holds."""
    if cache is None:
        return model(ids, use_cache=False).logits[0]  # type: ignore[no-any-return]
    positions = torch.arange(cache.length, cache.length + ids.shape[1])[None]
    output = model(ids, position_ids=positions, past_key_values=cache.cache, use_cache=True)
    cache.length += ids.shape[1]
    return output.logits[0]  # type: ignore[no-any-return]


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(3, 150, (1, TOKENS), generator=torch.Generator().manual_seed(seed))


def assert_close(got: torch.Tensor, right: torch.Tensor) -> None:
    assert float((got - right).abs().max() / right.abs().max()) <= 1e-4


def test_steps_of_all_sizes_give_what_the_whole_gives(model: Any) -> None:
    cache, ids = LibraryCache(model.config), tokens(0)
    parts = [logits(model, part, cache) for part in torch.split(ids, [9, 1, 7, 1, 6], dim=1)]
    assert cache.length == TOKENS
    assert_close(torch.cat(parts), logits(model, ids))


def test_a_fork_goes_its_own_way(model: Any) -> None:
    cache, one, other = LibraryCache(model.config), tokens(0), tokens(1)
    logits(model, one[:, :12], cache)
    twin = cache.fork(12)
    assert_close(logits(model, other[:, 12:], twin), logits(model, torch.cat([one[:, :12], other[:, 12:]], 1))[12:])
    assert_close(logits(model, one[:, 12:], cache), logits(model, one)[12:])


def test_what_can_roll_back_forgets_single_positions_beyond_a_window_too(model: Any) -> None:
    cache, one, other = LibraryCache(model.config), tokens(0), tokens(1)
    assert cache.can_rollback == (model.config.model_type != "lfm2")
    if not cache.can_rollback:
        return
    logits(model, one, cache)
    cache.truncate(15)
    assert cache.length == 15
    assert_close(logits(model, other[:, 15:], cache), logits(model, torch.cat([one[:, :15], other[:, 15:]], 1))[15:])
    cache.truncate(TOKENS + 5)
    assert cache.length == TOKENS, "there is nothing to forget"


def test_bytes_are_those_of_every_block(model: Any) -> None:
    cache, twice = LibraryCache(model.config), LibraryCache(model.config)
    logits(model, tokens(0)[:, :8], cache)
    logits(model, tokens(0)[:, :16], twice)
    assert cache.nbytes == sum(size + OBJECT_BYTES for size in cache.block_bytes() if size)
    assert all(size > 0 for size in cache.block_bytes()[: model.config.num_hidden_layers])
    if cache.is_plain:
        assert [2 * size for size in cache.block_bytes()] == twice.block_bytes()
