"""Texts as they grow: the whole text at once is the oracle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import BadCheckpoint, InvalidInput
from swarm.models.texts import Answer, Detokenizer, StopStrings, Texts, load_tokenizer


def decode(ids: Any, **options: Any) -> str:
    return bytes(ids).decode(errors="replace")


TEXTS = Texts(SimpleNamespace(decode=decode))
WORDS = st.text(st.characters(codec="utf-8"), max_size=12)


@given(WORDS, WORDS)
def test_pieces_add_up_to_the_text_and_characters_come_whole(before: str, text: str) -> None:
    detokenizer = Detokenizer(decode, list(before.encode()))
    pieces = [detokenizer.add(byte) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.end() == text
    assert all(piece in text for piece in pieces)


@given(st.binary(max_size=30))
def test_bytes_that_are_no_text_are_shown_in_the_end(junk: bytes) -> None:
    detokenizer = Detokenizer(decode, [])
    shown = "".join(map(detokenizer.add, junk)) + detokenizer.end()
    assert shown.replace("\N{REPLACEMENT CHARACTER}", "") in (
        shown,
        decode(junk).replace("\N{REPLACEMENT CHARACTER}", ""),
    )


LETTERS = st.text("abc", max_size=20)


@given(LETTERS, st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.lists(st.integers(1, 3), max_size=20))
def test_a_text_ends_before_its_first_stop_however_it_comes(text: str, stops: list[str], cuts: list[int]) -> None:
    found = [at for at in map(text.find, stops) if at >= 0]
    one_by_one = StopStrings(stops)
    shown = ""
    for letter in text:
        shown += one_by_one.add(letter)
        if one_by_one.stopped:
            break
    shown = shown if one_by_one.stopped else shown + one_by_one.end()
    assert one_by_one.stopped == bool(found)
    if not found:
        assert shown == text
    else:
        # Of stop texts that overlap, the one that is complete first ends the text.
        first = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert any(shown == text[: first - len(stop)] for stop in stops if text[:first].endswith(stop))


@given(st.text("aé\U0001f41d", max_size=10), st.integers(0, 10))
def test_an_answer_goes_on_where_its_asker_is(text: str, known: int) -> None:
    raw = text.encode()
    whole = Answer(TEXTS, [65], [])
    pieces = [whole.add(byte) for byte in raw]
    sent = len("".join(pieces[:known]).encode())
    again = Answer(TEXTS, [65], [], sent)
    rest = "".join(again.add(byte) for byte in raw) + again.end()
    assert "".join(pieces[:known]) + rest == text
    assert again.sent == len(raw)


@pytest.mark.parametrize("stops", [[""], ["x"] * 17, ["x" * 300]])
def test_stops_are_few_and_short(stops: list[str]) -> None:
    with pytest.raises(InvalidInput):
        StopStrings(stops)


def test_a_folder_without_a_tokenizer_is_said_to_be_one(tmp_path: Any) -> None:
    with pytest.raises(BadCheckpoint, match="tokenizer"):
        load_tokenizer(str(tmp_path))
