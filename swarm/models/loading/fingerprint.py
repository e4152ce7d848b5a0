"""The fingerprint of a block: what servers compare to know that they compute with the same weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import torch

from swarm.models.linear.grid import Grid


def of_tensor(name: str, block: int, tensor: torch.Tensor | Grid) -> bytes:
    """The part that a tensor of the checkpoint has in it; `name`: in the checkpoint."""
    if isinstance(tensor, Grid):
        return of_grid(name, block, tensor.digest())
    digest = hashlib.sha256(f"{_relative(name, block)} {tensor.dtype} {list(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def of_grid(name: str, block: int, digest: bytes) -> bytes:
    """The part that a weight on a grid has, by the digest of the grid."""
    return hashlib.sha256(f"{_relative(name, block)} ".encode() + digest).digest()


def of_block(parts: Iterable[bytes]) -> bytes:
    """The whole, in whatever order the parts were read."""
    return hashlib.sha256(b"".join(sorted(parts))).digest()


def _relative(name: str, block: int) -> str:
    """A tensor's name within its block, whatever the checkpoint calls the model around it."""
    return re.split(rf"(?:^|\.){block}\.", name, maxsplit=1)[-1]
