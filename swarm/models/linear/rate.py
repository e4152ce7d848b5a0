"""How fast this machine goes through the weights of linear layers, measured briefly."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from swarm.models.linear.grid import Grid
from swarm.models.linear.laid_out import laid_out_linear
from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.linear.schemes import BITS, GROUP

WIDTH = 2048
"""Inputs and outputs of the layers that are multiplied."""
BYTES = 64 << 20
"""Of weights, in different layers: a processor that caches so much is faster here than with a large model."""
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes of weights a second, with so many `threads` of torch."""

    bytes_per_second: float
    threads: int


@torch.inference_mode()
def rate(quantization: str, dtype: torch.dtype, device: str = "cpu") -> Rate:
    """The rate in products of one row: of weights in `dtype` under "none", else on the grid of a scheme.

    Threads wait for each other in every product. Where other programs have the processors they wait for the scheduler,
    which takes as long for a small layer as for a large one and says nothing of the weights; so one thread is tried,
    too, and the better of both is returned.
    """
    bits = BITS.get(quantization)
    layer = _plain(dtype) if bits is None else QuantizedLinear(_grid(bits), dtype=dtype)
    size = int(WIDTH * WIDTH * (8 * dtype.itemsize if bits is None else bits) / 8)
    copies = [copy.deepcopy(layer).to(device) for _ in range(max(1, BYTES // size))]
    layers: list[nn.Module] = [laid_out_linear(each) or each for each in copies]
    row = torch.randn(1, WIDTH).to(device, dtype)
    threads = torch.get_num_threads()
    try:
        times = {count: _fastest(layers, row, count) for count in dict.fromkeys((threads, 1))}
    finally:
        torch.set_num_threads(threads)
    best = min(times, key=lambda count: times[count])
    return Rate(size * len(layers) / times[best], best)


def _fastest(layers: list[nn.Module], row: torch.Tensor, threads: int) -> float:
    torch.set_num_threads(threads)
    return min(_seconds(layers, row) for _ in range(1 + ROUNDS))


def _plain(dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype)
    return layer.requires_grad_(False)


def _grid(bits: float) -> Grid:
    """Any numbers: how long a product takes does not depend on them."""
    scales = torch.full((WIDTH, WIDTH // GROUP), 0.01, dtype=torch.float16)
    if bits >= 8:
        return Grid(torch.ones(WIDTH, WIDTH, dtype=torch.int8), scales)
    return Grid(torch.ones(WIDTH, WIDTH // 2, dtype=torch.uint8), scales, scales)


def _seconds(layers: list[nn.Module], row: torch.Tensor) -> float:
    began = time.perf_counter()
    for layer in layers:
        result = layer(row)
    result.sum().item()  # what a device has only begun is waited for
    return time.perf_counter() - began
