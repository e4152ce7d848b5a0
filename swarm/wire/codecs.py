"""How hidden states travel: as they are (`raw`), or in about a quarter of float32's bytes (`int8`).

`int8` keeps, for each position by itself, the 16 values of largest magnitude as bfloat16 with their places, and the
rest as 8-bit integers in groups of 128 that share one float16 scale. Every position is encoded alone and always to
the same bytes, so that what is sent again is what was sent before, however it is cut into frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from swarm.config import FRAME_LIMIT
from swarm.errors import ContractMismatch, MalformedFrame
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import check_step, require
from swarm.wire.rows import Buffer

RAW, INT8 = "raw", "int8"
CODECS = (RAW, INT8)

GROUP = 128
"""Values that share a scale."""
OUTLIERS = 16
"""Values of a position that are kept as bfloat16."""
BLOCK_BYTES = 256 * 1024
"""Of float32 worked on at once: what fits into a core's cache is several times faster."""
FEW = 32
"""Values of which only the largest is looked at first."""
LARGEST_SCALE = 65504.0
INFINITY_BITS = 0x7F800000

Array = npt.NDArray[Any]


class Codec(Protocol):
    """Encodes and decodes whole positions. `raw_bytes` and `row_bytes`: of one position before and after encoding."""

    @property
    def name(self) -> str: ...
    @property
    def raw_bytes(self) -> int: ...
    @property
    def row_bytes(self) -> int: ...

    def encode(self, buffer: Buffer) -> bytes:
        """Positions as they travel. Raises MalformedFrame for a part of a position."""

    def decode(self, buffer: Buffer) -> bytes:
        """Positions as they are computed with. Raises MalformedFrame for bytes that no `encode` writes."""


class Raw:
    """Positions travel as they are."""

    name = RAW

    def __init__(self, row_bytes: int) -> None:
        self.raw_bytes = self.row_bytes = row_bytes

    def encode(self, buffer: Buffer) -> bytes:
        count_of(buffer, self.row_bytes)
        return bytes(buffer)

    def decode(self, buffer: Buffer) -> bytes:
        count_of(buffer, self.row_bytes)
        return bytes(buffer)


