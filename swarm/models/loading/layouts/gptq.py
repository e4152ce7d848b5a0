"""GPTQ: a linear layer as `qweight`, `qzeros`, `scales` and `g_idx`, as AutoGPTQ and GPTQModel write it.

`qweight`: int32 `[in · bits / 32, out]`, eight inputs of four bits a word, or four of eight. `qzeros`: int32 `[groups,
out · bits / 32]`; `scales`: `[groups, out]`. `g_idx`: the group of each input, sorted unless the order of activations
was followed. In the first version of the format a zero is stored less one, and wraps (AutoGPTQ's `QuantLinear`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import Grid
from swarm.models.loading.layouts import checks, words
from swarm.models.loading.layouts.stored import Settings, Stored

BITS = (4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 0}
"""What is added to a stored zero, by the name of the format."""


@dataclass(frozen=True, slots=True)
class GptqWeight:
    """The weight of one linear layer. `ordered`: whether it has `g_idx`; `added`: to each stored zero."""

    layer: str
    ordered: bool
    added: int

    @property
    def parts(self) -> list[str]:
        names = ["qweight", "qzeros", "scales", *(["g_idx"] if self.ordered else [])]
        return [f"{self.layer}.{name}" for name in names]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        words_in, out = checks.matrix(stored, self.parts[0])
        return out, words_in * words.WORD // self._bits(stored)

    def on_grid(self, stored: Stored) -> bool:
        return True

    def read(self, stored: Stored, rows: slice | None) -> Grid:
        bits, (out, inputs) = self._bits(stored), self.shape(stored)
        qweight, qzeros, scales = self.parts[:3]
        groups = checks.matrix(stored, scales)[0]
        packed = checks.integers(stored, qweight, None, torch.int32)
        zeros = checks.integers(stored, qzeros, (groups, out * bits // words.WORD), torch.int32)
        zeros = (words.levels(words.lanes(zeros), bits).short() + self.added) & ((1 << bits) - 1)
        found, some = checks.scales(stored, scales, (groups, out)), checks.bounds(rows, out)
        lanes, columns = words.lanes(packed[:, some].t()), self._columns(stored, inputs, groups)
        return words.grid(lanes, bits, found[:, some].t().contiguous(), zeros[:, some].t(), columns)

    def _columns(self, stored: Stored, inputs: int, groups: int) -> torch.Tensor | None:
        if not self.ordered:
            return None
        name = self.parts[3]
        return checks.order(name, checks.integers(stored, name, (inputs,), torch.int32, torch.int64), groups)

    def _bits(self, stored: Stored) -> int:
        """Of a level. Layers may differ in them, so that their shapes are asked and not the configuration."""
        qweight, qzeros, _ = self.parts[:3]
        out = checks.matrix(stored, qweight)[1]
        bits, rest = divmod(checks.matrix(stored, qzeros)[1] * words.WORD, out)
        if rest or bits not in BITS:
            raise BadCheckpoint(f"{qzeros} has zeros of {bits} bits for {out} outputs; 4 and 8 bits are read")
        return bits


def find(stored: Stored, settings: Settings) -> Mapping[str, GptqWeight]:
    """The quantized weights by their names in the model."""
    names = stored.names()
    layers = [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
    added = FORMATS.get(str(_format(settings)), 1)
    ordered = bool(settings.get("desc_act"))
    return {f"{layer}.weight": GptqWeight(layer, ordered or f"{layer}.g_idx" in names, added) for layer in layers}


def fault(settings: Settings) -> str | None:
    """Why such a checkpoint cannot be read, from its configuration alone."""
    overrides = settings.get("dynamic") or {}
    every = [settings, *(each for each in overrides.values() if isinstance(each, Mapping))]
    bits = [each["bits"] for each in every if each.get("bits", 4) not in BITS]
    if bits:
        return f"its levels have {bits[0]} bits; 4 and 8 are read"
    if settings.get("is_marlin_format") or _format(settings) not in FORMATS:
        return f"its format is {'marlin' if settings.get('is_marlin_format') else _format(settings)}; gptq is read"
    if settings.get("pack_dtype", "int32") != "int32":
        return f"its levels are packed into {settings['pack_dtype']}; int32 is read"
    return None


def _format(settings: Settings) -> object:
    return settings.get("checkpoint_format") or settings.get("format") or "gptq"
