"""Weights are, bit for bit, those that transformers gets from the same stored tensors."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from swarm.models.linear.grid import as_dense
from swarm.models.loading.layouts.choose import layout_of
from tests.models.loading.layouts.test_layouts import Config
from tests.quantizing import MXFP4, Held, floats, microscaled


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("block", [(16, 32), (1, 32), (48, 96), (1, 96)])
def test_fp8(block: tuple[int, int], dtype: torch.dtype) -> None:
    stored, _ = floats("a", torch.randn(48, 96), block)
    config = Config({"quant_method": "fp8", "weight_block_size": list(block)})
    config.dtype = dtype
    right = Fp8Dequantize(None)._dequantize_one(stored["a.weight"], stored["a.weight_scale_inv"], dtype)
    assert torch.equal(as_dense(layout_of(config, Held(stored)).read("a.weight")).to(dtype), right)


@pytest.mark.parametrize("scale", [torch.uint8, torch.float8_e8m0fnu])
def test_numbers_of_four_bits_with_powers_of_two(scale: torch.dtype) -> None:
    """As DeepSeek V4 stores its experts, in a checkpoint whose other layers are FP8."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(-128, 128, (48, 48), dtype=torch.int8, generator=generator)
    powers = torch.randint(100, 140, (48, 3), dtype=torch.uint8, generator=generator)
    right = Fp8Dequantize(None)._dequantize_one(pairs, powers, torch.bfloat16)
    tensors = layout_of(Config({"quant_method": "fp8"}), Held({"a.weight": pairs, "a.scale": powers.view(scale)}))
    assert tensors.shape("a.weight") == (48, 96)
    assert torch.equal(as_dense(tensors.read("a.weight")), right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_in_fp8_that_are_one_tensor(dtype: torch.dtype) -> None:
    experts = [floats("a", torch.randn(32, 64), (16, 32))[0] for _ in range(3)]
    weight, scale = (torch.stack([each[f"a.{part}"] for each in experts]) for part in ("weight", "weight_scale_inv"))
    config = Config({"quant_method": "fp8", "weight_block_size": [16, 32]})
    config.dtype = dtype
    tensors = layout_of(config, Held({"experts.up": weight, "experts.up_scale_inv": scale}))
    right = Fp8Dequantize(None)._dequantize_one(weight, scale, dtype)
    assert torch.equal(as_dense(tensors.read("experts.up")), right)
    assert torch.equal(as_dense(tensors.read("experts.up", slice(1, 2))), right[1:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mxfp4(dtype: torch.dtype) -> None:
    stored, _ = microscaled("a", torch.randn(3, 64, 48))
    config = Config(MXFP4)
    config.dtype = dtype
    right = convert_moe_packed_tensors(stored["a_blocks"], stored["a_scales"], dtype=dtype)
    assert torch.equal(as_dense(layout_of(config, Held(stored)).read("a")), right)
