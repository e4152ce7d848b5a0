"""float32 weights for the compiled kernel: the products of the plain layer, a row's own whatever shares the call."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.models.linear import panels as module
from swarm.models.linear.compiled import Kernel, kernel
from swarm.models.linear.panels import Panels, panels


@pytest.fixture(scope="module")
def built() -> Iterator[Kernel]:
    found = kernel()
    if found is None or not found.float_panel:
        pytest.skip("there is no kernel for float32 here")
    yield found


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 600), st.integers(1, 20), st.booleans(), st.integers(1, 3))
def test_a_row_has_its_own_product_whatever_shares_the_call(
    built: Kernel, outputs: int, inputs: int, rows: int, with_bias: bool, threads: int
) -> None:
    torch.manual_seed(inputs)
    weight, x = torch.randn(outputs, inputs), torch.randn(rows, inputs)
    bias = torch.randn(outputs) if with_bias else None
    laid, before = Panels(weight, built), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = laid.multiply(x, bias)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, torch.nn.functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(laid.multiply(x[row : row + 1], bias)[0], got[row]) for row in range(rows))
    assert torch.equal(laid.dense(), weight)
    assert torch.equal(copy.deepcopy(laid).multiply(x, bias), got)


def test_many_rows_pass_in_parts(built: Kernel) -> None:
    laid, x = Panels(torch.randn(33, 40), built), torch.randn(500, 40)
    assert torch.equal(laid.multiply(x)[480:], laid.multiply(x[480:]))
    assert laid.multiply(x[:0]).shape == (0, 33)


def test_other_dtypes_and_machines_without_it_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert panels(torch.randn(4, 4).bfloat16()) is None
    monkeypatch.setattr(module, "_kernel", lambda: None)
    assert panels(torch.randn(4, 4)) is None
