"""Spans, as text and as ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import InvalidInput
from swarm.types import Span

SPANS = st.tuples(st.integers(0, 300), st.integers(1, 300)).map(lambda pair: Span(pair[0], pair[0] + pair[1]))


@given(SPANS)
def test_a_span_reads_back_as_itself(span: Span) -> None:
    assert Span.parse(str(span)) == span
    assert Span.parse(f" {span} \n") == span
    assert len(span) == len(list(span))
    assert all(block in span for block in span)
    assert span.first - 1 not in span
    assert span.last not in span


@given(SPANS, SPANS)
def test_one_span_covers_another_if_all_its_blocks_are_in_it(one: Span, other: Span) -> None:
    assert one.covers(other) == set(one).issuperset(other)


@pytest.mark.parametrize(
    "text",
    ["", "3", "3:", ":3", "3:3", "4:3", "-1:3", "1:2:3", "1.0:2", "a:b", "1 : 2", "٣:٤", "0:" + "9" * 5000, "1:2x"],
)  # fmt: skip
def test_what_is_no_span_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        Span.parse(text)


@given(st.text(max_size=12))
def test_any_text_is_a_span_or_refused(text: str) -> None:
    try:
        span = Span.parse(text)
    except InvalidInput:
        return
    assert 0 <= span.first < span.last


def test_a_span_of_nothing_is_refused() -> None:
    for first, last in ((3, 3), (4, 3), (-1, 2)):
        with pytest.raises(InvalidInput):
            Span(first, last)
