"""Weights as GGUF files store them → weights on a grid, where it is one in equal steps or by a table; and → numbers.

How each type lies in its bytes is described by ggml's own structures (ggml-common.h); the numbers are those of
transformers' `integrations.gguf.dequant`, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from transformers.integrations.gguf.dequant import dequantize

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import SIGNED, Grid, pack4, small
from swarm.models.loading.gguf.stored import STORED

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Levels of the IQ4 types."""
THREE = tuple(range(-4, 12))
"""Levels of Q3_K, of which there are eight."""
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the numbers that four bits are in MXFP4."""
CHUNK = 1 << 22
"""Numbers that are computed at once."""

Read = Callable[[torch.Tensor], Grid]
"""Groups as they lie, uint8 `[out, groups, bytes]` → a grid."""


def to_grid(raw: torch.Tensor, kind: int) -> Grid:
    """uint8 `[out, bytes of a row]` of a type in `GRIDS` → the same on its grid. Raises BadCheckpoint for scales that
    are no numbers."""
    grid = GRIDS[kind](raw.view(len(raw), -1, STORED[kind].bytes))
    for part in (grid.scales, grid.least, grid.units, grid.least_units):
        if part is not None and not bool(part.isfinite().all()):
            raise BadCheckpoint("it has scales that are no finite numbers")
    return grid


@cache
def bits_on_grid(kind: int) -> Fraction:
    """Bits of a weight of a type in `GRIDS` once it is on its grid, with its part of scales and minima."""
    some = torch.full((1, STORED[kind].bytes), 0x78, dtype=torch.uint8)
    return Fraction(8 * to_grid(some, kind).nbytes, STORED[kind].numbers)


def to_numbers(raw: torch.Tensor, kind: int) -> torch.Tensor:
    """uint8 `[rows, bytes of a row]` → `[rows, columns]`: float32, or what single numbers are stored as."""
    stored = STORED[kind]
    if stored.dtype is not None:
        return raw.view(stored.dtype)
    columns = raw.shape[1] // stored.bytes * stored.numbers
    numbers = torch.empty(len(raw), columns)
    many = max(1, CHUNK // max(1, columns))
    for first in range(0, len(raw), many):
        part = raw[first : first + many]
        numbers[first : first + many] = _numbers(part, kind).view(len(part), columns)
    if not bool(numbers.isfinite().all()):
        raise BadCheckpoint("it has scales that are no finite numbers")
    return numbers


def _numbers(raw: torch.Tensor, kind: int) -> torch.Tensor:
    return to_grid(raw, kind).dense() if kind in GRIDS else dequantize(raw.reshape(-1), kind)


# ---- one type each; numbers of a group lie in the lower halves of its bytes first, then in the upper ------------


def _q4_0(groups: torch.Tensor) -> Grid:
    return Grid(_pairs(groups[..., 2:]), _half(groups, 0), table=SIGNED)


def _q4_1(groups: torch.Tensor) -> Grid:
    return Grid(_pairs(groups[..., 4:]), _half(groups, 0), _half(groups, 2))


def _q5_0(groups: torch.Tensor) -> Grid:
    return Grid(_fives(groups[..., 2:]) - 16, _half(groups, 0))


def _q5_1(groups: torch.Tensor) -> Grid:
    return Grid(_fives(groups[..., 4:]), _half(groups, 0), _half(groups, 2))


def _q8_0(groups: torch.Tensor) -> Grid:
    return Grid(groups[..., 2:].contiguous().view(torch.int8).flatten(1), _half(groups, 0))


def _q2_k(groups: torch.Tensor) -> Grid:
    scales, least = groups[..., :16] & 15, groups[..., :16] >> 4
    return _counted(pack4(_planes(groups[..., 16:80], 2)), scales, _half(groups, 80), least, _half(groups, 82))


def _q3_k(groups: torch.Tensor) -> Grid:
    low, high = _planes(groups[..., 32:96], 2), _planes(groups[..., :32], 1)
    scales = _halves(groups[..., 96:104]) | (_fields(groups[..., 104:108], 2) << 4)
    return _counted(pack4(low | (high << 2)), scales.view(torch.int8) - 32, _half(groups, 108), table=THREE)


def _q4_k(groups: torch.Tensor) -> Grid:
    return _counted(_pairs(groups[..., 16:].reshape(len(groups), -1, 32)), *_of_eight(groups))


def _q5_k(groups: torch.Tensor) -> Grid:
    low = _halves(groups[..., 48:].reshape(len(groups), -1, 32)).flatten(1)
    return _counted((low | (_planes(groups[..., 16:48], 1) << 4)).view(torch.int8), *_of_eight(groups))


def _q6_k(groups: torch.Tensor) -> Grid:
    low = _halves(groups[..., :128].reshape(len(groups), -1, 64)).flatten(1)
    codes = low | (_planes(groups[..., 128:192], 2) << 4)
    return _counted(codes.view(torch.int8) - 32, groups[..., 192:208], _half(groups, 208))


def _iq4_nl(groups: torch.Tensor) -> Grid:
    return Grid(_pairs(groups[..., 2:]), _half(groups, 0), table=IQ4)


def _iq4_xs(groups: torch.Tensor) -> Grid:
    low = torch.stack((groups[..., 4:8] & 15, groups[..., 4:8] >> 4), dim=-1).flatten(2)
    shifts = torch.tensor((0, 2, 4, 6), dtype=torch.uint8)
    high = ((groups[..., 2:4, None] >> shifts) & 3).flatten(2)
    scales = (low | (high << 4)).view(torch.int8) - 32
    return _counted(_pairs(groups[..., 8:].reshape(len(groups), -1, 16)), scales, _half(groups, 0), table=IQ4)


def _mxfp4(groups: torch.Tensor) -> Grid:
    # A power of two for each group, halved as the levels are doubled; 255 is none, and 6 times 253 or 254 too large.
    powers = torch.tensor([2.0 ** (exponent - 128) for exponent in range(253)] + [torch.nan] * 3)
    return Grid(_pairs(groups[..., 1:]), small(powers[groups[..., 0].long()]), table=E2M1)


GRIDS: dict[int, Read] = {
    2: _q4_0, 3: _q4_1, 6: _q5_0, 7: _q5_1, 8: _q8_0, 10: _q2_k, 11: _q3_k, 12: _q4_k, 13: _q5_k, 14: _q6_k,
    20: _iq4_nl, 23: _iq4_xs, 39: _mxfp4,
}  # fmt: skip
"""Types that are grids which there are kernels for."""


def _counted(
    codes: torch.Tensor,
    scales: torch.Tensor,
    units: torch.Tensor,
    least: torch.Tensor | None = None,
    least_units: torch.Tensor | None = None,
    table: tuple[int, ...] | None = None,
) -> Grid:
    """Scales and what is taken off, bytes of each group `[out, units, groups]`, count units, halves `[out, units]`."""
    scales = scales.contiguous().view(torch.int8).flatten(1)
    least = None if least is None else -least.contiguous().view(torch.int8).flatten(1)
    return Grid(codes, scales, least, table, None, units, least_units)


def _half(groups: torch.Tensor, at: int) -> torch.Tensor:
    """A number of each group, float16 `[out, groups]`."""
    return groups[..., at : at + 2].contiguous().view(torch.float16).flatten(1)


def _halves(bytes_: torch.Tensor) -> torch.Tensor:
    """uint8 `[…, n]` → the lower halves, then the upper ones, `[…, 2 n]`."""
    return torch.cat((bytes_ & 15, bytes_ >> 4), dim=-1)


def _pairs(bytes_: torch.Tensor) -> torch.Tensor:
    """uint8 `[out, groups, n]` → codes of a `Grid`: of two bytes the lower halves become one, then the upper."""
    twos = np.ascontiguousarray(bytes_.numpy()).view("<u2")
    codes, middle = np.empty(bytes_.shape, np.uint8), twos >> 4
    codes[..., : twos.shape[-1]] = twos & 0x0F | middle & 0xF0
    codes[..., twos.shape[-1] :] = middle & 0x0F | (twos >> 8) & 0xF0
    return torch.from_numpy(codes).flatten(1)


def _fives(bytes_: torch.Tensor) -> torch.Tensor:
    """Four bytes of fifth bits, then the others → int8 `[out, columns]`, 0 to 31."""
    shifts = torch.arange(8, dtype=torch.uint8)
    high = ((bytes_[..., :4, None] >> shifts) & 1).flatten(2)
    return (_halves(bytes_[..., 4:]) | (high << 4)).view(torch.int8).flatten(1)


def _fields(bytes_: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 `[…, n]` → the lowest bits of all of them, then the next, `[…, n · 8 / bits]`."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    return ((bytes_.unsqueeze(-2) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def _planes(bytes_: torch.Tensor, bits: int) -> torch.Tensor:
    """Every 32 bytes hold so many bits of `256 / bits` numbers → uint8 `[out, columns]`."""
    return _fields(bytes_.reshape(len(bytes_), -1, 32), bits).flatten(1)


def _of_eight(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales of the eight groups in 256 numbers, what they count, minima, and what these count: six bits each."""
    scale, least, rest = groups[..., 4:8], groups[..., 8:12], groups[..., 12:16]
    scales = torch.cat((scale & 63, (rest & 15) | ((scale >> 6) << 4)), dim=-1)
    minima = torch.cat((least & 63, (rest >> 4) | ((least >> 6) << 4)), dim=-1)
    return scales, _half(groups, 0), minima, _half(groups, 2)
