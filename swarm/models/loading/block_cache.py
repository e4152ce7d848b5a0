"""Blocks on disk as they were loaded, so that a second start reads what the first has made, and others may have it.

A block is a safetensors file, whatever it is computed on. A tensor on no grid is as the checkpoint has it; a weight on
a grid is its parts, `NAME|codes`, `NAME|scales` and so on, those of experts one below the other. `__metadata__` tells
of what it is made, of each tensor and each weight a SHA-256, and the levels of four bits that are not 0 to 15. What
does not agree is damaged: the file is dropped, and the block made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch

from swarm.config import BLOCK_FORMAT
from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import Grid
from swarm.models.loading.kept import UNFINISHED
from swarm.models.loading.safetensors import DTYPES, LENGTH, SafetensorsTensors, header_bytes, read_header

log = logging.getLogger(__name__)

LEFT_FREE = 0.05
"""Of a disk: nothing is kept that would leave less."""
PER_TENSOR = 2100
"""Bytes of the header for each, at most, beside its name; for as many parts as a grid can have."""
BY_OUTPUT = frozenset({"codes", "scales", "least", "units", "least_units"})
"""The parts of a grid that have a row for each output."""
COLUMNS = "columns"
"""The part that has none."""
CHUNK, ROWS = 1 << 21, 32
"""Numbers of a weight that are read at once, in a multiple of so many outputs."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Damaged(Exception):
    """What is kept of a block is not what was."""


