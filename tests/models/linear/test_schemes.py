"""Weights put on a grid: how near they stay, whatever they are read in, and that worse is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.config import INT4, INT8
from swarm.errors import UnsupportedModel
from swarm.models.linear import schemes
from swarm.models.linear.schemes import BITS, LIMITS, can_quantize, quantize

ROUNDED = {INT8: 0.01, INT4: 0.11}
"""Of normal numbers."""


@pytest.mark.parametrize("name", [INT8, INT4])
@given(outputs=st.integers(1, 40), groups=st.integers(1, 6), size=st.floats(1e-4, 1e3), seed=st.integers(0, 99))
def test_weights_stay_near(name: str, outputs: int, groups: int, size: float, seed: int) -> None:
    weight = torch.randn(outputs, 32 * groups, generator=torch.Generator().manual_seed(seed)) * size
    grid = quantize(weight, name)
    assert (grid.dense() - weight).norm() <= ROUNDED[name] * 1.3 * weight.norm()
    assert grid.nbytes * 8 == BITS[name] * weight.numel()


@pytest.mark.parametrize("name", [INT8, INT4])
def test_the_numbers_do_not_depend_on_how_they_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 96).bfloat16()
    whole = quantize(weight, name)
    monkeypatch.setattr(schemes, "CHUNK", 96 * 7)
    assert quantize(weight, name).digest() == whole.digest()
    assert quantize(weight.float(), name).digest() == whole.digest()


def test_what_is_on_such_a_grid_stays_where_it_is() -> None:
    weight = torch.randn(8, 64)
    for name in (INT8, INT4):
        once = quantize(weight, name).dense()
        assert (quantize(once, name).dense() - once).abs().max() <= 2e-3 * once.abs().max()


@pytest.mark.parametrize("name", [INT8, INT4])
def test_groups_of_one_value_and_of_none(name: str) -> None:
    weight = torch.cat([torch.zeros(2, 32), torch.full((2, 32), 0.25), torch.full((2, 32), -3.0)])
    assert (quantize(weight, name).dense() - weight).abs().max() <= 0.01


@pytest.mark.parametrize("name", [INT8, INT4])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_is_not_finite_is_refused(name: str, value: float) -> None:
    weight = torch.randn(4, 64)
    weight[1, 5] = value
    with pytest.raises(UnsupportedModel, match=f"4 x 64 numbers is not finite.*{name}"):
        quantize(weight, name)


def test_the_limits_separate_what_is_healthy_from_what_is_not() -> None:
    """Eight and four bits are within, three bits and scales of the wrong row are not."""
    weight = torch.randn(64, 256) * torch.rand(64, 1)
    eight, four = (quantize(weight, name) for name in (INT8, INT4))
    three = weight.view(64, -1, 32)
    low, high = three.amin(-1, keepdim=True), three.amax(-1, keepdim=True)
    three = ((three - low) / (high - low) * 7).round() / 7 * (high - low) + low

    def off(numbers: torch.Tensor) -> float:
        return float((numbers - weight).norm() / weight.norm())

    assert off(eight.dense()) < LIMITS[INT8] < off(four.dense()) < LIMITS[INT4] < off(three.view_as(weight))
    for grid, name in ((eight, INT8), (four, INT4)):
        shifted = type(grid)(grid.codes, grid.scales.roll(1, 0), grid.least)
        assert off(shifted.dense()) > LIMITS[name]


@pytest.mark.parametrize("name", [INT8, INT4])
@given(size=st.floats(1e-9, 1e4), seed=st.integers(0, 999))
def test_the_kernel_gives_the_same_numbers(name: str, size: float, seed: int) -> None:
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(seed)) * size
    weight[1] = 0.0
    weight[2, :40] = weight[2, 0]
    weight[3] = weight[3].round() * size
    ours, errors = schemes.on_grid(weight, name)
    plain, right = schemes.on_grid(weight, name, compiled=False)
    assert ours.digest() == plain.digest()
    assert torch.allclose(errors, right, rtol=0, atol=0, equal_nan=True)


def test_columns_divide_into_groups_or_not() -> None:
    assert can_quantize(4096) and not can_quantize(40)
