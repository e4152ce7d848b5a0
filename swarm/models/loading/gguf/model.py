"""A model in a GGUF file: its configuration, its tensors, and what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import PretrainedConfig

from swarm.models.loading.gguf.configuration import configuration
from swarm.models.loading.gguf.file import open_gguf, row_count
from swarm.models.loading.gguf.grids import GRIDS, to_numbers
from swarm.models.loading.gguf.rotary import FACTORS
from swarm.models.loading.gguf.stored import STORED
from swarm.models.loading.gguf.tensors import GgufTensors

CHUNK = 1 << 12
"""Rows that are hashed at once."""


class GgufModel:
    """`file`: the file's name or that of any part of it; `path`: where a file is on this machine,
    downloaded if need be.

    Raises BadCheckpoint, UnsupportedModel, and what `path` raises.
    """

    def __init__(self, file: str, path: Callable[[str], Path]) -> None:
        self._file = open_gguf(file, path)
        self.header = self._file.header

    @cached_property
    def config(self) -> PretrainedConfig:
        """As transformers has it."""
        factors = None
        if FACTORS in self.header.tensors:
            raw = self._file.rows(FACTORS, 0, row_count(self.header.tensors[FACTORS]))
            factors = to_numbers(raw, self.header.tensors[FACTORS].type).flatten().tolist()
        return configuration(self.header, factors)

    @property
    def path(self) -> Path:
        """The file, or its first part, in which all but tensors is."""
        return self._file.path

    @cached_property
    def tensors(self) -> GgufTensors:
        """All that the model is made of."""
        return GgufTensors(self._file, self.config)

    @property
    def quantized(self) -> bool:
        """Whether matrices or experts of its blocks are on grids."""
        matrices = (info for name, info in self.header.tensors.items() if name.startswith("blk."))
        return any(info.type in GRIDS and len(info.shape) in (2, 3) for info in matrices)

    @property
    def dtype(self) -> torch.dtype:
        """What its numbers are in: float32 where there are groups, else the half type that the matrices have."""
        kinds = {STORED[info.type].dtype for info in self.header.tensors.values()}
        if None in kinds:
            return torch.float32
        return next((kind for kind in (torch.bfloat16, torch.float16) if kind in kinds), torch.float32)

    def content(self, name: str) -> str:
        """A hash of all tensors' names, types, shapes and bytes, however they are cut into files."""
        whole = hashlib.sha256()
        for tensor in tqdm(
            sorted(self.header.tensors), desc=f"{name}: identity", unit="tensor", delay=2.0, leave=False, disable=None
        ):
            whole.update(f"{tensor} {self._digest(tensor)}\n".encode())
        return whole.hexdigest()

    def _digest(self, name: str) -> str:
        info = self.header.tensors[name]
        digest, rows = hashlib.sha256(f"{info.type} {list(info.shape)}".encode()), row_count(info)
        for first in range(0, rows, CHUNK):
            digest.update(self._file.rows(name, first, min(rows, first + CHUNK)).numpy().data)
        return digest.hexdigest()
