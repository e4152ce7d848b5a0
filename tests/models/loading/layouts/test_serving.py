"""A quantized checkpoint is served as plain transformers computes with the numbers that it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm.models.ends.load import load_ends
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.loading.cost import describe
from swarm.models.span.load import load_span
from swarm.types import SequenceKey, Span
from tests.checkpoints import Served, prompt, save, settled
from tests.models.span.test_model import boundaries, feed
from tests.quantizing import LAYOUTS, ON_GRID, quantize

SEQUENCE: SequenceKey = (b"session a", 1)
KINDS = [
    *((name, "llama") for name in LAYOUTS),
    ("mxfp4", "gpt_oss"),
    ("gptq-ordered", "mixtral"),
    ("fp8", "qwen3_moe"),
]


@pytest.mark.parametrize(("layout", "model_type"), KINDS)
def test_a_span_computes_with_the_numbers_that_are_stored(tmp_path: Path, layout: str, model_type: str) -> None:
    quantized, plain = quantize(save(tmp_path / "model", model_type), layout)
    states = boundaries(AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval(), 9)
    span = load_span(quantized, Span(1, 4), dtype="float32", progress=False)
    got = feed(span, [(SEQUENCE, 0, states[1])])
    # The kernel for grids rounds rows to 16 bits.
    near = 1e-3 if layout in ON_GRID else 1e-4
    assert torch.allclose(got, states[4], rtol=near, atol=near * float(states[4].abs().max()))
    layers = [
        module for block in span._model.blocks for module in block.modules() if isinstance(module, QuantizedLinear)
    ]
    assert bool(layers) == (layout in (*ON_GRID, "mxfp4"))


@pytest.mark.parametrize("layout", ["gptq", "awq", "packed-4", "fp8", "nf4-nested"])
def test_both_ends_of_it_are_there(tmp_path: Path, layout: str) -> None:
    quantized, plain = quantize(save(tmp_path / "model", "llama"), layout)
    whole = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32)
    model, _ = load_ends(quantized, dtype="float32", local_blocks=Span(0, 1), progress=False)
    expected: dict[str, Any] = whole.state_dict()
    for name, tensor in model.state_dict().items():
        if ".layers." not in name:
            assert torch.equal(tensor, expected[name]), name
    assert not hasattr(model.config, "quantization_config")


@pytest.mark.parametrize(("layout", "model_type"), [("gptq-ordered", "llama"), ("fp8", "llama"), ("mxfp4", "gpt_oss")])
def test_a_swarm_of_it_says_what_transformers_says(tmp_path: Path, layout: str, model_type: str) -> None:
    quantized, plain = quantize(save(tmp_path / "model", model_type), layout)
    whole = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    inputs, text = settled(whole, lambda seed: {"input_ids": prompt(7, seed)}, 10)
    served = Served(quantized, [Span(0, 2), Span(2, 6)], quantization="file")
    try:
        assert torch.equal(served.model().generate(**inputs, do_sample=False, max_new_tokens=10), text)
    finally:
        served.close()


def test_what_it_costs_is_what_is_stored(tmp_path: Path) -> None:
    quantized, _ = quantize(save(tmp_path / "model", "llama"), "packed-4")
    found, plain = describe(quantized), describe(tmp_path / "model", dtype="float32")
    assert found.quantization == "file"
    assert 0.12 < sum(found.weight_bytes) / sum(plain.weight_bytes) < 0.2
