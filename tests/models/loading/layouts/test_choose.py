"""Which layouts are read, and which are refused, by name, from the configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from swarm.errors import UnsupportedModel
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.cost import describe
from swarm.models.loading.layouts.choose import dense_dtype, settings_of, unquantized, with_settings
from swarm.models.span.load import load_span
from swarm.types import Span
from tests.quantizing import LAYOUTS, MXFP4

PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    (method, {"quant_method": method})
    for method in ("aqlm", "quip", "hqq", "eetq", "vptq", "higgs", "spqr", "torchao", "quark", "modelopt", "bitnet")
] + [
    ("3 bits", {"quant_method": "gptq", "bits": 3}),
    ("2 bits", {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down.*": {"bits": 2}}}),
    ("marlin", {"quant_method": "gptq", "bits": 4, "is_marlin_format": True}),
    ("marlin", {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}),
    ("int16", {"quant_method": "gptq", "bits": 4, "pack_dtype": "int16"}),
    ("gemv", {"quant_method": "awq", "bits": 4, "version": "gemv"}),
    ("3 bits", {"quant_method": "awq", "bits": 3, "version": "GEMM"}),
    ("marlin-24", PACKED | {"format": "marlin-24"}),
    ("nvfp4", PACKED | {"format": "nvfp4-pack-quantized"}),
    ("sparse-24-bitmask", PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}),
    ("transform_config", PACKED | {"transform_config": {"config_groups": {"R1": {}}}}),
    ("3 bits", PACKED | {"config_groups": {"a": {"weights": {"num_bits": 3, "type": "int"}}}}),
    ("4 bits", PACKED | {"config_groups": {"a": {"weights": {"num_bits": 4, "type": "float"}}}}),
    ("auto_round:exllamav2", {"quant_method": "auto-round", "packing_format": "auto_round:exllamav2"}),
    ("auto-round", {"quant_method": "intel/auto-round"}),
    ("int3", {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "int3"}),
    ("weight_block_size", {"quant_method": "fp8", "weight_block_size": [128]}),
    ("damaged", {"quant_method": "gptq", "dynamic": 7}),
]


def told(folder: Path, quantization: dict[str, Any], without_tensors: bool = True) -> Path:
    """The checkpoint, quantized by what its configuration says alone."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    if without_tensors:
        (folder / "model.safetensors").unlink()
    return folder


@pytest.mark.parametrize(("named", "quantization"), REFUSED, ids=[f"{name}-{n}" for n, (name, _) in enumerate(REFUSED)])
def test_what_cannot_be_read_is_refused_by_name_before_any_tensor(
    save, named: str, quantization: dict[str, Any]
) -> None:
    folder = told(save("llama")[0], quantization)
    for open_it in (describe, lambda source: load_span(source, Span(0, 1), progress=False)):
        with pytest.raises(UnsupportedModel, match=named):
            open_it(folder)


def test_layers_that_are_turned_are_refused(save) -> None:
    folder = told(save("gpt2")[0], LAYOUTS["gptq"][0], without_tensors=False)
    with pytest.raises(UnsupportedModel, match="gpt2"):
        load_span(folder, Span(0, 1), progress=False)


def test_what_is_said_of_quantization_is_of_the_identity(save) -> None:
    folder, _ = save("llama")
    keys = {open_checkpoint(folder).key}
    for version in ("gptq", "gptq_v2"):
        keys.add(open_checkpoint(told(folder, LAYOUTS["gptq"][0] | {"checkpoint_format": version}, False)).key)
    assert len(keys) == 3


def test_a_configuration_of_the_callers_says_nothing_of_quantization(save) -> None:
    folder = told(save("llama")[0], MXFP4)
    checkpoint = open_checkpoint(folder)
    for config in (unquantized(checkpoint.config), AutoConfig.from_pretrained(folder)):
        config.quantization_config = {"quant_method": "other"}
        assert settings_of(checkpoint.with_config(config).config) == MXFP4
    assert settings_of(unquantized(checkpoint.config)) is None
    assert settings_of(checkpoint.config) == MXFP4
    assert settings_of(with_settings(checkpoint.config, None)) is None


@pytest.mark.parametrize("named", [None, "float8_e4m3fn", "int8", "nonsense"])
def test_numbers_off_any_grid_are_bfloat16_where_nothing_else_is_said(named: str | None) -> None:
    class Config:
        dtype = named

    assert str(dense_dtype(Config())) == "torch.bfloat16"
