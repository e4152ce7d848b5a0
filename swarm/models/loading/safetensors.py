"""safetensors files, read tensor by tensor: nothing is held or mapped between two reads.

The format is that of https://huggingface.co/docs/safetensors: eight bytes that say how long the header is, the header
in JSON, then the tensors one behind the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from swarm.errors import BadCheckpoint
from swarm.models.loading.file_bytes import read_into

LENGTH = 8
"""Bytes that say how long the header is."""
MOST = 100_000_000
"""Bytes of a header, as the format has it."""
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "BOOL": torch.bool,
}  # fmt: skip


NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: bytes from `first` to `last` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    first: int
    last: int

    @property
    def row_bytes(self) -> int:
        """Of one place of the first dimension."""
        return prod(self.shape[1:]) * self.dtype.itemsize


def header_bytes(beginning: bytes, size: int) -> int:
    """How many bytes of a file of `size` bytes its header ends after, by its first eight. Raises BadCheckpoint."""
    length = int.from_bytes(beginning[:LENGTH], "little")
    if len(beginning) < LENGTH or length > min(MOST, size - LENGTH):
        raise BadCheckpoint("its header is longer than the file, or than a header may be")
    return LENGTH + length


def parse(header: bytes, size: int) -> dict[str, Entry]:
    """The tensors of a file of `size` bytes by its header, with the eight bytes before it. Raises BadCheckpoint."""
    try:
        entries = json.loads(header[LENGTH:])
        if not isinstance(entries, dict):
            raise ValueError("it is no object")
        entries.pop("__metadata__", None)
        found = {name: _entry(name, values, len(header)) for name, values in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadCheckpoint(f"its header is damaged: {error}") from error
    end = len(header)
    for name, entry in sorted(found.items(), key=lambda item: (item[1].first, item[1].last)):
        if entry.first != end:
            raise BadCheckpoint(f"{name} does not begin where what is before it ends")
        end = entry.last
    if end != size:
        raise BadCheckpoint(f"it has {size} bytes and tells of {end}")
    return found


def _entry(name: str, values: Mapping[str, Any], begin: int) -> Entry:
    kind, shape, (first, last) = values["dtype"], values["shape"], values["data_offsets"]
    if kind not in DTYPES:
        raise ValueError(f"{name} is stored as {kind}, which is not read here")
    if not all(type(number) is int and 0 <= number < 1 << 48 for number in (*shape, first, last)):
        raise ValueError(f"{name} has sizes that are none")
    if last - first != prod(shape) * DTYPES[kind].itemsize:
        raise ValueError(f"{name} has {last - first} bytes for {kind} {shape}")
    return Entry(DTYPES[kind], tuple(shape), begin + first, begin + last)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file. Raises BadCheckpoint."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            beginning = file.read(LENGTH)
            return parse(beginning + file.read(header_bytes(beginning, size) - LENGTH), size)
    except (OSError, BadCheckpoint) as error:
        raise BadCheckpoint(f"{path} is damaged ({error}); delete it and fetch it again") from error


def part_of(entry: Entry, rows: slice | None) -> tuple[int, int, tuple[int, ...]]:
    """First and last byte of some rows of a tensor, and their shape."""
    if rows is None or not entry.shape:
        return entry.first, entry.last, entry.shape
    first, last, _ = rows.indices(entry.shape[0])
    count = max(0, last - first)
    begin = entry.first + first * entry.row_bytes
    return begin, begin + count * entry.row_bytes, (count, *entry.shape[1:])


class SafetensorsTensors:
    """Tensors of a checkpoint in one or several files, as `Tensors`.

    `files`: the file of each tensor; `path`: where a file is on this machine, downloaded if need be.
    """

    def __init__(self, files: Mapping[str, str], path: Callable[[str], Path]) -> None:
        self._files = files
        self._path = path
        self._headers: dict[str, dict[str, Entry]] = {}

    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self._files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""
        return self.entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is stored in."""
        return self.entry(name).dtype

    def nbytes(self, name: str) -> int:
        """Of a tensor."""
        entry = self.entry(name)
        return entry.last - entry.first

    def grid_nbytes(self, name: str) -> int:
        """As stored."""
        return self.nbytes(name)

    def on_grid(self, name: str) -> bool:
        """Numbers as they are."""
        return False

    def by_row(self, name: str) -> bool:
        """They lie one behind the other."""
        return True

    def experts(self, name: str, some: range | None = None) -> None:
        """Numbers as they are."""

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or some of its rows."""
        entry = self.entry(name)
        first, _, shape = part_of(entry, rows)
        tensor = torch.empty(shape, dtype=entry.dtype)
        path = self._path(self._files[name])
        try:
            read_into(tensor, path, first)
        except OSError as error:
            raise BadCheckpoint(f"{path} cannot be read ({error}); delete it and fetch it again") from error
        return tensor

    def entry(self, name: str) -> Entry:
        """Where a tensor lies in its file. Raises BadCheckpoint."""
        file = self._files[name]
        try:
            return self._known(file)[name]
        except KeyError:
            raise BadCheckpoint(f"{self._path(file)} lacks {name}; delete it and fetch it again") from None

    def _known(self, file: str) -> dict[str, Entry]:
        if file not in self._headers:
            self._headers[file] = self._header(file)
        return self._headers[file]

    def _header(self, file: str) -> dict[str, Entry]:
        return read_header(self._path(file))
