"""What two peers must agree on: the same words wherever they meet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.contract import Contract
from swarm.errors import MalformedFrame
from swarm.span import Span
from swarm.wire import messages

WEIGHTS = tuple(bytes([block]) * 32 for block in range(8))
OFFERED = Contract("m" * 64, Span(0, 8), WEIGHTS, "float32", hidden_size=16, row_bytes=64, joined=(Span(4, 6),))


def test_what_is_offered_can_be_asked_for_in_whole_and_in_part() -> None:
    for span in (Span(0, 8), Span(2, 4), Span(4, 6), Span(7, 8)):
        assert OFFERED.difference(OFFERED.on(span)) is None
        assert OFFERED.difference(OFFERED.on(span).announced) is None
        assert OFFERED.difference(replace(OFFERED.on(span), fingerprints=())) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "other"}, "hosts blocks 0:8 of model mmmmmmmmmmmm, not 0:8 of other"),
        ({"span": Span(3, 9), "fingerprints": ()}, "hosts blocks 0:8 of model mmmmmmmmmmmm, not 3:9 of mmmmmmmmmmmm"),
        ({"hidden_size": 32}, "computes with hidden size 16, not 32"),
        ({"dtype": "bfloat16"}, "computes in float32, not in bfloat16"),
        ({"quantization": "int8"}, "computes in float32, not in float32, quantized to int8"),
        ({"adapters": ("ab",)}, "computes in float32, not in float32, with 1 adapters"),
        ({"row_bytes": 128}, "computes with 64 bytes a position, not 128"),
        (
            {"span": Span(3, 5), "fingerprints": ()},
            "blocks 4:6 must stay together: they hand each other more than hidden states",
        ),
        ({"fingerprints": (*WEIGHTS[:3], b"tuned", *WEIGHTS[4:7], b"")}, "has other weights in blocks 3"),
    ],
)
def test_what_differs_is_said(change: dict[str, Any], words: str) -> None:
    assert OFFERED.difference(replace(OFFERED, **change)) == words


def test_adapters_count_one_by_one() -> None:
    one, other = (replace(OFFERED, adapters=(digest,)) for digest in ("ab", "cd"))
    assert one.difference(one) is None
    assert one.difference(other) == "applies other adapters"


def test_sizes_that_are_not_known_yet_differ_from_nothing() -> None:
    assert replace(OFFERED, row_bytes=0, hidden_size=0).difference(OFFERED) is None


CONTRACTS = st.builds(
    Contract,
    model=st.text("abc", min_size=1, max_size=9),
    span=st.builds(lambda first, length: Span(first, first + length), st.integers(0, 90), st.integers(1, 9)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    quantization=st.sampled_from(["none", "int8"]),
    adapters=st.lists(st.text("0123456789abcdef", max_size=64), max_size=4).map(tuple),
    hidden_size=st.integers(0, 2**31),
    row_bytes=st.integers(0, 2**31),
)


@given(CONTRACTS, st.binary(min_size=8, max_size=8), st.booleans())
def test_a_contract_comes_over_the_wire_as_it_was(contract: Contract, print_: bytes, said: bool) -> None:
    contract = replace(contract, fingerprints=(print_,) * len(contract.span) if said else ())
    assert messages.contract_of(messages.contract_message(contract)) == contract


@pytest.mark.parametrize("joined", [[2], [2, 2], [2, 3], [4, 2], [2, 5, 4, 7], [0, 2], [4, 9], [2, 4, 4]])
def test_runs_of_blocks_that_are_none_are_refused(joined: list[int]) -> None:
    contract = Contract("m", Span(1, 8), joined=(Span(2, 4), Span(4, 8)))
    message = messages.contract_message(contract)
    assert messages.contract_of(message) == contract
    message.joined[:] = joined
    with pytest.raises(MalformedFrame):
        messages.contract_of(message)


@given(CONTRACTS, CONTRACTS)
def test_what_does_not_differ_computes_the_same(one: Contract, other: Contract) -> None:
    if one.difference(other) is None:
        assert (one.model, one.numbers, one.adapters) == (other.model, other.numbers, other.adapters)
        assert one.span.covers(other.span)
    assert one.difference(one) is None