class Int8:
    """8-bit integers with a float16 scale a group, and the largest values as bfloat16.

    A position is: scales, places of the outliers in rising order, the outliers, the integers (0 where an outlier is).
    NaN and infinities count as the largest magnitudes and so travel as outliers; where a position has more than 16 of
    them, the rest become 0 (NaN) or the largest number that a scale allows (infinities).
    """

    name = INT8

    def __init__(self, dtype: str, hidden_size: int) -> None:
        self._size, self._load, self._store = _DTYPES[dtype]
        self._hidden = hidden_size
        self._groups = -(-hidden_size // GROUP)
        self._outliers = min(OUTLIERS, hidden_size)
        self._place = np.dtype("<u2" if hidden_size <= 1 << 16 else "<u4")
        self._places = 2 * self._groups
        self._values = self._places + self._place.itemsize * self._outliers
        self._integers = self._values + 2 * self._outliers
        self.raw_bytes = self._size * hidden_size
        self.row_bytes = self._integers + hidden_size
        self._block = max(BLOCK_BYTES // (4 * hidden_size), 1)

    def encode(self, buffer: Buffer) -> bytes:
        return b"".join(self._encode(rows).tobytes() for rows in self._blocks(buffer, self.raw_bytes))

    def decode(self, buffer: Buffer) -> bytes:
        # A stranger's scales may be anything; what comes of them is a number, or none, as in any hidden state.
        with np.errstate(all="ignore"):
            return b"".join(self._decode(rows).tobytes() for rows in self._blocks(buffer, self.row_bytes))

    def _blocks(self, buffer: Buffer, row_bytes: int) -> Iterator[Array]:
        """The positions of a buffer as bytes [count, row_bytes], few at a time."""
        rows = np.frombuffer(buffer, np.uint8).reshape(count_of(buffer, row_bytes), row_bytes)
        for begin in range(0, len(rows), self._block):
            yield rows[begin : begin + self._block]

    def _encode(self, rows: Array) -> Array:
        values = self._load(rows)
        places = _largest(values.view(np.uint32) & 0x7FFFFFFF, self._outliers)
        groups = self._grouped(values, places)
        scales = _scales(groups)
        encoded = np.empty((len(rows), self.row_bytes), np.uint8)
        encoded[:, : self._places] = scales.view(np.uint8)
        encoded[:, self._places : self._values] = places.astype(self._place).view(np.uint8)
        outliers = _to_bfloat16(np.take_along_axis(values, places, 1))
        encoded[:, self._values : self._integers] = outliers.view(np.uint8)
        encoded[:, self._integers :] = _quantised(groups, scales)[:, : self._hidden].view(np.uint8)
        return encoded

    def _grouped(self, values: Array, places: Array) -> Array:
        """All but the outliers, [count, groups, GROUP]; 0 in their places and behind the end."""
        padded = np.zeros((len(values), self._groups * GROUP), np.float32)
        padded[:, : self._hidden] = values
        np.put_along_axis(padded, places, np.float32(0.0), 1)
        if not np.isfinite(np.take_along_axis(values, places, 1)).all():
            largest = LARGEST_SCALE * 127
            np.nan_to_num(padded, copy=False, nan=0.0, posinf=largest, neginf=-largest)
        return padded.reshape(len(values), self._groups, GROUP)

    def _decode(self, rows: Array) -> Array:
        scales = _part(rows, 0, self._places, np.dtype("<f2")).astype(np.float32)
        places = _part(rows, self._places, self._values, self._place).astype(np.intp)
        require(bool((places < self._hidden).all()), "an outlier beyond the end of its position")
        outliers = _part(rows, self._values, self._integers, np.dtype("<u2"))
        values = rows[:, self._integers :].view(np.int8).astype(np.float32)
        values *= np.repeat(scales, GROUP, axis=1)[:, : self._hidden]
        np.put_along_axis(values, places, _from_bfloat16(outliers), 1)
        return self._store(values)


def codec_of(name: str, dtype: str, hidden_size: int, row_bytes: int | None = None) -> Codec:
    """The codec of this name for positions of `hidden_size` values of `dtype`; an empty name is `raw`.

    `row_bytes`: of one raw position, where this module does not know the dtype. Raises ContractMismatch.
    """
    known = _DTYPES.get(dtype)
    if name == INT8 and known is not None:
        return Int8(dtype, hidden_size)
    if name not in ("", RAW):
        raise ContractMismatch(f"no codec {name[:40]!r} for {dtype[:40]}; there is {' and '.join(CODECS)}")
    if row_bytes is None:
        if known is None:
            raise ContractMismatch(f"no codec for {dtype[:40]}; there are {', '.join(_DTYPES)}")
        row_bytes = known[0] * hidden_size
    return Raw(row_bytes)


def offered(dtype: str, hidden_size: int) -> tuple[str, ...]:
    """The codecs worth speaking for these positions: for the narrowest ones `int8` would not be the smaller."""
    if dtype not in _DTYPES:
        return (RAW,)
    int8 = Int8(dtype, hidden_size)
    return CODECS if int8.row_bytes < int8.raw_bytes else (RAW,)


def values_of(buffer: Buffer, dtype: str, row_bytes: int) -> Array | None:
    """The numbers of raw positions, float32 [count, values]; None for a dtype that is not known here."""
    known = _DTYPES.get(dtype)
    if known is None:
        return None
    return known[1](np.frombuffer(buffer, np.uint8).reshape(count_of(buffer, row_bytes), row_bytes))


def rows_of(values: Array, dtype: str) -> bytes:
    """Numbers [count, values] as raw positions of a dtype that is known here."""
    stored: Array = _DTYPES[dtype][2](np.ascontiguousarray(values, np.float32))
    return stored.tobytes()


def encode_step(step: pb.Step, codec: Codec) -> pb.Step:
    """A step as it travels."""
    if codec.name == RAW:
        return step
    return pb.Step(operations=step.operations, rows=step.rows, hidden=codec.encode(step.hidden))


def decode_step(step: pb.Step, codec: Codec) -> pb.Step:
    """A stranger's step, checked, with its positions as they are computed with. Raises MalformedFrame."""
    check_step(step, codec.row_bytes)
    if codec.name != RAW:
        size = len(step.hidden) // codec.row_bytes * codec.raw_bytes
        require(size <= FRAME_LIMIT, f"a step of {size} bytes once it is decoded, above the limit of {FRAME_LIMIT}")
        step.hidden = codec.decode(step.hidden)
    return step


def count_of(buffer: Buffer, row_bytes: int) -> int:
    """How many positions a buffer holds. Raises MalformedFrame when the last is incomplete."""
    count, rest = divmod(len(buffer), row_bytes)
    if rest:
        raise MalformedFrame(f"{len(buffer)} bytes are no whole number of positions of {row_bytes} bytes")
    return count


def _part(rows: Array, begin: int, end: int, dtype: np.dtype[Any]) -> Array:
    return np.ascontiguousarray(rows[:, begin:end]).view(dtype)


def _largest(magnitudes: Array, count: int) -> Array:
    """The places of the `count` largest of each row, in rising order; of equals the first ones."""
    least = _at_rank(magnitudes, count)
    chosen = magnitudes >= least
    tied = np.flatnonzero(np.count_nonzero(chosen, axis=1) > count)
    if len(tied):
        above = magnitudes[tied] > least[tied]
        equal = chosen[tied] & ~above
        room = count - np.count_nonzero(above, axis=1)[:, None]
        chosen[tied] = above | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room))
    return np.nonzero(chosen)[1].reshape(len(magnitudes), count)


