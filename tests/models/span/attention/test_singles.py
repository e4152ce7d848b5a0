"""Single positions by the compiled kernel are torch's own attention of each, and the same bits in every company."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.models.linear.compiled import kernel
from swarm.models.span.attention.ragged import _attend_explicitly
from swarm.models.span.attention.singles import Singles

pytestmark = pytest.mark.skipif(kernel() is None, reason="there is no C compiler here")


def attended(
    query: torch.Tensor,
    kept: list[tuple[torch.Tensor, torch.Tensor]],
    masks: list[torch.Tensor | None],
    cap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    key, value = kept[0][0][None, :, :1], kept[0][1][None, :, :1]
    singles = Singles.of(query, key, value, 0.3, cap, sinks)
    assert singles is not None
    output = torch.empty(query.shape[2], query.shape[1], value.shape[-1])
    for row, ((keys, values), mask) in enumerate(zip(kept, masks, strict=True)):
        singles.add(query, row, keys, values, mask, output)
    singles.attend()
    return output


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=5),
    st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    st.integers(1, 40),
    st.integers(1, 80),
    st.booleans(),
    st.sampled_from([None, 20.0]),
    st.booleans(),
    st.sampled_from([1.0, 30.0]),
)
def test_each_gets_what_it_gets_alone(
    lengths: list[int],
    heads: tuple[int, int],
    dim: int,
    value_dim: int,
    masked: bool,
    cap: float | None,
    with_sinks: bool,
    size: float,
) -> None:
    torch.manual_seed(sum(lengths))
    query = (size * torch.randn(1, len(lengths), heads[0], dim)).transpose(1, 2)
    kept = [  # in buffers with room for more
        (torch.randn(heads[1], length + 3, dim)[:, :length], torch.randn(heads[1], length + 3, value_dim)[:, :length])
        for length in lengths
    ]
    masks = [torch.arange(length)[None] >= length // 2 if masked else None for length in lengths]
    sinks = torch.randn(heads[0]) if with_sinks else None
    got = attended(query, kept, masks, cap, sinks)
    for row, ((keys, values), mask) in enumerate(zip(kept, masks, strict=True)):
        one = query[:, :, row : row + 1]
        right = _attend_explicitly(
            one[0].double(), keys.double(), values.double(), mask, 0.3, cap, None if sinks is None else sinks.double()
        )
        torch.testing.assert_close(got[row : row + 1].double(), right, rtol=1e-4, atol=2e-5)
        assert torch.equal(attended(one, [(keys, values)], [mask], cap, sinks)[0], got[row])


def test_others_have_none() -> None:
    states = torch.randn(1, 2, 1, 8)
    assert Singles.of(states.bfloat16(), states, states, 1.0, None, None) is None
    assert Singles.of(states.clone().requires_grad_(), states, states, 1.0, None, None) is None