class BlockCache:
    """Blocks of one checkpoint by one scheme. `key`: of the checkpoint's content; `scheme`: with its version."""

    def __init__(self, folder: Path, key: str, scheme: str) -> None:
        self._folder = folder
        self._made_of = f"swarm block {BLOCK_FORMAT} {key} {scheme}"

    def path(self, block: int) -> Path:
        """Where a block is kept."""
        digest = hashlib.sha256(f"{self._made_of} {block}".encode()).hexdigest()
        return self._folder / f"{digest[:40]}.safetensors"

    def made_of(self, block: int) -> str:
        """What the file of a block says of itself."""
        return f"{self._made_of} {block}"

    def open(self, block: int, names: Mapping[str, bool]) -> KeptBlock | None:
        """A block that is kept; `names`: of all its tensors, and whether each is on a grid."""
        path = self.path(block)
        if not path.is_file():
            return None
        try:
            kept = KeptBlock(path, self.made_of(block))
            if kept.names() != names:
                raise Damaged("it has other tensors")
            path.touch()
        except (Damaged, BadCheckpoint, OSError) as error:
            drop(path, error)
            return None
        return kept

    def begin(self, block: int, sizes: Mapping[str, int]) -> BlockWriter | None:
        """To keep a block; `sizes`: bytes of each of its tensors in the checkpoint. None where there is no room."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            usage = shutil.disk_usage(self._folder)
            if usage.free - sum(sizes.values()) < LEFT_FREE * usage.total:
                log.info("block %d is not kept: there is little room in %s", block, self._folder)
                return None
            return BlockWriter(self.path(block), self.made_of(block), list(sizes))
        except OSError as error:
            log.warning("block %d cannot be kept in %s: %s", block, self._folder, error)
            return None


def header_bound(names: Collection[str]) -> int:
    """Bytes before the tensors of a file, by the names of all."""
    bound = LENGTH + PER_TENSOR + sum(PER_TENSOR + 8 * len(name) for name in names)
    return -(-bound // 8) * 8


def drop(path: Path, why: object) -> None:
    """Forget a block that cannot be used."""
    log.warning("the block kept in %s is made anew: %s", path, why)
    path.unlink(missing_ok=True)


class KeptBlock:
    """A block on disk. Each method raises Damaged where it is not what was kept."""

    def __init__(self, path: Path, made_of: str) -> None:
        self.path = path
        self._sums, self._tables = _described(path, made_of)
        self._tensors = SafetensorsTensors(dict.fromkeys(read_header(path), path.name), lambda _: path)
        self._kinds: dict[str, list[str]] = {}
        for stored in self._tensors.names():
            name, on_grid, kind = stored.partition("|")
            self._kinds.setdefault(name, []).extend([kind] if on_grid else [])

    def names(self) -> dict[str, bool]:
        """Of all tensors, and whether each is on a grid."""
        return {name: bool(kinds) for name, kinds in self._kinds.items()}

    def plain(self, name: str) -> torch.Tensor:
        """A tensor that is on no grid."""
        tensor = self._read(name)
        self.check(name, _digest(tensor))
        return tensor

    def plain_rows(self, name: str, some: slice) -> torch.Tensor:
        """Some places of the first dimension of a tensor that is on no grid; nobody checks them."""
        return self._read(name, some)

    def outputs(self, name: str) -> int:
        """Of a weight on a grid."""
        shape = self._shape(f"{name}|codes")
        if len(shape) != 2:
            raise Damaged(f"{name} is {list(shape)}")
        return shape[0]

    def parts(self, name: str, experts: int = 1) -> Iterator[Grid]:
        """A weight on a grid, some outputs after others, or those of one of `experts` after those of another; whoever
        takes it off checks it at the end."""
        outputs, many = self.outputs(name), self.outputs(name) // experts
        if experts == 1 and COLUMNS not in self._kinds[name]:
            many = max(1, CHUNK // max(1, self._shape(f"{name}|codes")[1]) // ROWS) * ROWS
        for first in range(0, outputs, max(1, many)):
            yield self.rows(name, slice(first, first + many))

    def rows(self, name: str, some: slice) -> Grid:
        """Some outputs of a weight on a grid."""
        kinds = self._kinds[name]
        if not {"codes", "scales"} <= set(kinds) <= BY_OUTPUT | {COLUMNS}:
            raise Damaged(f"{name} has the parts {kinds}")
        read = {kind: self._read(f"{name}|{kind}", some if kind in BY_OUTPUT else None) for kind in kinds}
        try:
            grid = Grid(**read, table=self._tables.get(name))
        except BadCheckpoint as error:
            raise Damaged(str(error)) from error
        if grid.columns is not None and not torch.equal(grid.columns.sort().values, torch.arange(grid.in_features)):
            raise Damaged(f"{name} has columns in no order")
        return grid

    def fits(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor has this shape; of a weight on a grid, whether it may have, before it is read."""
        kinds = self._kinds[name]
        if not kinds:
            return self._shape(name) == shape
        by_output = [self._shape(f"{name}|{kind}") for kind in kinds if kind != COLUMNS]
        alike = all(len(part) == 2 and part[0] == shape[0] and 0 < part[1] <= shape[1] for part in by_output)
        return alike and (COLUMNS not in kinds or self._shape(f"{name}|{COLUMNS}") == shape[1:])

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor that is on no grid."""
        return self._tensors.dtype(name)

    def check(self, name: str, digest: bytes) -> None:
        """Compare with what was kept."""
        if self._sums.get(name) != digest.hex():
            raise Damaged(f"{name} has changed")

    def _shape(self, stored: str) -> tuple[int, ...]:
        if stored not in self._tensors.names():
            raise Damaged(f"it lacks {stored}")
        return self._tensors.shape(stored)

    def _read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        try:
            return self._tensors.read(name, rows)
        except (BadCheckpoint, KeyError) as error:
            raise Damaged(str(error)) from error


Tables = dict[str, tuple[int, ...] | tuple[float, ...]]
"""The levels of four bits by the name of the weight, where they are not 0 to 15."""


def _described(path: Path, made_of: str) -> tuple[dict[str, Any], Tables]:
    """The digest of each tensor and weight, by its name, and their levels."""
    try:
        with path.open("rb") as file:
            beginning = file.read(LENGTH)
            header = json.loads(file.read(header_bytes(beginning, path.stat().st_size) - LENGTH))
        told = header["__metadata__"]
        said, sums, tables = told["made_of"], json.loads(told["sums"]), json.loads(told["tables"])
        levels = {name: tuple(table) for name, table in tables.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"its header is none: {error!r}") from error
    if said != made_of or not isinstance(sums, dict):
        raise Damaged("it is of something else")
    if not all(type(level) in (int, float) for table in levels.values() for level in table):
        raise Damaged("its levels are no numbers")
    return sums, levels


class BlockWriter:
    """Keeps a block, tensor by tensor, in a file that gets its name when it is whole. Raises nothing: what cannot be
    kept is not. `names`: of all that belongs to it."""

    def __init__(self, path: Path, made_of: str, names: list[str]) -> None:
        self._path, self._made_of = path, made_of
        self._left = set(names)
        self._entries: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._sums: dict[str, str] = {}
        self._tables: Tables = {}
        self._begin = self._end = header_bound(names)
        self._part = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
        self._file: BinaryIO | None = self._part.open("wb")

    def plain(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor that is on no grid."""
        self._safely(partial(self._put, name, tensor, list(tensor.shape), 0))
        self.whole(name, _digest(tensor))

    def part(self, name: str, grid: Grid, outputs: int) -> None:
        """The next outputs of a weight that has so many; `whole` comes after the last."""
        first = self._rows.get(name, 0)
        self._rows[name] = first + grid.out_features
        if grid.table is not None:
            self._tables[name] = grid.table
        for kind, part in grid.parts().items():
            whole, at = (outputs, first) if kind in BY_OUTPUT else (len(part), 0)
            self._safely(partial(self._put, f"{name}|{kind}", part, [whole, *part.shape[1:]], at))

    def whole(self, name: str, digest: bytes) -> None:
        """All of a tensor has come."""
        self._sums[name] = digest.hex()
        self._left.discard(name)

    def finish(self) -> None:
        """Give the file its name, if all is in it."""
        metadata = {"made_of": self._made_of, "sums": json.dumps(self._sums), "tables": json.dumps(self._tables)}
        header, room = json.dumps({"__metadata__": metadata, **self._entries}).encode(), self._begin - LENGTH
        if not self._left and len(header) <= room:
            self._safely(lambda file: self._close(file, room.to_bytes(LENGTH, "little") + header.ljust(room)))
        self.abandon()

    def abandon(self) -> None:
        """Keep nothing of what has no name yet."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._part.unlink(missing_ok=True)

    def _close(self, file: BinaryIO, header: bytes) -> None:
        _write(file, 0, header)
        file.close()
        self._part.replace(self._path)

    def _put(self, name: str, part: torch.Tensor, shape: list[int], first: int, file: BinaryIO) -> None:
        """Some rows of a tensor of that shape, the first of which stands at `first`."""
        row = part[:1].nbytes if part.dim() else part.nbytes
        if name not in self._entries:
            begin, size = self._end - self._begin, row * (shape[0] if shape else 1)
            self._entries[name] = {"dtype": NAMES[part.dtype], "shape": shape, "data_offsets": [begin, begin + size]}
            self._end += size
        _write(file, self._begin + self._entries[name]["data_offsets"][0] + first * row, _bytes(part))

    def _safely(self, write: Callable[[BinaryIO], None]) -> None:
        if self._file is None:
            return
        try:
            write(self._file)
        except (OSError, KeyError) as error:
            log.warning("a block cannot be kept: %r", error)
            self.abandon()


def _write(file: BinaryIO, at: int, data: Any) -> None:
    file.seek(at)
    file.write(data)


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data


def _digest(tensor: torch.Tensor) -> bytes:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(_bytes(tensor))
    return digest.digest()
