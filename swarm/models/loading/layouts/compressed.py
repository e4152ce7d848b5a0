"""compressed-tensors: integers and FP8 as llm-compressor writes them.

`pack-quantized`: `weight_packed` int32 `[out, in · bits / 32]`, levels plus half of their range; `weight_scale`
`[out, groups]`; `weight_zero_point` int32 `[out · bits / 32, groups]`, packed along the outputs; `weight_g_idx` the
group of each input. `int-quantized`: `weight` int8 `[out, in]`, with scales and zeros that are not packed.
`float-quantized`: `weight` FP8, with a scale for the tensor, each output, or each block. `naive-quantized` is one of
them. What is quantized is what is stored so: `targets` and `ignore` are not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import Grid, small
from swarm.models.loading.layouts import checks, words
from swarm.models.loading.layouts.float8 import FLOATS, ScaledWeight, block_size
from swarm.models.loading.layouts.stored import Settings, Stored, Weight

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
BITS = (4, 8)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """Levels in words. `bits`: None where layers differ in them."""

    layer: str
    bits: int | None
    zeros: bool
    ordered: bool

    @property
    def parts(self) -> list[str]:
        names = ["weight_packed", "weight_scale", "weight_shape"]
        names += ["weight_zero_point"] * self.zeros + ["weight_g_idx"] * self.ordered
        return [f"{self.layer}.{name}" for name in names]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        out, packed = checks.matrix(stored, self.parts[0])
        return out, packed * words.WORD // self._bits(stored)

    def on_grid(self, stored: Stored) -> bool:
        return True

    def read(self, stored: Stored, rows: slice | None) -> Grid:
        bits, (out, inputs) = self._bits(stored), self.shape(stored)
        packed, scale, shape = self.parts[:3]
        if stored.read(shape).tolist() != [out, inputs]:
            raise BadCheckpoint(f"{shape} says another shape than {packed} has, {[out, inputs]}")
        groups = checks.matrix(stored, scale)[1]
        some, columns = checks.bounds(rows, out), self._columns(stored, inputs, groups)
        lanes = words.lanes(checks.integers(stored, packed, None, torch.int32, rows=some))
        scales, zeros = checks.scales(stored, scale, (out, groups)), self._zeros(stored, bits, out, groups)
        return words.grid(lanes, bits, scales[some], None if zeros is None else zeros[some], columns)

    def _zeros(self, stored: Stored, bits: int, out: int, groups: int) -> torch.Tensor | None:
        if not self.zeros:
            return None
        name = f"{self.layer}.weight_zero_point"
        packed = checks.integers(stored, name, (-(-out * bits // words.WORD), groups), torch.int32)
        return words.levels(words.lanes(packed.t()), bits).t()[:out]

    def _columns(self, stored: Stored, inputs: int, groups: int) -> torch.Tensor | None:
        if not self.ordered:
            return None
        name = f"{self.layer}.weight_g_idx"
        groups_of = checks.integers(stored, name, (inputs,), torch.int32, torch.int64)
        # All are -1 where the order of activations was not followed.
        return None if bool((groups_of == -1).all()) else checks.order(name, groups_of, groups)

    def _bits(self, stored: Stored) -> int:
        if self.bits is not None:
            return self.bits
        inputs = int(stored.read(self.parts[2])[-1])
        bits, rest = divmod(checks.matrix(stored, self.parts[0])[1] * words.WORD, max(1, inputs))
        if rest or bits not in BITS:
            raise BadCheckpoint(f"{self.parts[0]} has no levels of 4 or 8 bits for {inputs} inputs")
        return bits


@dataclass(frozen=True, slots=True)
class IntegerWeight:
    """Levels as int8, one a byte."""

    layer: str
    zeros: bool

    @property
    def parts(self) -> list[str]:
        return [f"{self.layer}.{name}" for name in ("weight", "weight_scale", *["weight_zero_point"] * self.zeros)]

    def shape(self, stored: Stored) -> tuple[int, ...]:
        return checks.matrix(stored, self.parts[0])

    def on_grid(self, stored: Stored) -> bool:
        return True

    def read(self, stored: Stored, rows: slice | None) -> Grid:
        out, _ = self.shape(stored)
        some = checks.bounds(rows, out)
        codes = checks.integers(stored, self.parts[0], None, torch.int8, rows=some)
        scales = _by_output(self.parts[1], checks.scales(stored, self.parts[1]), out)
        least = None
        if self.zeros:
            zeros = _by_output(self.parts[2], checks.integers(stored, self.parts[2], None, torch.int8), out)
            checks.expect(self.parts[2], zeros.shape, scales.shape)
            least = small(-zeros.float() * scales) if bool(zeros.any()) else None
        return Grid(codes, small(scales[some]), None if least is None else least[some])


@dataclass(frozen=True, slots=True)
class PlainWeight:
    """Levels that are not packed: FP8 or integers. `expected`: whether these are; None where only the file says."""

    expected: bool | None
    floats: ScaledWeight
    integers: IntegerWeight

    @property
    def parts(self) -> list[str]:
        return self.integers.parts

    def shape(self, stored: Stored) -> tuple[int, ...]:
        return self._of(stored).shape(stored)

    def on_grid(self, stored: Stored) -> bool:
        return bool(self.expected) or self._of(stored).on_grid(stored)

    def read(self, stored: Stored, rows: slice | None) -> torch.Tensor | Grid:
        return self._of(stored).read(stored, rows)

    def _of(self, stored: Stored) -> Weight:
        return self.floats if stored.dtype(self.floats.weight) in FLOATS else self.integers


def _by_output(name: str, numbers: torch.Tensor, out: int) -> torch.Tensor:
    """One row for each output, from one for the tensor, for each output, or for each block of outputs."""
    table = numbers.view(-1, 1) if numbers.numel() == 1 or numbers.shape == (out,) else numbers
    if table.dim() != 2:
        raise BadCheckpoint(f"{name} is {list(numbers.shape)}, which fits no weight of {out} outputs")
    step = out // len(table) if len(table) in (1, out) else block_size(name, len(table), out, None)
    return table.repeat_interleave(step, dim=0)


def find(stored: Stored, settings: Settings, dtype: torch.dtype) -> Mapping[str, Weight]:
    """The quantized weights by their names in the model; `dtype`: in which FP8 is given."""
    names = frozenset(stored.names())
    uniform = _uniform(settings)
    layers = [name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")]
    every = {f"{layer}.weight": _weight(names, layer, uniform, dtype) for layer in layers}
    return {name: weight for name, weight in every.items() if weight is not None}


@dataclass(frozen=True, slots=True)
class _Uniform:
    """What all layers have in common: whether they are integers, how many bits these have, whether they have zeros, the
    blocks of floats."""

    integers: bool | None
    bits: int | None
    zeros: bool
    block: tuple[int, int]


def _uniform(settings: Settings) -> _Uniform:
    every = list(_weights(settings))
    integers = [weights for weights in every if _is_integer(weights)]
    bits = {int(weights.get("num_bits", 8)) for weights in integers}
    blocks = {block for weights in every if (block := _block(weights)) is not None}
    zeros = bool(every) and integers == every and not any(weights.get("symmetric", True) for weights in every)
    alike = bool(integers) if every and (not integers or integers == every) else None
    block = blocks.pop() if len(blocks) == 1 else (128, 128)
    return _Uniform(alike, bits.pop() if len(bits) == 1 else None, zeros, block)


def _weight(names: frozenset[str], layer: str, uniform: _Uniform, dtype: torch.dtype) -> Weight | None:
    weight, zeros = f"{layer}.weight", uniform.zeros or f"{layer}.weight_zero_point" in names
    if f"{weight}_packed" in names:
        return PackedWeight(layer, uniform.bits, zeros, f"{weight}_g_idx" in names)
    floats = ScaledWeight(weight, f"{weight}_scale", dtype, uniform.block)
    return PlainWeight(uniform.integers, floats, IntegerWeight(layer, zeros)) if weight in names else None


def fault(settings: Settings) -> str | None:
    """Why such a checkpoint cannot be read, from its configuration alone."""
    formats = [settings.get("format"), *(group.get("format") for group in _groups(settings))]
    for each in formats:
        if each is not None and each not in FORMATS:
            return f"its format is {each}; {', '.join(FORMATS)} are read"
    sparsity = settings.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        return f"it is sparse ({sparsity['format']})"
    if (settings.get("transform_config") or {}).get("config_groups"):
        return "it turns its activations while computing (transform_config)"
    return next(filter(None, map(_scheme_fault, _weights(settings))), None)


def _scheme_fault(weights: Settings) -> str | None:
    bits = weights.get("num_bits", 8)
    if _is_integer(weights):
        return None if bits in BITS else f"its levels have {bits} bits; 4 and 8 are read"
    return None if bits == 8 else f"its floats have {bits} bits; 8 are read"


def _is_integer(weights: Settings) -> bool:
    return str(weights.get("type", "int")) == "int"


def _block(weights: Settings) -> tuple[int, int] | None:
    block = weights.get("block_structure")
    fits = isinstance(block, list) and len(block) == 2 and all(isinstance(size, int) and size > 0 for size in block)
    return (block[0], block[1]) if isinstance(block, list) and fits else None


def _groups(settings: Settings) -> Iterator[Mapping[str, Any]]:
    groups = settings.get("config_groups")
    yield from (each for each in (groups.values() if isinstance(groups, Mapping) else ()) if isinstance(each, Mapping))


def _weights(settings: Settings) -> Iterator[Settings]:
    """What each group of layers says of its weights; nothing where it quantizes only activations."""
    yield from (group["weights"] for group in _groups(settings) if isinstance(group.get("weights"), Mapping))
