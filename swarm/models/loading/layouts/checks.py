"""What every layout asks of what is stored beside a weight's levels: shapes that fit, scales that are numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swarm.errors import BadCheckpoint
from swarm.models.loading.layouts.stored import Stored

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
POWERS = (torch.uint8, torch.float8_e8m0fnu)
"""Exponents of two with a bias of 127, of eight bits without a sign (OCP Microscaling Formats 1.0, §5.4)."""


def scales(
    stored: Stored, name: str, shape: Sequence[int] | None = None, dtypes: Sequence[torch.dtype] = FLOATS
) -> torch.Tensor:
    """Scales as float32. Raises BadCheckpoint where one is no number, or where they are of another dtype."""
    expect(name, stored.shape(name), shape)
    if stored.dtype(name) not in dtypes:
        raise BadCheckpoint(f"{name} is {stored.dtype(name)}, where scales of this layout are {dtypes[0]}")
    found = stored.read(name)
    numbers = exponents(found) if found.dtype in POWERS else found.float()
    if not bool(numbers.isfinite().all()):
        raise BadCheckpoint(f"{name} has scales that are no numbers; fetch the checkpoint again")
    return numbers


def exponents(biased: torch.Tensor) -> torch.Tensor:
    """e8m0 bytes → float32 powers of two; 255 is not a number."""
    biased = biased.view(torch.uint8)
    powers = (biased.float() - 127).exp2()
    return powers.masked_fill(biased == 255, torch.nan)


def integers(
    stored: Stored, name: str, shape: Sequence[int] | None, *dtypes: torch.dtype, rows: slice | None = None
) -> torch.Tensor:
    """A tensor of one of these dtypes, or some of its rows. Raises BadCheckpoint where it is another, or of another
    shape."""
    expect(name, stored.shape(name), shape)
    if stored.dtype(name) not in dtypes:
        raise BadCheckpoint(f"{name} is {stored.dtype(name)}, where levels of this layout are {dtypes[0]}")
    return stored.read(name, rows)


def expect(name: str, shape: Sequence[int], expected: Sequence[int] | None) -> None:
    """Raises BadCheckpoint where a tensor has another shape than it must have."""
    if expected is not None and list(shape) != list(expected):
        raise BadCheckpoint(f"{name} is {list(shape)}, where {list(expected)} would fit the weight that it belongs to")


def matrix(stored: Stored, name: str) -> tuple[int, int]:
    """The shape of a tensor of two dimensions, neither of them empty. Raises BadCheckpoint."""
    shape = stored.shape(name)
    if len(shape) != 2 or 0 in shape:
        raise BadCheckpoint(f"{name} is {list(shape)}, which is no matrix")
    return shape[0], shape[1]


def order(name: str, groups_of: torch.Tensor, groups: int) -> torch.Tensor | None:
    """Where the columns are that stand one group after the other, int64 `[in]`; None if they stand so already.

    `groups_of`: the group of each column `[in]`. Raises BadCheckpoint where there is no such group, or some have more
    columns than others.
    """
    found = groups_of.long()
    if bool((found < 0).any()) or bool((found >= groups).any()):
        raise BadCheckpoint(f"{name} names groups that the weight of {groups} groups does not have")
    sizes = torch.bincount(found, minlength=groups)
    if bool((sizes != sizes[0]).any()):
        raise BadCheckpoint(f"{name} has groups of different sizes")
    columns = found.argsort(stable=True)
    return None if torch.equal(columns, torch.arange(len(columns))) else columns


def bounds(rows: slice | None, count: int) -> slice:
    """Which of so many rows: from one to another."""
    first, last, _ = (rows or slice(None)).indices(count)
    return slice(first, max(first, last))
