"""A model's head and embeddings that are somewhere else: rows go there, and logits or embeddings come back.

Of a head only the largest logits may be asked for, where no more of them decides: the others are minus infinity.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from swarm.errors import InvalidInput, MalformedFrame
from swarm.models.linear.unread import Held, UnreadWeight

FIXED = "the numbers of the ends are at servers, and cannot be looked at or changed: load the model without 'remote'"
NO_GRADIENTS = "head='remote': no gradients flow through a head that servers have; load the model with another head"


SPARE = 16
"""Logits of a row that are asked for beyond those that decide, to see whether they are equal to the last of these."""
EQUAL = 4
"""Numbers that differ by so many roundings may be equal when both are divided by a temperature."""


class EndsService(Protocol):
    """Where the ends are. Its methods are for threads, and raise what cannot be had."""

    def logits(self, rows: bytes, count: int, best: int) -> tuple[bytes, bytes]:
        """Of `count` rows that go into the head, as they are in memory: `best` tokens each, uint32, and their logits;
        0: no tokens, and all logits."""

    def embeddings(self, tokens: Sequence[int]) -> bytes:
        """A row each."""


class _Asked(threading.local):
    """How many logits of a row decide in this thread; 0: all."""

    deciding = 0


_asked = _Asked()


def deciding() -> int:
    """How many of the largest logits of a row decide in this thread; 0: all."""
    return _asked.deciding


@contextmanager
def asking(count: int) -> Iterator[None]:
    """In this thread so many of the largest logits of a row decide; 0: all. All that are equal to the last of them do,
    too."""
    outer, _asked.deciding = _asked.deciding, count
    try:
        yield
    finally:
        _asked.deciding = outer


class RemoteHead(nn.Module):
    """A linear layer of `out_features` outputs that servers compute. `service`: nobody before it is set."""

    def __init__(self, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.service: EndsService | None = None

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, elsewhere"

    @property
    def weight(self) -> torch.Tensor:
        """Of its shape; nobody can look at its numbers."""
        return UnreadWeight(Held(_Nowhere((self.out_features, self.in_features), self.dtype)))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise InvalidInput(FIXED)
        super().__setattr__(name, value)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` → logits `[..., out_features]`, of which minus infinity are those that were not asked
        for (`asking`). Raises InvalidInput for gradients, and what the service raises."""
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise InvalidInput(NO_GRADIENTS)
        rows = hidden.detach().reshape(-1, self.in_features).to("cpu", self.dtype)
        logits = self._best(rows, deciding()) if 0 < 2 * (deciding() + SPARE) < self.out_features else self._all(rows)
        return logits.view(*hidden.shape[:-1], self.out_features).to(hidden.device)

    def _best(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Of `rows` `[rows, in_features]` those logits that decide; all of a row where more may than were asked for."""
        wanted = count + SPARE
        found, given = _service(self.service).logits(_bytes(rows), len(rows), wanted)
        tokens = _numbers(found, torch.int32, len(rows) * wanted).view(len(rows), wanted).long()
        if int(tokens.min()) < 0 or int(tokens.max()) >= self.out_features:
            raise MalformedFrame("a token that is not in the vocabulary")
        values = _numbers(given, self.dtype, len(rows) * wanted).view(len(rows), wanted)
        logits = torch.full((len(rows), self.out_features), -torch.inf, dtype=self.dtype)
        logits.scatter_(1, tokens, values)
        least = values.float().sort(dim=1, descending=True).values[:, [count - 1, wanted - 1]]
        unsure = least[:, 0] - least[:, 1] <= EQUAL * torch.finfo(torch.float32).eps * least[:, 0].abs()
        if bool(unsure.any()):
            logits[unsure] = self._all(rows[unsure])
        return logits

    def _all(self, rows: torch.Tensor) -> torch.Tensor:
        _, given = _service(self.service).logits(_bytes(rows), len(rows), 0)
        return _numbers(given, self.dtype, len(rows) * self.out_features).view(len(rows), self.out_features)

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteHead:
        twin = memo[id(self)] = RemoteHead(self.in_features, self.out_features, self.dtype)
        twin.service = self.service
        return twin


class RemoteTable:
    """The embeddings that servers have, as `swarm.models.linear.unread.Numbers`."""

    fixed = FIXED

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.service: EndsService | None = None

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """Raises what the service raises."""
        if not chosen.numel():
            return torch.empty(0, self.shape[1], dtype=self.dtype)
        found = _service(self.service).embeddings(chosen.tolist())
        return _numbers(found, self.dtype, len(chosen) * self.shape[1]).view(len(chosen), self.shape[1])

    def parts(self) -> Iterator[torch.Tensor]:
        """Raises InvalidInput."""
        raise InvalidInput(FIXED)

    def product(self, rows: torch.Tensor) -> torch.Tensor:
        """Raises InvalidInput."""
        raise InvalidInput(FIXED)


class _Nowhere(RemoteTable):
    """Of a head: nobody looks rows up in it."""

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """Raises InvalidInput."""
        raise InvalidInput(FIXED)


def _service(service: EndsService | None) -> EndsService:
    if service is None:
        raise InvalidInput("the ends of this model are at servers, and it is not connected to any")
    return service


def _bytes(rows: torch.Tensor) -> bytes:
    return rows.contiguous().view(torch.uint8).numpy().tobytes()


def _numbers(data: bytes, dtype: torch.dtype, count: int) -> torch.Tensor:
    if len(data) != count * dtype.itemsize:
        raise MalformedFrame(f"{len(data)} bytes for {count} numbers of {dtype.itemsize}")
    return torch.frombuffer(bytearray(data), dtype=dtype)
