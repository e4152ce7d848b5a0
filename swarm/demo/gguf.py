"""What a GGUF file says of a model, and its tensors as float32: the types that the demo's model is stored in."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from swarm.errors import BadCheckpoint

Floats = npt.NDArray[np.float32]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_GROUP = 32
"""Elements that share a scale."""
_STORED: dict[int, npt.DTypeLike] = {
    0: np.dtype("<f4"),
    3: np.dtype([("scale", "<f2"), ("least", "<f2"), ("pairs", "u1", (_GROUP // 2,))]),  # Q4_1
    8: np.dtype([("scale", "<f2"), ("whole", "i1", (_GROUP,))]),  # Q8_0
}


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies: its shape in torch's order, its type's number, its offset in the file."""

    shape: tuple[int, ...]
    type: int
    offset: int


class Gguf:
    """An opened file: `metadata` by key, and `stored` tensors by name. Raises BadCheckpoint."""

    def __init__(self, path: Path) -> None:
        try:
            self._bytes = np.memmap(path, mode="r", dtype=np.uint8)
            self._at = 0
            self._read_header()
        except (struct.error, ValueError, KeyError) as error:
            raise BadCheckpoint(f"{path.name} is not a GGUF file that can be read: {error}") from error

    def tensor(self, name: str) -> Floats:
        """A tensor in float32, exactly what is stored."""
        info = self.stored[name]
        if info.type not in _STORED:
            raise BadCheckpoint(f"the tensor {name} is stored as type {info.type}, which is not read here")
        kind = np.dtype(_STORED[info.type])
        count = prod(info.shape) // (_GROUP if kind.fields else 1)
        raw = self._bytes[info.offset : info.offset + count * kind.itemsize]
        if len(raw) != count * kind.itemsize:
            raise BadCheckpoint(f"the file ends within the tensor {name}")
        return _floats(raw.view(kind), info.type).reshape(info.shape)

    def _read_header(self) -> None:
        magic, version, tensors, entries = self._unpack("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        self.metadata: dict[str, Any] = {self._string(): self._value(*self._unpack("I")) for _ in range(entries)}
        found = [self._stored() for _ in range(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        first = -(-self._at // alignment) * alignment
        self.stored = {name: Stored(shape, kind, first + offset) for name, shape, kind, offset in found}

    def _stored(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        (dimensions,) = self._unpack("I")
        shape = self._unpack(f"{dimensions}Q")
        return name, shape[::-1], *self._unpack("IQ")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._unpack(_NUMBERS[kind])[0]
        of, count = self._unpack("IQ")
        return [self._string() for _ in range(count)] if of == _STRING else list(self._unpack(f"{count}{_NUMBERS[of]}"))

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        (text,) = self._unpack(f"{length}s")
        return str(text, "utf-8")

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self._bytes.data, self._at)
        self._at += struct.calcsize("<" + layout)
        return values


def _floats(raw: npt.NDArray[Any], kind: int) -> Floats:
    if kind == 0:
        return raw.astype(np.float32)
    scale = raw["scale"].astype(np.float32)[:, None]
    if kind == 8:
        return scale * raw["whole"].astype(np.float32)
    # The low halves of the bytes are the first 16 elements, the high halves the others.
    pairs = raw["pairs"]
    numbers = np.concatenate((pairs & 15, pairs >> 4), axis=1).astype(np.float32)
    return scale * numbers + raw["least"].astype(np.float32)[:, None]
