"""AWQ: a linear layer as `qweight`, `qzeros` and `scales`, in the `gemm` layout of AutoAWQ.

`qweight`: int32 `[in, out / 8]`, `qzeros`: int32 `[groups, out / 8]`, eight outputs of four bits a word, interleaved;
`scales`: `[groups, out]`. Groups are of inputs beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from swarm.models.linear.grid import Grid, pack4
from swarm.models.loading.layouts import checks, words
from swarm.models.loading.layouts.stored import Settings, Stored

LANES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word the outputs are that stand beside each other: the even ones come first (AutoAWQ, `WQLinear_GEMM`)."""
PER_WORD = 8


@dataclass(frozen=True, slots=True)
class AwqWeight:
    """The weight of one linear layer."""

    layer: str

    @property
    def parts(self) -> list[str]:
        return [f"{self.layer}.{name}" for name in ("qweight", "qzeros", "scales")]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        inputs, words_out = checks.matrix(stored, self.parts[0])
        return words_out * PER_WORD, inputs

    def on_grid(self, stored: Stored) -> bool:
        return True

    def read(self, stored: Stored, rows: slice | None) -> Grid:
        qweight, qzeros, scales = self.parts
        out, _ = self.shape(stored)
        groups = checks.matrix(stored, scales)[0]
        zeros = checks.integers(stored, qzeros, (groups, out // PER_WORD), torch.int32)
        packed = checks.integers(stored, qweight, None, torch.int32)
        found, some = checks.scales(stored, scales, (groups, out)), checks.bounds(rows, out)
        codes = pack4(_outputs(packed, some))
        return words.grid(codes, 4, found[:, some].t().contiguous(), _outputs(zeros, some))


def _outputs(packed: torch.Tensor, some: slice) -> torch.Tensor:
    """int32 `[rows, out / 8]` → the levels of some outputs, uint8 `[outputs, rows]`."""
    first = some.start // PER_WORD
    lanes = words.lanes(packed[:, first : -(-some.stop // PER_WORD)])
    by_word = words.levels(lanes, 4).view(len(packed), -1, PER_WORD)
    return by_word[:, :, list(LANES)].flatten(1).t()[some.start - first * PER_WORD :][: some.stop - some.start]


def find(stored: Stored, settings: Settings) -> Mapping[str, AwqWeight]:
    """The quantized weights by their names in the model."""
    layers = [name.removesuffix(".qweight") for name in stored.names() if name.endswith(".qweight")]
    return {f"{layer}.weight": AwqWeight(layer) for layer in layers}


def fault(settings: Settings) -> str | None:
    """Why such a checkpoint cannot be read, from its configuration alone."""
    version = settings.get("version") or settings.get("format") or "gemm"
    if str(version).lower() != "gemm":
        return f"its version is {version}; gemm is read"
    bits = settings.get("bits", settings.get("w_bit", 4))
    return None if bits == 4 else f"its levels have {bits} bits; 4 are read"
