"""What llama.cpp did to the experts of gpt-oss, undone; transformers' own processor is of names that no file has.

A file has gate and up of all experts apart, `[experts, out, in]`, and in the model each column of the one is followed
by that of the other, `[experts, in, 2 out]` (`GptOssModel` in llama.cpp's convert_hf_to_gguf.py).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from transformers.modeling_gguf_pytorch_utils import GGUFTensor, TensorProcessor

EXPERTS = re.compile(r"(?:model\.)?layers\.(?P<block>\d+)\.mlp\.experts\.(?P<which>gate_up|down)_proj(?P<bias>_bias)?")
STORED = re.compile(r"blk\.\d+\.ffn_(?P<which>gate|up|down)_exps\.(?P<kind>weight|bias)")


class GptOssProcessor(TensorProcessor):
    """As transformers' processors of other architectures."""

    def perform_fallback_tensor_mapping(
        self, gguf_to_hf_name_map: dict[str, str], suffix: str, qual_name: str, hf_name: str
    ) -> None:
        """Tell the file's names of the tensors of experts."""
        match = EXPERTS.fullmatch(hf_name)
        if match is not None:
            kind = "bias" if match["bias"] else "weight"
            for which in match["which"].split("_"):
                gguf_to_hf_name_map[f"blk.{match['block']}.ffn_{which}_exps.{kind}"] = qual_name + hf_name

    def process(self, weights: Any, name: str, **how: Any) -> GGUFTensor:
        """Numbers as the model has them."""
        match = STORED.fullmatch(name)
        if match is None:
            return GGUFTensor(weights, name, {})
        columns = np.swapaxes(weights, 1, 2) if match["kind"] == "weight" else weights
        if match["which"] == "down":
            return GGUFTensor(columns, name, {})
        names, whole = how["tensor_key_mapping"], how["parsed_parameters"]["tensors"]
        place, numbers = names[name], torch.from_numpy(np.ascontiguousarray(columns))
        if place not in whole:
            whole[place] = numbers.new_zeros(*numbers.shape[:-1], 2 * numbers.shape[-1])
        whole[place][..., int(match["which"] == "up") :: 2] = numbers
        return GGUFTensor(weights, None, {})  # type: ignore[arg-type]
