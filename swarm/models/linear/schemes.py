"""The schemes by which weights become numbers on a grid (`swarm.config.SCHEMES`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite

import torch

from swarm.config import INT4, INT8
from swarm.errors import UnsupportedModel
from swarm.models.linear.compiled import kernel
from swarm.models.linear.grid import Grid, pack4, stack

GROUP = 32
"""Columns that share a scale, in both schemes."""
CUTS = (0.0, 0.03, 0.06, 0.09)
"""Of the range of a group of four-bit numbers, what is tried to be left out at either end: the steps become smaller."""
ROWS = 32
CHUNK = 1 << 21
"""Numbers that are quantized at once."""
BITS = {INT8: 8 + 16 / GROUP, INT4: 4 + 32 / GROUP}
"""Of a weight, with its part of a scale and of a minimum."""
LIMITS = {INT8: 0.02, INT4: 0.16}
"""How far a weight on its grid may be from what it was, as a share of its norm: healthy ones are at 0.008 and 0.1,
three bits at 0.17, scales shifted by one row above 0.3."""


def can_quantize(in_features: int) -> bool:
    """Whether the columns of a weight divide into groups."""
    return in_features % GROUP == 0


def quantize(weight: torch.Tensor, name: str) -> Grid:
    """A weight `[out, in]` on the grid of a scheme. Raises as `quantized`."""
    shape = (weight.shape[0], weight.shape[1])
    return stack(list(quantized(lambda rows: weight[rows], shape, name)))


@torch.inference_mode()
def quantized(read: Callable[[slice], torch.Tensor], shape: tuple[int, int], name: str) -> Iterator[Grid]:
    """A weight `[out, in]` of that shape on the grid of a scheme, some rows after others: the same numbers on every
    processor. `read` gives rows; parts have a multiple of `ROWS` of them, but for the last.

    Raises UnsupportedModel at the end where its numbers are not finite, or something else on the grid.
    """
    outputs, inputs = shape
    many, off, norm = max(1, CHUNK // inputs // ROWS) * ROWS, 0.0, 0.0
    for first in range(0, outputs, many):
        part = read(slice(first, first + many)).float().contiguous()
        grid, errors = on_grid(part, name)
        yield grid
        off += float(errors.double().sum())
        norm += float((part * part).double().sum())
    if not off <= LIMITS[name] ** 2 * norm:
        what = f"is {(off / norm) ** 0.5:.0%} off" if isfinite(off) and norm else "is not finite, or too large for it"
        raise UnsupportedModel(f"a weight of {outputs} x {inputs} numbers {what} in {name}")


def on_grid(weight: torch.Tensor, name: str, compiled: bool = True) -> tuple[Grid, torch.Tensor]:
    """float32 `[out, in]` on the grid of a scheme, and the squares of differences in each group `[out, groups]`.

    `compiled`: by the kernel, where there is one; the numbers are the same without.
    """
    found = kernel() if compiled else None
    if found is None:
        return _int8(weight) if name == INT8 else _int4(weight)
    groups = weight.shape[1] // GROUP
    scales = torch.empty(len(weight), groups, dtype=torch.float16)
    if name == INT8:
        grid = Grid(torch.empty(weight.shape, dtype=torch.int8), scales)
    else:
        codes = torch.empty(len(weight), weight.shape[1] // 2, dtype=torch.uint8)
        grid = Grid(codes, scales, torch.empty_like(scales))
    return grid, found.quantize(weight, torch.tensor(CUTS), grid)


def _int8(weight: torch.Tensor) -> tuple[Grid, torch.Tensor]:
    """Around zero: the largest of a group is at 127."""
    groups = weight.view(len(weight), -1, GROUP)
    scales = _scales(groups.abs().amax(dim=-1) / 127)
    levels = (groups / scales.float()[..., None]).round_().clamp_(-127, 127)
    return Grid(levels.to(torch.int8).flatten(1), scales), _squares(levels * scales.float()[..., None] - groups)


def _int4(weight: torch.Tensor) -> tuple[Grid, torch.Tensor]:
    """From a minimum in 15 steps; of several ranges that with the least squares of differences."""
    groups = weight.view(len(weight), -1, GROUP)
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    error = scales = least = torch.empty(0)
    for share in CUTS:
        cut = (high - low) * share
        other_scales, other_least = _scales((high - low - 2 * cut) / 15), (low + cut).half()
        other = _error(groups, other_scales, other_least)
        better = other < error if len(error) else torch.ones_like(other, dtype=torch.bool)
        scales, least, error = (
            torch.where(better, new, old) if len(old) else new
            for new, old in ((other_scales, scales), (other_least, least), (other, error))
        )
    return Grid(pack4(_codes(groups, scales, least).flatten(1)), scales, least), error


def _scales(steps: torch.Tensor) -> torch.Tensor:
    """As float16, none of them zero."""
    return steps.half().clamp(min=2.0**-24)


def _codes(groups: torch.Tensor, scales: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    return ((groups - least.float()[..., None]) / scales.float()[..., None]).round_().clamp_(0, 15)


def _error(groups: torch.Tensor, scales: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    numbers = _codes(groups, scales, least) * scales.float()[..., None]
    return _squares(numbers.add_(least.float()[..., None]).sub_(groups))


def _squares(differences: torch.Tensor) -> torch.Tensor:
    """Of each group, summed in an order that no processor has its own idea of."""
    squares = differences * differences
    while squares.shape[-1] > 1:
        half = squares.shape[-1] // 2
        squares = squares[..., :half] + squares[..., half:]
    return squares[..., 0]
