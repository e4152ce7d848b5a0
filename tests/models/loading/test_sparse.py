"""What is kept of a file is what was put there, or is fetched again, wherever it was cut off and whatever changed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.models.loading.sparse import SparseFile, journal_of, kept_of

WHOLE = bytes(range(200)) + bytes(range(100, 200))
RANGE = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(lambda ends: (min(ends), max(ends)))
PUT = st.lists(RANGE, max_size=5)


def kept(folder: Path, ranges: list[tuple[int, int]], identity: str = "one") -> Path:
    """Parts of the whole that a process kept."""
    file = SparseFile(folder / "model", identity, len(WHOLE))
    for first, last in ranges:
        file.put(first, WHOLE[first:last])
    return folder / "model"


def assert_right(path: Path, wanted: list[tuple[int, int]], identity: str = "one") -> list[tuple[int, int]]:
    """What another process finds there is right; returns what it would fetch."""
    file = SparseFile(path, identity, len(WHOLE))
    missing = file.missing(wanted)
    for first, last in missing:
        file.put(first, WHOLE[first:last])
    assert not file.missing(wanted)
    data = path.read_bytes()
    for first, last in wanted:
        assert data[first:last] == WHOLE[first:last]
    return missing


@given(PUT, st.lists(RANGE, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_what_is_there_is_not_fetched_again(ranges: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        missing = assert_right(kept(Path(folder), ranges), wanted)
        there = {number for first, last in ranges for number in range(first, last)}
        assert there.isdisjoint(number for first, last in missing for number in range(first, last))


@given(PUT, st.integers(0, 600), st.integers(0, 299), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_cut_off_at_any_byte_or_changed_it_is_right(
    ranges: list[tuple[int, int]], cut: int, at: int, byte: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = kept(Path(folder), ranges)
        journal_of(path).write_bytes(journal_of(path).read_bytes()[:cut])
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([byte]))
        assert_right(path, [(0, 300)])
        assert assert_right(path, [(0, 300)]) == []


@given(PUT, st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_a_journal_of_any_bytes_is_right(ranges: list[tuple[int, int]], journal: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = kept(Path(folder), ranges)
        with journal_of(path).open("ab") as file:
            file.write(journal)
        assert_right(path, [(0, 300)])


def test_of_another_file_nothing_is_kept(tmp_path: Path) -> None:
    path = kept(tmp_path, [(0, 100)])
    assert kept_of(path) == ("one", len(WHOLE))
    assert assert_right(path, [(0, 100)], "other") == [(0, 100)]
    assert kept_of(path) == ("other", len(WHOLE))


def test_of_a_file_that_was_cut_nothing_is_kept(tmp_path: Path) -> None:
    path = kept(tmp_path, [(0, 100)])
    path.write_bytes(path.read_bytes()[:50])
    assert assert_right(path, [(0, 100)]) == [(0, 100)]
