"""What a span costs."""

from __future__ import annotations

import pytest

from swarm.errors import InvalidInput
from swarm.server.sizing import Allowance, Sizes, footprint
from swarm.types import Span

SIZES = Sizes(weights=(100, 100, 300, 300), cache=(1, 1, 2, 2))


def test_a_cache_in_tokens_grows_with_the_span() -> None:
    allowance = Allowance(memory=1000, cache_bytes=5000, cache_tokens=50)
    assert allowance.block_bytes(SIZES) == [150, 150, 400, 400]
    assert allowance.fixed() == 0
    result = footprint(Span(1, 3), SIZES, allowance)
    assert (result.weight_bytes, result.cache_bytes, result.cache_tokens, result.total) == (400, 150, 50, 550)


@pytest.mark.parametrize(("memory", "cache"), [(1000, 250), (100_000, 5000)])
def test_a_cache_in_bytes_is_the_same_for_every_span_and_never_most_of_a_small_machine(memory: int, cache: int) -> None:
    allowance = Allowance(memory=memory, cache_bytes=5000)
    assert allowance.block_bytes(SIZES) == list(SIZES.weights)
    assert allowance.fixed() == cache
    result = footprint(Span(0, 4), SIZES, allowance)
    assert (result.cache_bytes, result.cache_tokens) == (cache, cache // 6)


def test_blocks_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"blocks 3:5 do not exist: the model has blocks 0:4"):
        footprint(Span(3, 5), SIZES, Allowance(1000, 0))
