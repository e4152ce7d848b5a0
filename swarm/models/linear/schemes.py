"""The schemes by which weights become numbers on a grid (`swarm.config.SCHEMES`)."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite

import torch

from swarm.config import INT4, INT8
from swarm.errors import UnsupportedModel
from swarm.models.linear.grid import Grid, pack4

GROUP = 32
"""Columns that share a scale, in both schemes."""
SHRUNK = (0.94, 0.88, 0.82)
"""Of the range of a group of four-bit numbers, what is tried: leaving out its ends makes the steps smaller."""
CHUNK = 1 << 22
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
    """A weight `[out, in]` on the grid of a scheme. Raises as `quantize_rows`."""
    return quantize_rows(lambda rows: weight[rows], (weight.shape[0], weight.shape[1]), name)


@torch.inference_mode()
def quantize_rows(read: Callable[[slice], torch.Tensor], shape: tuple[int, int], name: str) -> Grid:
    """A weight of that shape on the grid of a scheme, of which `read` gives some rows after others: the same numbers on
    every processor.

    Raises UnsupportedModel where its numbers are not finite, or something else on the grid.
    """
    outputs, inputs = shape
    many, off, norm = max(1, CHUNK // inputs), 0.0, 0.0
    whole: Grid | None = None
    for first in range(0, outputs, many):
        part = read(slice(first, first + many)).float()
        grid = _int8(part) if name == INT8 else _int4(part)
        whole = whole or _empty_like(grid, outputs)
        _copy(grid, whole.rows(first, first + len(part)))
        off += float(_square(grid.dense() - part).sum())
        norm += float(_square(part).sum())
    assert whole is not None
    if not off <= LIMITS[name] ** 2 * norm:
        what = f"is {(off / norm) ** 0.5:.0%} off" if isfinite(off) and norm else "is not finite, or too large for it"
        raise UnsupportedModel(f"a weight of {outputs} x {inputs} numbers {what} in {name}")
    return whole


def _empty_like(grid: Grid, outputs: int) -> Grid:
    def empty(part: torch.Tensor) -> torch.Tensor:
        return part.new_empty(outputs, part.shape[1])

    return Grid(empty(grid.codes), empty(grid.scales), None if grid.least is None else empty(grid.least))


def _copy(source: Grid, target: Grid) -> None:
    target.codes.copy_(source.codes)
    target.scales.copy_(source.scales)
    if source.least is not None and target.least is not None:
        target.least.copy_(source.least)


def _int8(weight: torch.Tensor) -> Grid:
    """Around zero: the largest of a group is at 127."""
    groups = weight.view(len(weight), -1, GROUP)
    scales = _scales(groups.abs().amax(dim=-1) / 127)
    levels = (groups / scales.float()[..., None]).round_().clamp_(-127, 127)
    return Grid(levels.to(torch.int8).flatten(1), scales)


def _int4(weight: torch.Tensor) -> Grid:
    """From a minimum in 15 steps; of several ranges that with the least squares of differences."""
    groups = weight.view(len(weight), -1, GROUP)
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    scales, least = _scales((high - low) / 15), low.half()
    error = _error(groups, scales, least)
    for share in SHRUNK:
        cut = (high - low) * ((1 - share) / 2)
        other_scales, other_least = _scales((high - low - 2 * cut) / 15), (low + cut).half()
        other = _error(groups, other_scales, other_least)
        better = other < error
        scales, least = torch.where(better, other_scales, scales), torch.where(better, other_least, least)
        error = torch.where(better, other, error)
    return Grid(pack4(_codes(groups, scales, least).flatten(1)), scales, least)


def _scales(steps: torch.Tensor) -> torch.Tensor:
    """As float16, none of them zero."""
    return steps.half().clamp(min=2.0**-24)


def _error(groups: torch.Tensor, scales: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    """Squares of differences in each group, summed in an order that no processor has its own idea of."""
    numbers = _codes(groups, scales, least) * scales.float()[..., None]
    squares = _square(numbers.add_(least.float()[..., None]).sub_(groups))
    while squares.shape[-1] > 1:
        half = squares.shape[-1] // 2
        squares = squares[..., :half] + squares[..., half:]
    return squares[..., 0]


def _codes(groups: torch.Tensor, scales: torch.Tensor, least: torch.Tensor) -> torch.Tensor:
    return ((groups - least.float()[..., None]) / scales.float()[..., None]).round_().clamp_(0, 15)


def _square(numbers: torch.Tensor) -> torch.Tensor:
    return numbers * numbers