def _at_rank(magnitudes: Array, count: int) -> Array:
    """The `count`-th largest of each row, [rows, 1]."""
    rows, size = magnitudes.shape
    if size % FEW == 0 and size // FEW > count:
        # All that are as large are in the `count` groups with the largest maxima, or as many equal ones are: a search
        # among a part of them that costs less than half.
        groups = magnitudes.reshape(rows, -1, FEW)
        best = np.argpartition(groups.max(axis=2), -count, axis=1)[:, -count:]
        magnitudes = np.take_along_axis(groups, best[:, :, None], 1).reshape(rows, -1)
    return np.partition(magnitudes, -count, axis=1)[:, -count, None]


def _scales(groups: Array) -> Array:
    """What one step of the integers is worth in each group, [count, groups] in float16, rounded up."""
    wanted = np.maximum(groups.max(axis=2), -groups.min(axis=2)) * np.float32(1 / 127)
    scales = np.minimum(wanted, LARGEST_SCALE).astype("<f2")
    # Rounded down, above all to a number too small for full precision, it would cut off the largest values.
    rounded: Array = np.where(scales < wanted, np.nextafter(scales, np.float16(LARGEST_SCALE)), scales)
    return rounded


def _quantised(groups: Array, scales: Array) -> Array:
    """The integers, [count, values]. Overwrites `groups`."""
    inverse = np.divide(1.0, scales, dtype=np.float32, out=np.zeros(scales.shape, np.float32), where=scales > 0)
    np.multiply(groups, inverse[:, :, None], out=groups)
    np.rint(groups, out=groups)
    np.clip(groups, -127.0, 127.0, out=groups)
    return groups.astype(np.int8).reshape(len(groups), -1)


def _from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: Array) -> Array:
    """Rounded to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    broken = (bits & 0x7FFFFFFF) > INFINITY_BITS
    return np.where(broken, (bits >> 16) | 0x40, rounded).astype("<u2")


def _to_float16(values: Array) -> Array:
    """Rounded to the nearest; only what is infinite becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype("<f2")
    over = np.isinf(halves) & np.isfinite(values)
    return np.where(over, np.copysign(np.float16(LARGEST_SCALE), halves), halves)


_DTYPES: dict[str, tuple[int, Callable[[Array], Array], Callable[[Array], Array]]] = {
    "float32": (4, lambda rows: rows.view("<f4"), lambda values: values),
    "bfloat16": (2, lambda rows: _from_bfloat16(rows.view("<u2")), _to_bfloat16),
    "float16": (2, lambda rows: rows.view("<f2").astype(np.float32), _to_float16),
}
"""Bytes of a value; from bytes [count, raw_bytes] to float32 [count, values]; and from there to the dtype."""
