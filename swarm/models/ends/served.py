"""The ends of a model for others, who have none: logits of what goes into the head, and rows of the embeddings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from swarm.errors import UnsupportedModel
from swarm.models.ends.load import lay_out_head
from swarm.models.loading.checkpoint import Checkpoint
from swarm.models.loading.weights import load_part

ROUNDS = 3


class ServedEnds:
    """Head and embeddings of a model that has them. For one thread at a time.

    `fingerprint`: sha256 of their numbers; `head_ms`: of the head for one row, as was measured.
    """

    def __init__(self, model: PreTrainedModel, fingerprint: bytes, dtype: torch.dtype) -> None:
        found: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        table: Any = model.get_input_embeddings()
        self.fingerprint, self.dtype = fingerprint, dtype
        self._head, self._table = found, table.weight
        self.vocabulary, self.hidden_size = int(found.out_features), int(found.in_features)
        self.embeddings_count = int(self._table.shape[0])
        self.row_bytes = self.hidden_size * dtype.itemsize
        self.head_ms = self._measured()

    @torch.inference_mode()
    def logits(self, rows: bytes | bytearray, best: int) -> tuple[bytes, bytes]:
        """Of rows that go into the head: the `best` tokens of each, uint32, and their logits; 0: no tokens, and the
        logits of all."""
        hidden = torch.frombuffer(bytearray(rows), dtype=self.dtype).view(-1, self.hidden_size)
        logits = self._head(hidden)
        if not 0 < best < self.vocabulary:
            return b"", _bytes(logits)
        values, tokens = torch.topk(logits, best, dim=-1)
        return _bytes(tokens.to(torch.int32)), _bytes(values)

    @torch.inference_mode()
    def embeddings(self, tokens: Sequence[int]) -> bytes:
        """A row for each token, of which there must be one, before anything that a model does to its embeddings."""
        return _bytes(torch.nn.functional.embedding(torch.tensor(list(tokens)), self._table))

    def _measured(self) -> float:
        row = bytes(self.row_bytes)
        times = []
        for _ in range(1 + ROUNDS):
            began = time.perf_counter()
            self.logits(row, 1)
            times.append(time.perf_counter() - began)
        return 1000.0 * min(times)


def load_served_ends(
    checkpoint: Checkpoint, *, dtype: torch.dtype, quantization: str, progress: bool = True
) -> ServedEnds:
    """The ends in the checkpoint's own numbers: the head in memory, on its grid where it has one; of embeddings of
    their own rows are read from disk.

    Raises UnsupportedModel where they are no plain matrices, and what loading raises.
    """
    loaded = load_part(checkpoint, None, ends=True, dtype=dtype, quantization=quantization, progress=progress)
    if loaded.ends is None or not checkpoint.form.is_of_text:
        raise UnsupportedModel(f"{checkpoint.name} has no head to serve")
    fingerprint = loaded.ends.fingerprint()
    lay_out_head(loaded.model)
    return ServedEnds(loaded.model, fingerprint, dtype)


def _bytes(numbers: torch.Tensor) -> bytes:
    return numbers.contiguous().view(torch.uint8).numpy().tobytes()
