"""Drafts out of the text before, against a search through it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.speculation.drafts import Draft, NgramDrafter

texts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def by_search(text: list[int], count: int) -> Draft:
    """The last earlier place where the longest run at the end of the text stood, found by looking everywhere."""
    for size in (5, 4, 3, 2):
        tail = text[-size:]
        for begin in range(len(text) - 1, size - 1, -1):
            if len(tail) == size and text[begin - size : begin] == tail:
                tokens = list(text[begin:])
                while len(tokens) < count:
                    tokens.append(tokens[len(tokens) - (len(text) - begin)])
                return Draft(tuple(tokens[:count]), size)
    return Draft()


@given(texts, st.integers(1, 20), st.integers(1, 59))
def test_ngrams_are_those_that_a_search_finds(text: list[int], count: int, cut: int) -> None:
    drafter = NgramDrafter()
    drafter.learn(text[:cut])
    drafter.learn(text)
    expected = by_search(text, count)
    assert drafter.draft(text, count) == expected
    assert drafter.kind(text) == (expected.kind if expected.tokens else None)


def test_drafts_behind_drafts_go_on_where_the_first_ended() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    drafter = NgramDrafter()
    drafter.learn(text)
    assert drafter.draft(text, 2).tokens == (4, 5)
    assert drafter.draft([*text, 4, 5], 3).tokens == (6, 7, 8)


def test_a_loop_is_drafted_round_and_round() -> None:
    drafter = NgramDrafter()
    drafter.learn([7, 8, 7, 8, 7, 8])
    assert drafter.draft([7, 8, 7, 8, 7, 8], 7).tokens == (7, 8, 7, 8, 7, 8, 7)
