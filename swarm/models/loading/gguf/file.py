"""A GGUF file, or the parts that one was cut into: its headers, and bytes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from swarm.errors import BadCheckpoint
from swarm.models.loading.file_bytes import read_into
from swarm.models.loading.gguf.header import Header, Info, read_header
from swarm.models.loading.gguf.stored import STORED

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
"""What llama.cpp's gguf-split calls the parts of a file."""
MOST_PARTS = 999


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is."""

    path: Path
    info: Info


@dataclass(frozen=True, slots=True)
class GgufFile:
    """`path`: the first part; `header`: its own, with the tensors of all parts; `places`: where these are."""

    path: Path
    header: Header
    places: dict[str, Place]

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows of a tensor as they are stored, uint8 `[rows, bytes of a row]`; all dimensions but the last count rows.

        Raises BadCheckpoint where the file is not what it was.
        """
        place = self.places[name]
        each = row_bytes(place.info)
        raw = torch.empty(last - first, each, dtype=torch.uint8)
        try:
            read_into(raw, place.path, place.info.first + first * each)
        except OSError as error:
            raise BadCheckpoint(f"{place.path} cannot be read ({error}); fetch it again") from error
        return raw


def row_count(info: Info) -> int:
    """Rows of a tensor; numbers in one dimension are one row."""
    return torch.Size(info.shape[:-1]).numel()


def row_bytes(info: Info) -> int:
    """That a row takes in the file."""
    return STORED[info.type].bytes_of(info.shape[-1] if info.shape else 1)


def part_names(file: str) -> list[str]:
    """All parts of a file, by the name of any of them; or the file alone. Raises BadCheckpoint."""
    match = PART.fullmatch(file)
    if match is None:
        return [file]
    count = int(match["count"])
    if not 0 < count <= MOST_PARTS:
        raise BadCheckpoint(f"{file} is one of {count} parts, of which there are {MOST_PARTS} at most")
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def open_gguf(file: str, path: Callable[[str], Path]) -> GgufFile:
    """`path`: where a file is on this machine, downloaded if need be. Raises BadCheckpoint, and what that raises."""
    paths = [path(part) for part in part_names(file)]
    headers = [read_header(each) for each in paths]
    said = headers[0].metadata.get("split.count", 1)
    if said != len(paths):
        raise BadCheckpoint(f"{paths[0]} says that it is one of {said} parts, and its name that there are {len(paths)}")
    places: dict[str, Place] = {}
    for part, header in zip(paths, headers, strict=True):
        if twice := sorted(places.keys() & header.tensors.keys()):
            raise BadCheckpoint(f"{part} has {twice[0]!r}, as a part before it")
        places |= {name: Place(part, info) for name, info in header.tensors.items()}
    return GgufFile(paths[0], replace(headers[0], tensors={name: place.info for name, place in places.items()}), places)
