"""Rows of many callers are computed together, and each caller gets what it would have got alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from swarm.models.linear.laid_out import LaidOutLinear
from swarm.models.linear.shared import FEW, SharedLinear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")

Mode = Callable[[], contextlib.AbstractContextManager[object]]


class Gated(SharedLinear):
    """Notes how many rows each product has; the first waits until the gate is opened."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.rows: list[int] = []
        self.entered, self.gate = threading.Event(), threading.Event()

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(rows))
        self.entered.set()
        assert self.gate.wait(30.0)
        return super().product(rows)


@contextlib.contextmanager
def waiting(layer: Gated, calls: list[Callable[[], torch.Tensor]]) -> Iterator[list[torch.Tensor]]:
    """What the calls give, of which the first holds the layer until all others wait for it."""
    outputs: list[torch.Tensor] = []
    with ThreadPoolExecutor(len(calls)) as threads:
        first = threads.submit(calls[0])
        assert layer.entered.wait(30.0)
        rest = [threads.submit(call) for call in calls[1:]]
        while len(layer._waiting) < len(rest):
            pass
        layer.gate.set()
        outputs += [first.result(), *(each.result() for each in rest)]
    yield outputs


def test_callers_in_many_threads_each_get_their_own_rows() -> None:
    shared = SharedLinear(nn.Linear(16, 8))
    inputs = [torch.randn(1, 1 + i % 3, 16) for i in range(64)]
    together = threading.Barrier(8)

    @torch.no_grad()
    def call(first: int) -> list[torch.Tensor]:
        together.wait(30.0)
        return [shared(x) for x in inputs[first::8]]

    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(call, range(8)))
    with torch.no_grad():
        for first, own in enumerate(outputs):
            for x, y in zip(inputs[first::8], own, strict=True):
                torch.testing.assert_close(y, LaidOutLinear.forward(shared, x))


@pytest.mark.parametrize("order", [(torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)])
def test_whoever_computes_each_may_change_what_it_gets(order: tuple[Mode, Mode]) -> None:
    """In one row come rows of callers in inference mode and of others, in whichever order."""
    layer, inputs = Gated(nn.Linear(16, 8)), [torch.randn(1, 2, 16) for _ in range(5)]
    modes = [torch.no_grad, *order, *order]

    def call(x: torch.Tensor, mode: Mode) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with mode():
                y = layer(x)
            with torch.no_grad():
                return y.mul_(2.0)

        return run

    calls = [call(x, mode) for x, mode in zip(inputs, modes, strict=True)]
    with waiting(layer, calls) as outputs:
        assert layer.rows == [2, 8], "those who waited were computed together"
        with torch.no_grad():
            for x, y in zip(inputs, outputs, strict=True):
                torch.testing.assert_close(y, 2.0 * LaidOutLinear.forward(layer, x))


def test_who_wants_a_gradient_computes_alone() -> None:
    layer = SharedLinear(nn.Linear(6, 5))
    x, scale = torch.randn(2, 6, requires_grad=True), torch.ones(5, requires_grad=True)
    (layer(x) * scale).sum().backward()
    (layer(x.detach()) * scale).sum().backward()
    with torch.no_grad():
        expected = layer(x)
    torch.testing.assert_close(scale.grad, 2 * expected.sum(dim=0))
    assert x.grad is not None


@torch.no_grad()
def test_bad_rows_raise_where_they_come_from_and_nowhere_else() -> None:
    layer = SharedLinear(nn.Linear(16, 8))
    for bad in (torch.randn(2, 5), torch.randn(2, 16, dtype=torch.float64)):
        with pytest.raises(RuntimeError):
            layer(bad)
        assert layer(torch.randn(2, 16)).shape == (2, 8)


@torch.no_grad()
def test_a_product_that_fails_in_company_is_computed_alone() -> None:
    class Weak(Gated):
        """Cannot compute more than three rows at once."""

        def product(self, rows: torch.Tensor) -> torch.Tensor:
            output = super().product(rows)
            if len(rows) > 3:
                raise RuntimeError("out of memory")
            return output

    layer, inputs = Weak(nn.Linear(16, 8)), [torch.randn(2, 16) for _ in range(3)]
    calls = [torch.no_grad()(lambda x=x: layer(x)) for x in inputs]
    with waiting(layer, calls) as outputs:
        assert layer.rows == [2, 4, 2, 2]
        for x, y in zip(inputs, outputs, strict=True):
            torch.testing.assert_close(y, nn.functional.linear(x, layer.dense(), layer.bias))


@torch.no_grad()
def test_callers_with_many_rows_do_not_wait_for_others() -> None:
    layer = Gated(nn.Linear(16, 8))
    layer.gate.set()
    assert layer(torch.randn(FEW + 1, 16)).shape == (FEW + 1, 8)
    assert layer(torch.randn(0, 16)).shape == (0, 8)
