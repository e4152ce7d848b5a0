"""Spans, as text and as ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import InvalidInput
from swarm.types import Span, check_name, printable

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


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "a\u202eb", "x" * 257, "\0"])
def test_a_name_that_others_cannot_show_is_refused_and_the_refusal_can_be_shown(name: str) -> None:
    with pytest.raises(InvalidInput, match="the name") as caught:
        check_name(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "one", "Zoë's 4090, garage", "機械", "x" * 256])
def test_other_names_are_kept(name: str) -> None:
    assert check_name(name) == name


def test_what_a_stranger_wrote_cannot_steer_a_terminal() -> None:
    assert printable("\x1b[31mred\u202e\n") == "?[31mred?\n"
    assert printable("as it is") == "as it is"
