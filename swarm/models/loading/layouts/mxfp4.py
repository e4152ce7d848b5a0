"""MXFP4, as gpt-oss stores its experts: `X_blocks` and `X_scales` in place of `X`.

`X_blocks`: uint8 `[experts, out, groups, 16]`, 32 numbers of four bits (e2m1); `X_scales`: uint8 `[experts, out,
groups]`, exponents of two. The model has them turned: `[experts, in, out]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import Grid, small
from swarm.models.loading.layouts import checks
from swarm.models.loading.layouts.float8 import E2M1
from swarm.models.loading.layouts.stored import Settings, Stored

BLOCK = 16
"""Bytes of a group."""
LEVELS = tuple(int(2 * number) for number in E2M1)


@dataclass(frozen=True, slots=True)
class Mxfp4Experts:
    """One weight of all experts of a layer, in `dtype`."""

    name: str
    dtype: torch.dtype

    @property
    def parts(self) -> list[str]:
        return [f"{self.name}_blocks", f"{self.name}_scales"]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        blocks, scales = (stored.shape(part) for part in self.parts)
        if len(blocks) != 4 or 0 in blocks or blocks[:3] != scales:
            raise BadCheckpoint(f"{self.parts[0]} is {list(blocks)} and its scales {list(scales)}: they do not fit")
        return blocks[0], blocks[2] * blocks[3] * 2, blocks[1]

    def on_grid(self, stored: Stored) -> bool:
        return False

    def experts(self, stored: Stored, some: range | None) -> Iterator[Grid] | None:
        """Twice the numbers are whole; a scale is half a power of two."""
        experts, inputs, out = self.shape(stored)
        if inputs % (2 * BLOCK):
            return None
        return (self._expert(stored, slice(index, index + 1), out) for index in some or range(experts))

    def _expert(self, stored: Stored, some: slice, out: int) -> Grid:
        powers = checks.scales(stored, self.parts[1], dtypes=checks.POWERS)[some]
        codes = checks.integers(stored, self.parts[0], None, torch.uint8, rows=some)
        return Grid(codes.reshape(out, -1).contiguous(), small(powers.float()[0] / 2), table=LEVELS)

    def read(self, stored: Stored, rows: slice | None) -> torch.Tensor:
        experts, inputs, out = self.shape(stored)
        some = checks.bounds(rows, experts)
        scales = checks.scales(stored, self.parts[1], dtypes=checks.POWERS)[some]
        blocks = checks.integers(stored, self.parts[0], None, torch.uint8, rows=some)
        result = torch.empty(len(blocks), inputs, out, dtype=self.dtype)
        table = torch.tensor(E2M1, dtype=self.dtype)
        for expert, (block, scale) in enumerate(zip(blocks, scales, strict=True)):
            numbers = torch.stack((table[(block & 15).int()], table[(block >> 4).int()]), dim=-1).flatten(2)
            result[expert] = (numbers * scale.to(self.dtype)[..., None]).flatten(1).t()
        return result


def find(stored: Stored, settings: Settings, dtype: torch.dtype) -> Mapping[str, Mxfp4Experts]:
    """The quantized experts by their names in the model; `dtype`: in which they are given."""
    names = frozenset(stored.names())
    bases = [name.removesuffix("_blocks") for name in names if name.endswith("_blocks")]
    return {base: Mxfp4Experts(base, dtype) for base in bases if f"{base}_scales" in names}


def fault(settings: Settings) -> str | None:
    """Why such a checkpoint cannot be read, from its configuration alone: nothing speaks against one."""
    return None
