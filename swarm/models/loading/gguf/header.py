"""What a GGUF file says before its tensors: metadata, and where each tensor lies. Nothing in it is believed.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: counts, then key-value pairs, then a
table of tensors whose offsets count from the aligned end of the table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import BinaryIO

from swarm.errors import BadCheckpoint
from swarm.models.loading.gguf.stored import STORED

MAGIC, VERSIONS = b"GGUF", (2, 3)
MOST_BYTES = 1 << 26
"""Of a header: vocabularies of a quarter of a million tokens take ten to twenty million."""
MOST_TEXTS = 1 << 21
"""In all arrays: three quarters of a million are many."""
MOST_ENTRIES, MOST_TENSORS = 1 << 14, 1 << 18
MOST_DIMENSIONS = 4
LONGEST_NAME = 1 << 10
KEPT = 1 << 12
"""Numbers of an array that are kept; of longer ones, and of those of texts, only the length is."""
MOST_NUMBERS = 1 << 48
PIECE = 1 << 20
"""Bytes that are read at once."""
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

Value = str | int | float | bool | list[int] | list[float]


@dataclass(frozen=True, slots=True)
class Info:
    """A tensor: its shape in torch's order, its type's number, and which bytes of the file are its."""

    shape: tuple[int, ...]
    type: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Header:
    """`metadata`: values by key, without arrays of texts and long ones; `lengths`: of all arrays."""

    metadata: dict[str, Value]
    lengths: dict[str, int]
    tensors: dict[str, Info]

    @property
    def architecture(self) -> str:
        """As the file calls it, such as `qwen2moe`. Raises BadCheckpoint."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise BadCheckpoint("it does not say which architecture it is of")
        return name


def read_header(path: Path) -> Header:
    """The header of a file. Raises BadCheckpoint for any that is damaged, cut or absurd; reads `MOST_BYTES` at most."""
    try:
        with path.open("rb", buffering=0) as file:
            return _parse(_Bytes(file, path.stat().st_size))
    except (OSError, BadCheckpoint) as error:
        raise BadCheckpoint(f"{path} is no GGUF file that can be read ({error}); fetch it again") from error


def architecture_of(beginning: bytes) -> str | None:
    """What the first bytes of a file say of its architecture; None where they do not yet. Raises BadCheckpoint."""
    import io

    reader = _Bytes(io.BytesIO(beginning), len(beginning))
    _, entries = _counts(reader)
    for _ in range(entries):
        try:
            key, value = reader.string(LONGEST_NAME), reader.value()
        except _Ends:
            return None
        if key == "general.architecture":
            return str(value)
    return None


class _Ends(BadCheckpoint):
    """The file is shorter than it says."""


