"""Bytes of a file, straight into a tensor: nothing is mapped, and nothing is held twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def read_into(tensor: torch.Tensor, path: Path, first: int) -> None:
    """Fill a contiguous tensor with the bytes of a file from `first` on. Raises OSError, also where the file ends
    before."""
    if not tensor.numel():
        return
    flat: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    into, done = memoryview(flat), 0
    with path.open("rb", buffering=0) as file:
        file.seek(first)
        while done < len(into):
            count = file.readinto(into[done:])
            if not count:
                raise OSError("the file ends within a tensor")
            done += count
