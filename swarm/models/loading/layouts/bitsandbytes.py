"""bitsandbytes: four bits by a table of 16 numbers (nf4, fp4), and eight bits with a scale for each output.

Four bits: `X.weight` holds two levels a byte, the first in the upper half, of all rows in one row; `X.weight.absmax`
one scale for each `blocksize` of them, or levels of eight bits by `nested_quant_map` that have scales
(`nested_absmax`) and an offset of their own; `X.weight.quant_map` the table; `X.weight.quant_state.bitsandbytes__nf4`
the rest, as JSON in bytes. Eight bits: `X.weight` is int8, `X.SCB` the largest number of each output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import Grid, small
from swarm.models.loading.layouts import checks
from swarm.models.loading.layouts.stored import Settings, Stored, Weight

STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GROUP = 16
"""Columns that share a scale must be a multiple of so many for there to be a kernel."""
AT_ONCE = 1 << 20
"""Numbers that are computed at one time."""


@dataclass(frozen=True, slots=True)
class State:
    """What is said of a weight of four bits. `nested`: block size and offset of the scales' own levels."""

    shape: tuple[int, int]
    block: int
    dtype: torch.dtype
    nested: tuple[int, float] | None

    @property
    def blocks(self) -> int:
        return -(-math.prod(self.shape) // self.block)


@dataclass(frozen=True, slots=True)
class FourBits:
    """A weight of four bits; `state`: the last part of the name of what is said of it."""

    name: str
    state: str
    nested: bool

    @property
    def parts(self) -> list[str]:
        nested = ["nested_absmax", "nested_quant_map"] if self.nested else []
        return [self.name, *(f"{self.name}.{part}" for part in (self.state, "absmax", "quant_map", *nested))]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        return self._state(stored).shape

    def on_grid(self, stored: Stored) -> bool:
        """Where rows are whole blocks."""
        state = self._state(stored)
        return state.shape[1] % state.block == 0 and state.block % GROUP == 0

    def read(self, stored: Stored, rows: slice | None) -> torch.Tensor | Grid:
        state, columns = self._state(stored), self._state(stored).shape[1]
        pairs = stored.read(self.name).flatten().view(torch.uint8)
        checks.expect(self.name, pairs.shape, ((math.prod(state.shape) + 1) // 2,))
        scales, table = self._scales(stored, state), self._table(stored, "quant_map", 16)
        some = checks.bounds(rows, state.shape[0])
        if self.on_grid(stored):
            pairs = pairs.view(-1, columns // 2)[some]
            by_row = scales.view(len(scales) * state.block // columns, -1)[some]
            return Grid(pairs >> 4 | pairs << 4, by_row.contiguous(), table=tuple(table.tolist()))
        result = torch.empty((some.stop - some.start) * columns, dtype=state.dtype)
        first, last = some.start * columns, some.stop * columns
        for begin in range(first, last, AT_ONCE):
            at = torch.arange(begin, min(begin + AT_ONCE, last))
            levels = (pairs[at // 2] >> torch.where(at % 2 == 0, 4, 0)) & 15
            result[begin - first :][: len(at)] = table[levels.int()] * scales[at // state.block]
        return result.view(-1, columns)

    def _scales(self, stored: Stored, state: State) -> torch.Tensor:
        """float32 `[blocks]`."""
        name = f"{self.name}.absmax"
        if (state.nested is not None) != self.nested:
            raise BadCheckpoint(f"{name} and {self.state} differ in whether scales have scales of their own")
        if state.nested is None:
            return checks.scales(stored, name, (state.blocks,))
        block, offset = state.nested
        levels = checks.integers(stored, name, (state.blocks,), torch.uint8)
        table = self._table(stored, "nested_quant_map", 256)
        nested = checks.scales(stored, f"{self.name}.nested_absmax", (-(-state.blocks // block),))
        return table[levels.int()] * nested.repeat_interleave(block)[: state.blocks] + offset

    def _table(self, stored: Stored, name: str, size: int) -> torch.Tensor:
        return checks.scales(stored, f"{self.name}.{name}", (size,))

    def _state(self, stored: Stored) -> State:
        name = f"{self.name}.{self.state}"
        try:
            return _parse(json.loads(bytes(checks.integers(stored, name, None, torch.uint8).flatten().tolist())))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BadCheckpoint(f"{name} is damaged: {error!r}") from error


@dataclass(frozen=True, slots=True)
class EightBits:
    """A weight of eight bits: levels · largest / 127."""

    layer: str
    formatted: bool

    @property
    def parts(self) -> list[str]:
        names = ["weight", "SCB", *(["weight_format"] if self.formatted else [])]
        return [f"{self.layer}.{name}" for name in names]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        return checks.matrix(stored, self.parts[0])

    def on_grid(self, stored: Stored) -> bool:
        return True

    def read(self, stored: Stored, rows: slice | None) -> Grid:
        weight, largest, *formats = self.parts
        if formats and bool(stored.read(formats[0]).any()):
            raise BadCheckpoint(f"{weight} is stored in an order that a GPU likes; save it with a newer bitsandbytes")
        out, _ = self.shape(stored)
        some = checks.bounds(rows, out)
        codes = checks.integers(stored, weight, None, torch.int8, rows=some)
        return Grid(codes, small(checks.scales(stored, largest, (out,))[some, None] / 127))


def find(stored: Stored, settings: Settings) -> Mapping[str, Weight]:
    """The quantized weights by their names in the model."""
    names = frozenset(stored.names())
    found: dict[str, Weight] = {}
    for name in names:
        layer = name.removesuffix(".SCB")
        if layer != name and f"{layer}.weight" in names:
            found[f"{layer}.weight"] = EightBits(layer, f"{layer}.weight_format" in names)
        state = next((state for state in STATES if name.endswith(f".{state}")), None)
        weight = name.removesuffix(f".{state}")
        if state is not None and weight in names:
            found[weight] = FourBits(weight, state, f"{weight}.nested_absmax" in names)
    return found


def fault(settings: Settings) -> str | None:
    """Why such a checkpoint cannot be read, from its configuration alone."""
    kind = settings.get("bnb_4bit_quant_type", "nf4")
    return None if kind in ("nf4", "fp4") else f"its bnb_4bit_quant_type is {kind}; nf4 and fp4 are read"


def _parse(said: Any) -> State:
    rows, columns = (int(size) for size in said["shape"])
    block, dtype = int(said["blocksize"]), DTYPES[said["dtype"]]
    nested = (int(said["nested_blocksize"]), float(said["nested_offset"])) if "nested_offset" in said else None
    if min(rows, columns, block, *(nested or (1,))[:1]) < 1 or block % 2 or not math.isfinite((nested or (0, 0))[1]):
        raise ValueError(f"{said}")
    return State((rows, columns), block, dtype, nested)
