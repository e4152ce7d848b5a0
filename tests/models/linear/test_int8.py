"""8-bit linear layers: how far from the plain ones, and that nobody's numbers depend on others in the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from swarm.errors import UnsupportedModel
from swarm.jobs import compute
from swarm.models.linear.int8 import INT8, Int8Linear, use_int8
from swarm.models.span.load import load_span
from swarm.types import Segment, Span
from tests.checkpoints import prompt, reference

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.onednn, "qlinear_pointwise"), reason="this torch has no int8")


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 200), st.integers(1, 60), st.integers(1, 20), st.booleans(), st.floats(1e-3, 1e3))
def test_products_are_within_a_few_hundredths(inputs: int, outputs: int, rows: int, bias: bool, size: float) -> None:
    torch.manual_seed(inputs)
    linear = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(2, rows, inputs) * size
    with torch.inference_mode():
        ours, plain = Int8Linear(linear)(x), linear(x)
        assert ours.shape == plain.shape
        assert (ours - plain).norm() <= 0.03 * plain.norm() + 1e-6


def test_a_position_gets_the_same_whoever_shares_the_batch() -> None:
    layer = Int8Linear(nn.Linear(64, 32))
    one, loud = torch.randn(1, 64), torch.randn(3, 64) * 1e4
    with torch.inference_mode():
        assert torch.equal(layer(torch.cat([one, loud]))[:1], layer(one))
        assert torch.equal(layer(torch.zeros(1, 64)), layer.bias.unsqueeze(0))


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(UnsupportedModel, match="float64"):
        use_int8(nn.Sequential(nn.Linear(4, 4, dtype=torch.float64)))
    with pytest.raises(UnsupportedModel, match="no plain linear"):
        use_int8(nn.Sequential(nn.LayerNorm(4)))


@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_a_span_computes_with_them_what_its_layers_compute_with_them(checkpoints: Any, kind: str) -> None:
    """The oracle is plain transformers with the same layers."""
    folder: Path = checkpoints(kind)
    whole = reference(folder)
    plain = hidden_states(whole)
    use_int8(whole)
    expected = hidden_states(whole)
    span = load_span(folder, Span(0, 6), quantization=INT8, progress=False)
    assert span.quantization == INT8
    count = plain[0].shape[0]
    output = compute(span, Span(0, 6), [Segment((b"a", 0), 0, count)], plain[0].numpy().tobytes())
    got = torch.frombuffer(bytearray(output), dtype=torch.float32).view(count, -1)
    assert (got - expected[1]).norm() < 0.02 * expected[1].norm()
    assert 0 < (got - plain[1]).norm() < 0.1 * plain[1].norm()


def hidden_states(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the first block of a whole model, and what the last gives."""
    seen: list[torch.Tensor] = []
    layers = model.model.layers if hasattr(model, "model") else model.transformer.h
    first = layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0][0]))
    last = layers[-1].register_forward_hook(
        lambda module, args, output: seen.append(output[0][0] if isinstance(output, tuple) else output[0])
    )
    with torch.inference_mode():
        model(prompt(9))
    first.remove()
    last.remove()
    return seen[0], seen[1]
