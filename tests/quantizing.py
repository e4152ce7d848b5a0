"""Checkpoints as authors quantize them: each layout written down from its documentation, level by level.

A writer takes the name of a layer and its weight, and gives the stored tensors and the numbers that they stand for,
float32, by arithmetic of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Writer = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]
GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Appendix E of the QLoRA paper, https://arxiv.org/abs/2305.14314."""
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Held:
    """Stored tensors in memory, read as those of a file are."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.reads: list[str] = []

    def names(self) -> Collection[str]:
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def nbytes(self, name: str) -> int:
        return self.tensors[name].nbytes

    def grid_nbytes(self, name: str) -> int:
        return self.nbytes(name)

    def on_grid(self, name: str) -> bool:
        return False

    def by_row(self, name: str) -> bool:
        return True

    def experts(self, name: str, some: range | None = None) -> None:
        return None

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        self.reads.append(name)
        whole = self.tensors[name]
        return whole.clone() if rows is None or not whole.dim() else whole[rows].clone()


def pack(levels: torch.Tensor, bits: int) -> torch.Tensor:
    """Levels `[rows, n]` → int32 `[rows, n · bits / 32]`, the first in the lowest bits."""
    per = 32 // bits
    lanes = levels.numpy().astype(np.uint64).reshape(len(levels), -1, per)
    words = sum(lanes[:, :, lane] << np.uint64(bits * lane) for lane in range(per))
    return torch.from_numpy(np.asarray(words).astype(np.uint32).view(np.int32))


def rounded(weight: torch.Tensor, bits: int, group: int, symmetric: bool, of: torch.Tensor | None = None) -> Any:
    """Levels from 0 `[out, in]`, zeros and scales (float16) `[out, groups]` by plain rounding, and what they stand for.

    `of`: the group of each column.
    """
    top, of = 2**bits - 1, torch.arange(weight.shape[1]) // group if of is None else of
    levels, dense, zeros, scales = torch.zeros_like(weight), torch.zeros_like(weight), [], []
    for number in range(int(of.max()) + 1):
        part = weight[:, of == number]
        low, high = part.amin(1), part.amax(1)
        span = 2 * part.abs().amax(1) if symmetric else high.clamp(min=0) - low.clamp(max=0)
        scale = (span / top).half().float()
        zero = torch.full_like(scale, (top + 1) // 2) if symmetric else (-low / scale).round().clamp(1, top)
        level = (part / scale[:, None] + zero[:, None]).round().clamp(0, top)
        levels[:, of == number], dense[:, of == number] = level, (level - zero[:, None]) * scale[:, None]
        zeros.append(zero)
        scales.append(scale)
    return levels.long(), torch.stack(zeros, 1).long(), torch.stack(scales, 1).half(), dense


def gptq(
    layer: str, weight: torch.Tensor, bits: int = 4, symmetric: bool = False, ordered: bool = False, version: int = 1
) -> tuple[Tensors, torch.Tensor]:
    of = torch.arange(weight.shape[1]) // GROUP
    if ordered:
        of = of[torch.randperm(len(of), generator=torch.Generator().manual_seed(len(of)))]
    levels, zeros, scales, dense = rounded(weight, bits, GROUP, symmetric, of)
    kept = (zeros.T - int(version == 1)) % 2**bits
    parts = {"qweight": pack(levels, bits).T, "qzeros": pack(kept, bits), "scales": scales.T, "g_idx": of.int()}
    return _named(layer, parts), dense


def awq(layer: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    levels, zeros, scales, dense = rounded(weight, 4, GROUP, symmetric=False)

    def words(table: torch.Tensor) -> torch.Tensor:
        return pack(table.T.reshape(table.shape[1], -1, 8)[:, :, list(AWQ_ORDER)].flatten(1), 4)

    return _named(layer, {"qweight": words(levels), "qzeros": words(zeros), "scales": scales.T}), dense


def packed(
    layer: str, weight: torch.Tensor, bits: int = 4, symmetric: bool = True, group: int | None = GROUP
) -> tuple[Tensors, torch.Tensor]:
    levels, zeros, scales, dense = rounded(weight, bits, group or weight.shape[1], symmetric)
    parts = {"weight_packed": pack(levels, bits), "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
    if not symmetric:
        parts["weight_zero_point"] = pack(zeros.T, bits).T
    return _named(layer, parts), dense


def integers(layer: str, weight: torch.Tensor, symmetric: bool = True) -> tuple[Tensors, torch.Tensor]:
    levels, zeros, scales, dense = rounded(weight, 8, weight.shape[1], symmetric)
    parts = {"weight": (levels - 128).to(torch.int8), "weight_scale": scales}
    if not symmetric:
        parts["weight_zero_point"] = (zeros - 128).to(torch.int8)
    return _named(layer, parts), dense


def floats(
    layer: str, weight: torch.Tensor, block: tuple[int, int], scale_name: str = "weight_scale_inv"
) -> tuple[Tensors, torch.Tensor]:
    """FP8 in blocks, those at the ends smaller; a block as large as the tensor has one scale."""
    rows, columns = (min(size, side) for size, side in zip(block, weight.shape, strict=True))
    table = torch.zeros(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    stored, dense = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn), torch.zeros(weight.shape)
    for row in range(len(table)):
        for column in range(table.shape[1]):
            at = (slice(row * rows, (row + 1) * rows), slice(column * columns, (column + 1) * columns))
            scale = weight[at].abs().max() / 448
            table[row, column], stored[at] = scale, (weight[at] / scale).to(torch.float8_e4m3fn)
            dense[at] = stored[at].float() * scale
    return _named(layer, {"weight": stored, scale_name: table}), dense


def four_bits(
    layer: str, weight: torch.Tensor, kind: str = "nf4", nested: bool = False, block: int = 32
) -> tuple[Tensors, torch.Tensor]:
    table = torch.tensor(NF4 if kind == "nf4" else FP4 + tuple(-number for number in FP4))
    table = table / table.abs().max()
    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % block)).view(-1, block)
    largest = flat.abs().amax(1)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(weight.shape)}
    parts: Tensors = {"absmax": largest, "quant_map": table}
    if nested:
        offset, codes = float(largest.mean()), torch.linspace(-1, 1, 256)
        blocks = torch.nn.functional.pad(largest - offset, (0, -len(largest) % 256)).view(-1, 256)
        scales = blocks.abs().amax(1)
        levels = (blocks / scales[:, None])[..., None].sub(codes).abs().argmin(-1)
        parts |= {"absmax": levels.flatten()[: len(largest)].to(torch.uint8)}
        parts |= {"nested_absmax": scales, "nested_quant_map": codes}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        largest = (codes[levels] * scales[:, None] + offset).flatten()[: len(largest)]
    levels = (flat / largest[:, None].clamp(min=1e-9))[..., None].sub(table).abs().argmin(-1)
    dense = (table[levels] * largest[:, None]).flatten()[: weight.numel()].view(weight.shape)
    pairs = levels.flatten()[: weight.numel()].view(-1, 2).to(torch.uint8)
    parts[f"quant_state.bitsandbytes__{kind}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    whole = {f"{layer}.weight": (pairs[:, :1] << 4 | pairs[:, 1:]).contiguous()}
    return whole | _named(f"{layer}.weight", parts), dense


def eight_bits(layer: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    largest = weight.abs().amax(1)
    levels = (weight / largest[:, None] * 127).round()
    parts = {"weight": levels.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return _named(layer, parts), levels * (largest / 127)[:, None]


def microscaled(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """MXFP4 of experts `[experts, in, out]`."""
    turned = weight.transpose(1, 2)
    groups = turned.reshape(*turned.shape[:2], -1, 32)
    power = (groups.abs().amax(-1).log2().floor() - 2).clamp(-126, 126)
    table = torch.tensor(FP4 + tuple(-number for number in FP4))
    levels = (groups / power.exp2()[..., None])[..., None].sub(table).abs().argmin(-1)
    dense = (table[levels] * power.exp2()[..., None]).reshape(turned.shape).transpose(1, 2)
    pairs = levels.view(*levels.shape[:-1], 16, 2).to(torch.uint8)
    blocks, scales = pairs[..., 0] | pairs[..., 1] << 4, (power + 127).to(torch.uint8)
    return {f"{name}_blocks": blocks, f"{name}_scales": scales}, dense.contiguous()


def _compressed(form: str, **weights: object) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": []}


def _whole(layer: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    return floats(layer, weight, (1 << 20, 1 << 20), "weight_scale")


def in_halves(written: tuple[Tensors, torch.Tensor]) -> tuple[Tensors, torch.Tensor]:
    """The numbers that are on no grid are given in bfloat16."""
    return written[0], written[1].bfloat16().float()


LAYOUTS: dict[str, tuple[dict[str, Any], Writer]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, gptq),
    "gptq-symmetric": ({"quant_method": "gptq", "bits": 4}, lambda n, w: gptq(n, w, symmetric=True)),
    "gptq-ordered": ({"quant_method": "gptq", "bits": 4, "desc_act": True}, lambda n, w: gptq(n, w, ordered=True)),
    "gptq-8": ({"quant_method": "gptq", "bits": 8, "desc_act": True}, lambda n, w: gptq(n, w, 8, ordered=True)),
    "gptq-8-symmetric": ({"quant_method": "gptq", "bits": 8}, lambda n, w: gptq(n, w, 8, symmetric=True)),
    "gptq-v2": (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
        lambda n, w: gptq(n, w, version=2),
    ),
    "auto-round": ({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4}, gptq),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, awq),
    "packed-4": (_compressed("pack-quantized", num_bits=4, type="int"), packed),
    "packed-4-zeros": (
        _compressed("pack-quantized", num_bits=4, symmetric=False),
        lambda n, w: packed(n, w, symmetric=False),
    ),
    "packed-8-rows": (
        _compressed("pack-quantized", num_bits=8, symmetric=False),
        lambda n, w: packed(n, w, 8, False, None),
    ),
    "integers": (_compressed("int-quantized", num_bits=8, type="int"), integers),
    "integers-zeros": (
        _compressed("naive-quantized", num_bits=8, symmetric=False),
        lambda n, w: integers(n, w, symmetric=False),
    ),
    "floats-tensor": (_compressed("float-quantized", num_bits=8, type="float"), _whole),
    "floats-rows": (
        _compressed("float-quantized", num_bits=8, type="float"),
        lambda n, w: floats(n, w, (1, 1 << 20), "weight_scale"),
    ),
    "floats-blocks": (
        _compressed("float-quantized", num_bits=8, type="float", strategy="block", block_structure=[16, 32]),
        lambda n, w: floats(n, w, (16, 32), "weight_scale"),
    ),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [20, 32]}, lambda n, w: floats(n, w, (20, 32))),
    "fp8-narrow": (
        {"quant_method": "fp8", "weight_block_size": [20, 24]},
        lambda n, w: in_halves(floats(n, w, (20, 24))),
    ),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, lambda n, w: floats(n, w, (1, 1 << 20), "weight_scale")),
    "nf4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, four_bits),
    "nf4-nested": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, lambda n, w: four_bits(n, w, nested=True)),
    "fp4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, lambda n, w: four_bits(n, w, "fp4")),
    "nf4-wide": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        lambda n, w: in_halves(four_bits(n, w, block=40)),
    ),
    "int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bits),
}
"""Of a linear layer: by name, what the configuration says, and the writer."""
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
ON_GRID = LAYOUTS.keys() - {"fp8-narrow", "nf4-wide"}


def quantize(folder: Path, layout: str) -> tuple[Path, Path]:
    """Quantize the linear layers of the blocks of a checkpoint of one file, and gpt-oss's experts with `mxfp4`.

    Returns the folder of the quantized one, and of one with the numbers that it stands for, in float32.
    """
    settings, writer = (MXFP4, microscaled) if layout == "mxfp4" else LAYOUTS[layout]
    stored: Tensors = {}
    plain: Tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if _is_quantized(name, tensor, layout):
            parts, plain[name] = writer(name.removesuffix(".weight"), tensor.float())
            stored |= parts
        else:
            stored[name] = plain[name] = tensor
    config = json.loads((folder / "config.json").read_text())
    names = (folder.with_name(f"{folder.name}-{layout}"), folder.with_name(f"{folder.name}-{layout}-plain"))
    _save(names[0], stored, config | {"quantization_config": settings, "dtype": "bfloat16"})
    _save(names[1], plain, config | {"dtype": "float32"})
    return names


def _is_quantized(name: str, tensor: torch.Tensor, layout: str) -> bool:
    if layout == "mxfp4":
        return "experts" in name and tensor.dim() == 3
    return ".layers." in name and name.endswith("_proj.weight") and tensor.dim() == 2


def _save(folder: Path, tensors: Tensors, config: dict[str, Any]) -> None:
    folder.mkdir()
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def _named(layer: str, parts: Tensors) -> Tensors:
    return {f"{layer}.{part}": tensor.contiguous() for part, tensor in parts.items()}
