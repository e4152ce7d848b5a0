"""Texts as they grow: the whole text at once is the oracle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from swarm.errors import BadCheckpoint, InvalidInput
from swarm.models.texts import UNFINISHED, Answer, Detokenizer, StopStrings, Texts, load_tokenizer
from swarm.models.token_bytes import _byte_letters


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


# ---- characters that several tokens share ---------------------------------------------------------------------------


def byte_level() -> Any:
    """Bytes, and a few longer tokens that end in the middle of a character."""
    alphabet = _byte_letters()
    letter = {byte: sign for sign, byte in alphabet.items()}
    written = lambda raw: "".join(letter[byte] for byte in raw)  # noqa: E731
    vocabulary = {written(bytes([byte])): byte for byte in range(256)}
    for raw in (b"a\xe4", b"\xbd\xa0b", b"\xa0\xe5", b" the", b"\xf0\x9f", b"\x90\x9d"):
        vocabulary[written(raw)] = len(vocabulary)
    plain = Tokenizer(models.BPE(vocabulary, []))
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")


def byte_fallback() -> Any:
    """Pieces of words with their spaces, and bytes for what they lack: as Llama 2 has it."""
    words = ["\u2581", "a", "b", "\u2581the", "\u2581a", "\u4f60", "e"]
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {word: 256 + at for at, word in enumerate(words)}
    plain = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    plain.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")


TOKENIZERS = {"bytes of letters": byte_level(), "bytes beside words": byte_fallback()}
EITHER = st.sampled_from(sorted(TOKENIZERS))
TOKENS = st.lists(st.integers(0, 262) | st.sampled_from(list("\u4f60\u597d\U0001f41d\xe9".encode())), max_size=24)
SPEECH = st.text("a b\xe9\u4f60\u597d\U0001f41d", max_size=12)


def told(tokenizer: Any, prompt: list[int], answer: list[int]) -> tuple[list[str], str]:
    texts = Texts(tokenizer)
    detokenizer = Detokenizer(texts.decode, prompt)
    return [detokenizer.add(token) for token in answer], detokenizer.end()


@given(EITHER, SPEECH, SPEECH)
def test_text_cut_into_bytes_comes_whole(kind: str, before: str, text: str) -> None:
    tokenizer, raw = TOKENIZERS[kind], [*text.encode()]
    pieces, rest = told(tokenizer, [97, *before.encode()], raw)
    assert ("".join(pieces), rest) == (text, "")
    assert UNFINISHED not in "".join(pieces)
    assert b"".join(map(Texts(tokenizer).piece, raw)) == text.encode()


@given(EITHER, TOKENS, TOKENS)
def test_nothing_is_told_that_plain_decoding_has_not(kind: str, prompt: list[int], answer: list[int]) -> None:
    tokenizer = TOKENIZERS[kind]
    pieces, rest = told(tokenizer, prompt, answer)
    text = "".join(pieces) + rest
    plain = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    assert text.count(UNFINISHED) <= plain.count(UNFINISHED)
    if UNFINISHED not in plain and not before.endswith(UNFINISHED):
        assert before + text == plain
    if UNFINISHED not in plain + before:
        stream = DecodeStream(skip_special_tokens=True)
        steps = [stream.step(tokenizer.backend_tokenizer, token) for token in [*prompt, *answer]]
        assert before + text == "".join(step or "" for step in steps)


@given(EITHER, TOKENS, st.integers(0, 24))
def test_pieces_are_the_same_whoever_goes_on(kind: str, answer: list[int], known: int) -> None:
    texts = Texts(TOKENIZERS[kind])
    first = Answer(texts, [97], [])
    pieces = [first.add(token) for token in answer]
    sent = len("".join(pieces[:known]).encode())
    second = Answer(texts, [97], [], sent)
    rest = "".join(second.add(token) for token in answer) + second.end()
    assert "".join(pieces[:known]) + rest == "".join(pieces) + first.end()


@pytest.mark.parametrize(("kind", "a"), [("bytes of letters", 97), ("bytes beside words", 257)])
def test_a_character_that_the_prompt_began_is_the_answers(kind: str, a: int) -> None:
    tokenizer, bee = TOKENIZERS[kind], [*"\U0001f41d".encode()]
    for begun in (1, 2, 3):
        prompt = [a, *bee[:begun]]
        waiting = [""] * (3 - begun)
        assert told(tokenizer, prompt, [*bee[begun:], a]) == ([*waiting, "\U0001f41d", "a"], "")
        assert told(tokenizer, prompt, [a]) == (["a"], "")
        assert told(tokenizer, prompt, []) == ([], "")


@given(EITHER, SPEECH, st.lists(st.sampled_from(["\u4f60", "\U0001f41d", "\u597d a", "b\xe9"]), max_size=2))
def test_stop_strings_are_found_across_tokens(kind: str, text: str, stops: list[str]) -> None:
    answer = Answer(Texts(TOKENIZERS[kind]), [97], stops)
    shown = ""
    for byte in text.encode():
        shown += answer.add(byte)
        if answer.stopped:
            break
    shown += answer.end()
    ends = [(text.find(stop) + len(stop), len(stop)) for stop in stops if stop in text]
    assert shown in ([text[: end - size] for end, size in ends if end == min(ends)[0]] if ends else [text])


def test_bytes_of_special_and_unknown_tokens() -> None:
    for tokenizer in TOKENIZERS.values():
        texts = Texts(tokenizer)
        assert texts.piece(tokenizer.eos_token_id) == b"</s>"
        assert texts.piece(10_000) == b""
        assert texts.piece(0xE4) == b"\xe4"
    assert Texts(TOKENIZERS["bytes beside words"]).piece(259) == b" the"
    assert Texts(TOKENIZERS["bytes of letters"]).piece(256) == b"a\xe4"
