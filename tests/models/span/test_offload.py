"""Blocks that are in main memory until they are computed give what they give where they are, with a stand-in for the
device: copies that are counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from swarm.jobs import Backward, Forward
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.models.span.offload import Offload, is_offloaded
from swarm.types import Segment, Span

SPAN = Span(1, 4)


@dataclass
class Device:
    """A stand-in: `moved`: the bytes that were taken there."""

    moved: list[int] = field(default_factory=list)

    def offload(self, count: int) -> Offload:
        return Offload(count, "cpu", torch.Tensor.clone, self.move)

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        self.moved.append(tensor.nbytes)
        return tensor.clone()


def steps(span: SpanModel) -> torch.Tensor:
    """A prompt and a token behind it, and another sequence beside."""
    hidden = torch.randn(9, span.hidden_size, generator=torch.Generator().manual_seed(0))
    one, other = (b"a", 0), (b"b", 0)
    first = span.run(Forward(SPAN, [Segment(one, 0, 5), Segment(other, 0, 2)], hidden[:7]))
    return torch.cat([first, span.run(Forward(SPAN, [Segment(one, 5, 1), Segment(other, 2, 1)], hidden[7:]))])


def held(block: nn.Module) -> int:
    """Bytes of the device that a block takes between two passes."""
    tensors = [*block.parameters(), *block.buffers()]
    tensors += [each for part in block.modules() if isinstance(part, QuantizedLinear) for each in grid_of(part)]
    return sum(each.untyped_storage().nbytes() for each in tensors)


def grid_of(layer: QuantizedLinear) -> list[torch.Tensor]:
    return list(layer.grid.parts().values())


@pytest.mark.parametrize(
    ("kind", "quantization"), [("llama", "none"), ("llama", "int8"), ("mixtral", "int4"), ("lfm2_moe", "none")]
)
def test_they_compute_the_same_and_are_gone_after(checkpoints: Any, kind: str, quantization: str) -> None:
    device, how = Device(), {"quantization": quantization, "dtype": "float32", "progress": False}
    whole = load_span(checkpoints(kind), SPAN, **how)
    span = load_span(checkpoints(kind), SPAN, offload=device.offload(2), **how)
    assert span.fingerprints == whole.fingerprints and span.proven == whole.proven
    device.moved.clear()
    got, right = steps(span), steps(whole)
    near = 1e-5 if quantization == "none" else 1e-3  # a CPU's kernels round rows to 16 bits
    assert torch.allclose(got, right, atol=near * float(right.abs().max()))
    assert device.moved
    assert [is_offloaded(block) for block in span._model.blocks] == [False, True, True]
    assert all(held(block) < 1000 for block in span._model.blocks[1:])


def test_a_block_that_breaks_is_gone_too_and_gradients_come_through(checkpoints: Any) -> None:
    how: dict[str, Any] = {"dtype": "float32", "progress": False}
    whole = load_span(checkpoints("llama"), SPAN, **how)
    span = load_span(checkpoints("llama"), SPAN, offload=Device().offload(1), **how)
    inputs, gradients = torch.randn(2, 5, span.hidden_size)
    job = Backward(SPAN, [5], inputs, gradients)
    assert torch.allclose(span.run(job), whole.run(job), atol=1e-5)
    with pytest.raises(RuntimeError):
        span._model.blocks[-1](torch.randn(1, 2, 3))
    assert held(span._model.blocks[-1]) < 1000


def test_who_computes_with_what_is_not_there_gets_no_numbers(checkpoints: Any) -> None:
    span = load_span(checkpoints("llama"), SPAN, dtype="float32", progress=False, offload=Device().offload(9))
    first, *others = span._model.blocks
    assert not is_offloaded(first) and all(map(is_offloaded, others))
    layer: Any = others[-1].mlp
    assert layer(torch.randn(1, span.hidden_size)).isnan().all()
