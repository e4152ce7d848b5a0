"""Layers on a grid: what they compute, the same for a row whoever shares the call and whatever computes it."""

from __future__ import annotations

import copy
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.errors import UnsupportedModel
from swarm.models.linear import compiled, packed, quantized, schemes
from swarm.models.linear.compiled import KINDS, Kernel, kernel
from swarm.models.linear.grid import SIGNED, Grid
from swarm.models.linear.packed import Packed
from swarm.models.linear.panels import Panels
from swarm.models.linear.quantized import QuantizedLinear
from tests import quantizing
from tests.models.linear.test_grid import MXFP4, random_grid

NF4 = tuple(torch.tensor(quantizing.NF4).tolist())
FP4 = tuple(level / 6 for level in (*quantizing.FP4, *(-level for level in quantizing.FP4)))


def built() -> Kernel:
    """The kernel of this machine."""
    found = kernel()
    if found is None:
        pytest.skip("there is no C compiler")
    return found


def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where there is no compiler."""
    for module in (packed, quantized, schemes):
        monkeypatch.setattr(module, "kernel", lambda: None)


def of_columns(dtypes: list[torch.dtype], columns: int) -> st.SearchStrategy[Grid]:
    """Grids whose rows have a multiple of so many columns."""
    return st.builds(
        random_grid,
        outputs=st.integers(1, 50),
        inputs=st.integers(1, 5).map(lambda groups: columns * groups),
        bits=st.sampled_from([4, 8]),
        group=st.sampled_from([16, 32, 64]),
        least=st.booleans(),
        dtype=st.sampled_from(dtypes),
        seed=st.integers(0, 1000),
    )


floats = st.builds(
    random_grid,
    outputs=st.integers(1, 50),
    inputs=st.integers(1, 5).map(lambda groups: 64 * groups),
    bits=st.just(8),
    group=st.sampled_from([16, 64]),
    floats=st.just(True),
    seed=st.integers(0, 1000),
)
grids = of_columns([torch.float16, torch.float32], 64) | of_columns([torch.int8], 256) | floats


@settings(max_examples=60)
@given(grids, st.integers(1, 40), st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_every_kernel_gives_the_same_bits_which_are_those_of_the_numbers(
    grid: Grid, rows: int, seed: int, size: float
) -> None:
    laid, best = Packed([grid], grid.out_features), built()
    x = torch.randn(rows, grid.in_features, generator=torch.Generator().manual_seed(seed)) * size
    x[:, ::7] *= 30
    right = x.double() @ grid.dense().double().T
    got = [laid.multiply(best, x, kind) for kind in range(best.best + 1)]
    # The sums may cancel: what is lost is a share of what was summed.
    summed = x.double().norm(dim=1, keepdim=True) * grid.dense().double().norm(dim=1)
    assert ((got[0] - right).abs() <= 2e-4 * summed).all()
    assert all(torch.equal(each, got[0]) for each in got[1:]), KINDS[best.best]
    assert all(torch.equal(laid.multiply(best, x[row : row + 1])[0], got[0][row]) for row in range(rows))


AVX512 = ("AVX512F", "AVX512BW", "AVX512VNNI")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    """All kernels, with the instructions that this processor may lack in plain C."""
    sources = [Path(compiled.__file__).parents[1] / name for name in compiled.SOURCES]
    path = tmp_path_factory.mktemp("kernel") / "kernel.so"
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None or platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("they are compiled for this system only")
    has = [f"-D__{name}__=1" for name in ("AVX2", "FMA", "F16C", *AVX512, "AMX_INT8", "AMX_TILE")]
    flags = ["-O2", "-ffp-contract=off", "-shared", "-fPIC", f"-I{Path(__file__).with_name('emulated')}"]
    subprocess.run([compiler, *flags, *has, *map(str, sources), "-o", str(path), "-lm"], check=True, timeout=120)
    return Kernel(path)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(grids, st.sampled_from([None, SIGNED, MXFP4]), st.integers(1, 40), st.integers(0, 1000))
def test_the_kernels_of_other_processors_give_the_same_bits(
    emulated: Kernel, grid: Grid, table: tuple[int, ...] | None, rows: int, seed: int
) -> None:
    grid = dataclasses.replace(grid, table=table if grid.bits == 4 else None)
    laid = Packed([grid], grid.out_features)
    x = torch.randn(rows, grid.in_features, generator=torch.Generator().manual_seed(seed))
    got = [laid.multiply(emulated, x, kind) for kind in range(len(KINDS))]
    assert all(torch.equal(each, got[0]) for each in (*got, laid.multiply(built(), x)))


@settings(max_examples=10)
@given(st.integers(1, 70), st.integers(1, 300), st.integers(1, 20))
def test_float32_products_of_other_processors_are_the_same_bits(
    emulated: Kernel, outputs: int, inputs: int, rows: int
) -> None:
    if not built().float_panel:
        pytest.skip("this processor has no kernel for float32")
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    assert torch.equal(Panels(weight, emulated).multiply(x), Panels(weight, built()).multiply(x))


@given(grids, st.sampled_from([None, SIGNED, MXFP4]))
def test_what_is_laid_out_is_the_grid(grid: Grid, table: tuple[int, ...] | None) -> None:
    grid = dataclasses.replace(grid, table=table if grid.bits == 4 else None)
    laid = Packed([grid], grid.out_features)
    assert torch.equal(laid.grid().dense(), grid.dense())
    assert laid.grid().digest() == grid.digest()
    assert laid.nbytes <= -(-grid.out_features // 32) * 32 / grid.out_features * grid.nbytes + 1


@pytest.mark.parametrize("table", [NF4, FP4])
def test_levels_that_are_floats_are_multiplied_nearly_as_such(table: tuple[float, ...]) -> None:
    grid = random_grid(70, 128, group=64, table=table)
    laid, best = Packed([grid], 70), built()
    x = torch.randn(600, 128, generator=torch.Generator().manual_seed(0))
    got, right = [laid.multiply(best, x, kind) for kind in range(best.best + 1)], x.double() @ grid.dense().double().T
    assert float((got[0] - right).norm()) < 1e-4 * float(right.norm())
    assert all(torch.equal(each, got[0]) for each in got)
    assert torch.equal(laid.multiply(best, x[7:8])[0], got[0][7])
    assert laid.grid().digest() == grid.digest()
    assert torch.equal(copy.deepcopy(laid).multiply(best, x), got[0])


@pytest.mark.parametrize("table", [None, SIGNED, MXFP4])
@pytest.mark.parametrize("with_kernel", [True, False])
def test_a_layer_computes_its_numbers(
    table: tuple[int, ...] | None, with_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_kernel:
        without_kernel(monkeypatch)
    plain = random_grid(70, 96, least=True, table=table)
    grid, bias = dataclasses.replace(plain, columns=torch.randperm(96)), torch.randn(70)
    layer = QuantizedLinear(grid, bias).checked()
    x = torch.randn(2, 3, 96)
    with torch.inference_mode():
        assert torch.allclose(layer(x), torch.nn.functional.linear(x, grid.dense(), bias), atol=1e-3)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
        assert layer(torch.empty(0, 96)).shape == (0, 70)
    assert torch.equal(layer.grid.dense(), grid.dense())
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.untyped_storage().nbytes()) == (
        (70, 96),
        bias.dtype,
        4,
    )


def test_groups_without_a_kernel_are_computed_by_their_numbers() -> None:
    grid = random_grid(9, 48, bits=8, group=8)
    x = torch.randn(4, 48)
    assert torch.allclose(QuantizedLinear(grid).checked()(x), x @ grid.dense().T, atol=1e-5)


def test_groups_of_16_need_no_multiple_of_32_columns() -> None:
    grid = random_grid(9, 48, bits=4, group=16)
    x = torch.randn(20, 48)
    with torch.inference_mode():
        assert torch.allclose(QuantizedLinear(grid).checked()(x), x @ grid.dense().T, atol=1e-3)


def test_rows_that_are_no_numbers_harm_nobody_else() -> None:
    layer = QuantizedLinear(random_grid(20, 64))
    x = torch.randn(40, 64)
    alone = layer(x)
    x[3, 5], x[7, 40], x[9], x[11] = float("nan"), float("inf"), 0.0, 1e-40
    got = layer(x)
    assert got[3].isnan().all() and got[7].isnan().all()
    assert not got[9].any() and not got[11].any()
    others = [row for row in range(40) if row not in (3, 7, 9, 11)]
    assert torch.equal(got[others], alone[others])


@pytest.mark.parametrize("with_kernel", [True, False])
def test_gradients_are_those_of_the_numbers(with_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_kernel:
        without_kernel(monkeypatch)
    grid = random_grid(30, 64, least=True)
    x = torch.randn(5, 64, requires_grad=True)
    (QuantizedLinear(grid)(x) ** 2).sum().backward()
    other = x.detach().clone().requires_grad_()
    ((other @ grid.dense().T) ** 2).sum().backward()
    assert x.grad is not None and other.grad is not None
    assert torch.allclose(x.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_a_layer_that_is_moved_keeps_its_numbers() -> None:
    grid = random_grid(20, 64, least=True)
    layer = QuantizedLinear(grid, torch.ones(20))
    assert copy.deepcopy(layer).to(torch.bfloat16).grid.digest() == grid.digest()
    assert layer.to("meta").weight.device.type == "meta"


def test_a_kernel_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantizedLinear(random_grid(20, 64))
    monkeypatch.setattr(Packed, "multiply", lambda self, kernel, rows: torch.zeros(len(rows), 20))
    if isinstance(layer._weight, Packed):
        with pytest.raises(UnsupportedModel, match="kernel"):
            layer.checked()


def test_without_a_compiler_the_log_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "cache_dir", lambda: tmp_path)
    for compiler in ("/nowhere/cc", "false"):
        monkeypatch.setenv("CC", compiler)
        assert compiled.kernel.__wrapped__() is None
        assert "install a C compiler" in caplog.text
        caplog.clear()
