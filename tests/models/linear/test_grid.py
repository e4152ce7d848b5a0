"""Weights on a grid: the numbers that they stand for, whatever they are cut into, and what fits together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import BadCheckpoint
from swarm.models.linear.grid import FLOAT8, SIGNED, Grid, GridDigest, pack4, small, stack

MXFP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def random_grid(
    outputs: int = 5,
    inputs: int = 64,
    *,
    bits: int = 4,
    group: int = 32,
    least: bool = False,
    table: tuple[int, ...] | tuple[float, ...] | None = None,
    dtype: torch.dtype = torch.float16,
    floats: bool = False,
    seed: int = 0,
) -> Grid:  # scales of int8 count halves, one for 256 columns
    """Random levels with random scales."""
    generator = torch.Generator().manual_seed(seed)
    if bits == 8 and floats:
        codes = torch.randn(outputs, inputs, generator=generator).mul(60).to(FLOAT8)
    elif bits == 4:
        codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, generator=generator)
    else:
        codes = torch.randint(-127, 128, (outputs, inputs), generator=generator).to(torch.int8)
    if dtype == torch.int8:
        shape = (outputs, inputs // group)
        whole = [torch.randint(-128, 128, shape, generator=generator).to(dtype) for _ in range(1 + least)]
        units = torch.rand(2, outputs, inputs // 256, generator=generator).mul(1e-3).half()
        more = {"least": whole[1], "least_units": units[1]} if least else {}
        return Grid(codes, whole[0], table=table, units=units[0], **more)
    scales = (torch.rand(outputs, inputs // group, generator=generator) / 50 + 1e-3).to(dtype)
    added = torch.randn(outputs, inputs // group, generator=generator).mul(0.05).to(dtype) if least else None
    return Grid(codes, scales, added, table)


@pytest.mark.parametrize("table", [None, SIGNED, MXFP4])
def test_each_number_is_its_scale_times_its_level_and_the_minimum(table: tuple[int, ...] | None) -> None:
    grid = random_grid(3, 64, least=True, table=table)
    dense, levels = grid.dense(), table or tuple(range(16))
    assert grid.least is not None
    for row in range(3):
        for column in range(64):
            code = int(grid.codes[row, column // 2]) >> 4 * (column % 2) & 15
            scale, least = float(grid.scales[row, column // 32]), float(grid.least[row, column // 32])
            assert float(dense[row, column]) == pytest.approx(scale * levels[code] + least, rel=1e-6)


def test_scales_that_are_whole_numbers_count_halves() -> None:
    grid = random_grid(3, 512, group=16, least=True, dtype=torch.int8)
    assert grid.units is not None and grid.least is not None and grid.least_units is not None and grid.unit == 256
    dense = grid.dense()
    for row, column in [(0, 0), (1, 17), (2, 255), (0, 256), (2, 511)]:
        scale = float(grid.units[row, column // 256]) * int(grid.scales[row, column // 16])
        least = float(grid.least_units[row, column // 256]) * int(grid.least[row, column // 16])
        level = int(grid.levels()[row, column])
        assert float(dense[row, column]) == pytest.approx(scale * level + least, rel=1e-6, abs=1e-9)


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 9),
    st.integers(0, 9),
    st.sampled_from([torch.float16, torch.int8]),
)
def test_rows_and_stacks_are_those_of_the_numbers(
    outputs: int, groups: int, first: int, count: int, dtype: torch.dtype
) -> None:
    grid = random_grid(outputs, 256 * groups, least=True, dtype=dtype)
    first = min(first, outputs - 1)
    cut = grid.rows(first, first + count)
    assert torch.equal(cut.dense(), grid.dense()[first : first + count])
    assert torch.equal(stack([grid, cut]).dense(), torch.cat([grid.dense(), cut.dense()]))
    order = torch.randperm(outputs)
    assert torch.equal(grid.at(order).dense(), grid.dense()[order])


def test_columns_stand_where_their_inputs_are() -> None:
    plain, order = random_grid(4, 64), torch.randperm(64)
    moved = Grid(plain.codes, plain.scales, columns=order)
    assert torch.equal(moved.dense()[:, order], plain.dense())


def test_a_digest_is_of_every_number() -> None:
    grid = random_grid(4, 64, least=True)
    others = [
        random_grid(4, 64, least=True, seed=1),
        random_grid(4, 64, least=True, table=SIGNED),
        Grid(grid.codes, grid.scales, None),
        Grid(grid.codes, grid.scales.float(), grid.least),
        random_grid(4, 256, dtype=torch.int8),
        random_grid(4, 256, group=16, dtype=torch.int8),
    ]
    assert len({each.digest() for each in (grid, *others)}) == 7
    assert grid.digest() == Grid(grid.codes.clone(), grid.scales, grid.least).digest()
    digest = GridDigest()
    for first in range(4):
        digest.add(grid.rows(first, first + 1))
    assert digest.digest() == grid.digest()


def test_codes_are_packed_in_pairs() -> None:
    codes = torch.randint(0, 16, (3, 8))
    assert torch.equal(Grid(pack4(codes), torch.ones(3, 1)).levels(), codes.to(torch.int8))


def test_numbers_are_kept_as_small_as_says_the_same() -> None:
    assert small(torch.tensor([0.5, 3.0])).dtype == torch.float16
    assert small(torch.tensor([0.1])).dtype == torch.float32


@pytest.mark.parametrize(
    "parts",
    [
        {"codes": torch.zeros(2, 8)},
        {"codes": torch.zeros(8, dtype=torch.int8)},
        {"scales": torch.ones(3, 1)},
        {"scales": torch.ones(2, 3)},
        {"scales": torch.ones(2, 0)},
        {"scales": torch.ones(2, 1, dtype=torch.int8)},
        {"least": torch.ones(2, 2)},
        {"table": tuple(range(16))},
        {"codes": torch.zeros(2, 8, dtype=torch.uint8), "table": (0.0,) * 16},
        {"codes": torch.zeros(2, 8, dtype=torch.uint8), "table": (float("nan"),) * 16},
        {"codes": torch.zeros(2, 8, dtype=torch.uint8), "table": (0.5,) * 16, "least": torch.ones(2, 1)},
        {"columns": torch.arange(7)},
        {"codes": torch.zeros(2, 8).to(FLOAT8), "least": torch.ones(2, 1)},
        {"units": torch.ones(2, 1).half()},
        {"scales": torch.ones(2, 2, dtype=torch.int8), "units": torch.ones(2, 3).half()},
        {"scales": torch.ones(2, 2, dtype=torch.int8), "units": torch.ones(2, 0).half()},
        {"scales": torch.ones(2, 2, dtype=torch.int8), "units": torch.ones(2).half()},
        {"scales": torch.ones(2, 2, dtype=torch.int8), "units": torch.ones(1, 1).half()},
        {"scales": torch.ones(2, 2, dtype=torch.int8), "units": torch.ones(2, 1)},
        {"scales": torch.ones(2, 2, dtype=torch.int8), "units": torch.ones(2, 1).half(), "least": torch.ones(2, 2)},
        {"least_units": torch.ones(2, 1).half()},
    ],
)
def test_what_does_not_fit_together_is_no_grid(parts: dict[str, torch.Tensor]) -> None:
    whole = {"codes": torch.zeros(2, 8, dtype=torch.int8), "scales": torch.ones(2, 1)}
    with pytest.raises(BadCheckpoint):
        Grid(**(whole | parts))  # type: ignore[arg-type]


def test_weights_on_different_grids_are_not_one_layer() -> None:
    with pytest.raises(BadCheckpoint, match="different grids"):
        stack([random_grid(2, 64), random_grid(2, 64, bits=8)])
    with pytest.raises(BadCheckpoint, match="different grids"):
        stack([random_grid(2, 256), random_grid(2, 256, dtype=torch.int8)])
