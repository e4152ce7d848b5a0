"""A weight on a grid: small integers, with a scale for each group of columns. What is hashed, cached and sent is this,
never a layout that one processor likes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch

from swarm.errors import BadCheckpoint

FLOAT8 = torch.float8_e4m3fn
SIGNED = tuple(range(-8, 8))
"""Levels of four bits around zero."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """`[out_features, in_features]` numbers: scale · level + least.

    `codes`: levels as int8 or float8 (e4m3) `[out, in]`, or of four bits as uint8 `[out, in / 2]`, the even column in
    the lower half of a byte. `scales`, `least`: float16 or float32 `[out, in / group]`; without `least` nothing is
    added. `table`: the 16 levels that codes of four bits stand for, whole numbers from -127 to 127, or floats where
    there are no minima; by default 0 to 15. `columns`: int64 `[in]`, where the inputs that the columns multiply are, if
    in another order. Scales may be int8, and count `units`, float16 `[out, in / columns of several groups]`; so do
    minima then, `least_units`. Raises BadCheckpoint where these do not fit together.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    least: torch.Tensor | None = None
    table: tuple[int, ...] | tuple[float, ...] | None = None
    columns: torch.Tensor | None = None
    units: torch.Tensor | None = None
    least_units: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.codes.dim() != 2 or self.codes.dtype not in (torch.int8, torch.uint8, FLOAT8):
            raise BadCheckpoint(
                f"a grid's levels are {_words(self.codes)}, not int8, uint8 or float8 of two dimensions"
            )
        if self.codes.dtype == FLOAT8 and self.least is not None:
            raise BadCheckpoint("levels that are floats have no minima")
        kinds = (torch.float16, torch.float32) if self.units is None else (torch.int8,)
        if self.scales.dim() != 2 or self.scales.dtype not in kinds:
            expected = " or ".join(str(kind).removeprefix("torch.") for kind in kinds)
            raise BadCheckpoint(f"a grid's scales are {_words(self.scales)}, not {expected} of two dimensions")
        groups = self.scales.shape[1]
        if len(self.scales) != len(self.codes) or not groups or self.in_features % groups:
            raise BadCheckpoint(f"scales of {_words(self.scales)} do not fit levels of {_words(self.codes)}")
        if self.least is not None and self.least.shape != self.scales.shape:
            raise BadCheckpoint(f"minima of {_words(self.least)} do not fit scales of {_words(self.scales)}")
        if self.units is not None or self.least_units is not None:
            self._check_units()
        if self.table is not None and (len(self.table) != 16 or self.bits != 4):
            raise BadCheckpoint("the levels of four bits are 16 numbers")
        if (
            self.table is not None
            and not is_whole(self.table)
            and (self.least is not None or not all(map(isfinite, self.table)) or not any(self.table))
        ):
            raise BadCheckpoint("the levels of four bits are whole numbers from -127 to 127, or floats without minima")
        if self.columns is not None and self.columns.shape != (self.in_features,):
            raise BadCheckpoint(f"{_words(self.columns)} is no order of {self.in_features} columns")

    def _check_units(self) -> None:
        units, least, least_units = self.units, self.least, self.least_units
        if (
            units is None
            or (least is None) != (least_units is None)
            or (least is not None and least.dtype != torch.int8)
        ):
            raise BadCheckpoint("scales and minima that are whole numbers count units, both of them")
        groups, count = self.scales.shape[1], units.shape[-1]
        shape, alike = units.shape, least_units is None or least_units.shape == units.shape
        if len(shape) != 2 or shape[0] != len(self.codes) or not count or groups % count or not alike:
            raise BadCheckpoint(f"units of {_words(units)} do not fit scales of {_words(self.scales)}")
        if any(part is not None and part.dtype != torch.float16 for part in (units, least_units)):
            raise BadCheckpoint(f"units of scales are {_words(units)}, not float16")

    @property
    def bits(self) -> int:
        """Of a level: 4 or 8."""
        return 4 if self.codes.dtype == torch.uint8 else 8

    @property
    def out_features(self) -> int:
        return len(self.codes)

    @property
    def in_features(self) -> int:
        return self.codes.shape[1] * 8 // self.bits

    @property
    def shape(self) -> torch.Size:
        """`[out_features, in_features]`."""
        return torch.Size((self.out_features, self.in_features))

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.in_features // self.scales.shape[1]

    @property
    def unit(self) -> int | None:
        """Columns whose scales count the same, where they are whole numbers."""
        return None if self.units is None else self.in_features // self.units.shape[1]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held."""
        return sum(part.nbytes for part in self.parts().values())

    def levels(self) -> torch.Tensor:
        """int8 or float32 `[out, in]`, in the grid's own order of columns."""
        if self.bits == 8:
            return self.codes.float() if self.codes.dtype == FLOAT8 else self.codes
        pairs = torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(1)
        kind = torch.int8 if self.table is None or is_whole(self.table) else torch.float32
        table = torch.tensor(self.table or range(16), dtype=kind, device=self.codes.device)
        levels: torch.Tensor = table[pairs.long()]
        return levels

    def dense(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`[out, in]` numbers, computed in float32, with the columns where the inputs are."""
        by_group = self.levels().float().view(*self.scales.shape, self.group)
        by_group = by_group * _factors(self.scales, self.units)[..., None]
        if self.least is not None:
            by_group += _factors(self.least, self.least_units)[..., None]
        dense = by_group.flatten(1)
        if self.columns is not None:
            dense = torch.empty_like(dense).index_copy_(1, self.columns, dense)
        return dense.to(dtype)

    def rows(self, first: int, last: int) -> Grid:
        """The same of some outputs."""
        return self._by_output(lambda part: part[first:last])

    def at(self, rows: torch.Tensor) -> Grid:
        """The same with the outputs in another order; `rows`: int64, which stands where."""
        return self._by_output(lambda part: part[rows])

    def to(self, device: torch.device) -> Grid:
        """The same elsewhere."""
        there = self._by_output(lambda part: part.to(device))
        return there if self.columns is None else replace(there, columns=self.columns.to(device))

    def _by_output(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Grid:
        """The same with a change to all that each output has."""
        changed: dict[str, Any] = {name: change(part) for name, part in self.parts().items() if name != "columns"}
        return replace(self, **changed)

    def digest(self) -> bytes:
        """sha256 of the numbers, however they are laid out."""
        digest = GridDigest()
        digest.add(self)
        return digest.digest()

    def parts(self) -> dict[str, torch.Tensor]:
        """All that is held, by name."""
        named = {"codes": self.codes, "scales": self.scales, "least": self.least, "columns": self.columns}
        named |= {"units": self.units, "least_units": self.least_units}
        return {name: part for name, part in named.items() if part is not None}


class GridDigest:
    """Of a grid that comes in parts, some outputs after others: the same as of the whole."""

    def __init__(self) -> None:
        self._kind = ""
        self._parts: dict[str, Any] = {}

    def add(self, grid: Grid) -> None:
        """The next outputs."""
        self._kind = f"{grid.bits} {grid.in_features} {grid.table}"
        for name, part in grid.parts().items():
            digest = self._parts.setdefault(name, hashlib.sha256(f"{name} {part.dtype} {part.shape[1:]}".encode()))
            bare = part.view(torch.uint8) if part.dtype == FLOAT8 else part  # numpy has no float8
            digest.update(bare.detach().cpu().contiguous().numpy().data)

    def digest(self) -> bytes:
        """sha256 of all."""
        parts = b"".join(digest.digest() for _, digest in sorted(self._parts.items()))
        return hashlib.sha256(self._kind.encode() + parts).digest()


def pack4(codes: torch.Tensor) -> torch.Tensor:
    """Codes from 0 to 15 `[out, in]` → uint8 `[out, in / 2]`, the even column in the lower half."""
    codes = codes.to(torch.uint8)
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def stack(grids: Sequence[Grid]) -> Grid:
    """Several weights on one grid, one below the other. Raises BadCheckpoint where they are not on one."""
    first = grids[0]
    kinds = {(grid.bits, grid.in_features, grid.group, grid.unit, grid.table, grid.least is None) for grid in grids}
    if len(kinds) != 1 or any(grid.columns is not None for grid in grids):
        raise BadCheckpoint("weights on different grids cannot be one layer")
    parts: dict[str, Any] = {name: torch.cat([grid.parts()[name] for grid in grids]) for name in first.parts()}
    return replace(first, **parts)


def is_whole(table: Sequence[float]) -> bool:
    """Whether levels are whole numbers of eight bits, in which they are multiplied as they are."""
    return all(isinstance(level, int) and abs(level) <= 127 for level in table)


def as_dense(weight: torch.Tensor | Grid) -> torch.Tensor:
    """Numbers, on a grid or not."""
    return weight.dense() if isinstance(weight, Grid) else weight


def _factors(scales: torch.Tensor, units: torch.Tensor | None) -> torch.Tensor:
    """What levels are multiplied with, or what is added, float32 `[out, groups]`."""
    if units is None:
        return scales.float()
    return (scales.float().view(*units.shape, -1) * units.float()[..., None]).flatten(1)


def small(numbers: torch.Tensor) -> torch.Tensor:
    """As float16 where that changes no number, else as float32."""
    half = numbers.half()
    return half if torch.equal(half.float(), numbers.float()) else numbers.float()


def _words(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
