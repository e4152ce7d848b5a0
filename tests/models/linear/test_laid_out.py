"""Linear layers in the processor's layout compute what they computed before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swarm.models.linear.laid_out import LaidOutLinear, laid_out_linear, use_laid_out, use_plain

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@needs_onednn
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.booleans())
def test_the_product_equals_the_plain_one(inputs: int, outputs: int, rows: int, bias: bool) -> None:
    torch.manual_seed(inputs)
    linear = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(2, rows, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(LaidOutLinear(linear)(x), linear(x), rtol=1e-4, atol=1e-5)


@needs_onednn
def test_only_plain_linear_layers_are_replaced() -> None:
    class Special(nn.Linear):
        """A layer with something of its own."""

    inner = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4))
    model = nn.Sequential(nn.Linear(8, 8), inner, Special(4, 4), nn.Linear(4, 4))
    x = torch.randn(3, 8)
    with torch.no_grad():
        before = model(x)
        assert use_laid_out(model) == 3
        assert [type(m) for m in (model[0], inner[1], model[2])] == [LaidOutLinear, LaidOutLinear, Special]
        torch.testing.assert_close(model(x), before)
        assert use_plain(model) == 3
        assert torch.equal(model(x), before)


@needs_onednn
def test_gradient_of_the_input_is_that_of_the_plain_layer() -> None:
    linear = nn.Linear(6, 5)
    x = torch.randn(2, 6, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    LaidOutLinear(linear)(x).square().sum().backward()
    linear(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@needs_onednn
def test_made_plain_again_in_inference_mode_gradients_go_through_it() -> None:
    model, rows = nn.Sequential(nn.Linear(8, 32, bias=False)), torch.randn(3, 8, requires_grad=True)
    right = model[0].weight.detach().sum(0)
    with torch.inference_mode():
        use_laid_out(model)
        use_plain(model)
    model(rows).sum().backward()
    torch.testing.assert_close(rows.grad, right.expand(3, -1))


def test_moved_to_another_dtype_it_is_plain_again() -> None:
    laid_out = nn.Sequential(LaidOutLinear(nn.Linear(6, 5)))
    x = torch.randn(2, 6)
    with torch.no_grad():
        before = laid_out(x)
        torch.testing.assert_close(x @ laid_out.state_dict()["0.weight"].T + laid_out[0].bias, before)
        laid_out.to(torch.float32)
        assert laid_out[0].is_laid_out
        laid_out.double()
        assert laid_out[0].weight.dtype == torch.float64
        torch.testing.assert_close(laid_out(x.double()).float(), before)


def test_what_cannot_be_laid_out_stays() -> None:
    model = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.Linear(4, 4, device="meta"))
    assert use_laid_out(model) == 0
    assert all(type(child) is nn.Linear for child in model)


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_knows_the_shape_and_dtype_that_architectures_ask_for(dtype: torch.dtype) -> None:
    laid_out = laid_out_linear(nn.Linear(6, 5, bias=False, dtype=dtype))
    if laid_out is None:
        pytest.skip(f"this processor has no such layout of {dtype}")
    assert laid_out.weight.dtype is dtype
    assert tuple(laid_out.weight.shape) == (5, 6)
    assert "in_features=6, out_features=5, bias=False" in repr(laid_out)