class _Bytes:
    """The beginning of a file of `size` bytes, read as far as is asked for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self._read = bytearray()
        self._texts = 0
        self.at = 0

    def take(self, count: int) -> int:
        """Go on by so many bytes; returns where they begin in `self._read`."""
        begin, end = self.at, self.at + count
        if end > self._size:
            raise _Ends("it ends within its header")
        if end > MOST_BYTES:
            raise BadCheckpoint(f"its header has more than {MOST_BYTES} bytes")
        while len(self._read) < end:
            piece = self._file.read(PIECE)
            if not piece:
                raise _Ends("it ends within its header")
            self._read += piece
        self.at = end
        return begin

    def unpack(self, layout: str) -> tuple[int, ...]:
        """Numbers, low bytes first."""
        return struct.unpack_from(f"<{layout}", self._read, self.take(struct.calcsize(f"<{layout}")))

    def length(self) -> int:
        """A number of 64 bits."""
        begin = self.take(8)
        return int.from_bytes(self._read[begin : begin + 8], "little")

    def string(self, longest: int = MOST_BYTES) -> str:
        """A text. Raises BadCheckpoint for one that is none."""
        length = self.length()
        if length > longest:
            raise BadCheckpoint(f"it has a text of {length} bytes where {longest} are allowed")
        begin = self.take(length)
        try:
            return self._read[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadCheckpoint(f"it has a text that is no UTF-8: {error}") from error

    def value(self) -> Value | _Long:
        """What stands behind a key."""
        (kind,) = self.unpack("I")
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._array()
        if kind not in NUMBERS:
            raise BadCheckpoint(f"it has a value of type {kind}, which there is not")
        return self.unpack(NUMBERS[kind])[0]

    def _array(self) -> Value | _Long:
        (of,), count = self.unpack("I"), self.length()
        if of == STRING:
            self._texts += count
            if self._texts > MOST_TEXTS:
                raise BadCheckpoint(f"it has {self._texts} texts, and {MOST_TEXTS} are allowed")
            for _ in range(self._possible(count, 8)):
                self.take(self.length())
            return _Long(count)
        if of not in NUMBERS:
            raise BadCheckpoint(f"it has an array of type {of}, which is not read here")
        count = self._possible(count, struct.calcsize(f"<{NUMBERS[of]}"))
        if count > KEPT:
            self.take(count * struct.calcsize(f"<{NUMBERS[of]}"))
            return _Long(count)
        return list(self.unpack(f"{count}{NUMBERS[of]}"))

    def _possible(self, count: int, each: int) -> int:
        if count * each > self._size - self.at:
            raise _Ends(f"it has an array of {count} that ends behind it")
        return count


@dataclass(frozen=True, slots=True)
class _Long:
    """An array of which only the length is kept."""

    count: int


def _parse(reader: _Bytes) -> Header:
    tensors, entries = _counts(reader)
    metadata: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    for _ in range(entries):
        key, value = reader.string(LONGEST_NAME), reader.value()
        if key in metadata or key in lengths:
            raise BadCheckpoint(f"it says {key!r} twice")
        if isinstance(value, _Long):
            lengths[key] = value.count
            continue
        metadata[key] = value
        if isinstance(value, list):
            lengths[key] = len(value)
    table = [_entry(reader) for _ in range(tensors)]
    alignment = _alignment(metadata)
    begin = -(-reader.at // alignment) * alignment
    return Header(metadata, lengths, _placed(table, begin, alignment, reader))


def _counts(reader: _Bytes) -> tuple[int, int]:
    """Of tensors, and of entries of the metadata."""
    begin = reader.take(4)
    if bytes(reader._read[begin : begin + 4]) != MAGIC:
        raise BadCheckpoint("it does not begin with GGUF")
    version, tensors, entries = reader.unpack("IQQ")
    if version not in VERSIONS:
        raise BadCheckpoint(f"it is of version {version}; versions {VERSIONS} are read")
    if tensors > MOST_TENSORS or entries > MOST_ENTRIES:
        raise BadCheckpoint(f"it tells of {tensors} tensors and {entries} entries")
    return tensors, entries


def _alignment(metadata: dict[str, Value]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= PIECE or alignment & (alignment - 1):
        raise BadCheckpoint(f"it aligns tensors to {alignment!r}, which is no power of two")
    return alignment


def _entry(reader: _Bytes) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor."""
    name, (dimensions,) = reader.string(LONGEST_NAME), reader.unpack("I")
    if dimensions > MOST_DIMENSIONS:
        raise BadCheckpoint(f"{name!r} has {dimensions} dimensions")
    shape = reader.unpack(f"{dimensions}Q")[::-1]
    kind, offset = reader.unpack("IQ")
    if kind not in STORED:
        raise BadCheckpoint(f"{name!r} is stored as type {kind}, which is not read here")
    if not all(0 < number < MOST_NUMBERS for number in shape) or prod(shape) >= MOST_NUMBERS:
        raise BadCheckpoint(f"{name!r} has the shape {list(shape)}")
    if STORED[kind].numbers > 1 and (not shape or shape[-1] % STORED[kind].numbers):
        raise BadCheckpoint(f"{name!r} has rows of {shape[-1:]} numbers, stored as {STORED[kind].name}")
    return name, shape, kind, offset


def _placed(
    table: Iterable[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int, reader: _Bytes
) -> dict[str, Info]:
    """The tensors by name. Raises BadCheckpoint where they are not one beside the other within the file."""
    found: dict[str, Info] = {}
    for name, shape, kind, offset in table:
        if name in found:
            raise BadCheckpoint(f"it has {name!r} twice")
        if offset % alignment:
            raise BadCheckpoint(f"{name!r} is not where tensors of this file may be")
        first = begin + offset
        found[name] = Info(shape, kind, first, first + STORED[kind].bytes_of(prod(shape)))
    for (name, one), (_, other) in pairwise(sorted(found.items(), key=lambda item: item[1].first)):
        if one.last > other.first:
            raise BadCheckpoint(f"{name!r} overlaps with another tensor")
    for name, info in found.items():
        if info.last > reader._size:
            raise BadCheckpoint(f"it ends within {name!r}, at {reader._size} of {info.last} bytes")
    return found
