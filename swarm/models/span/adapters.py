"""Low-rank matrices of clients beside the linear layers of a span's blocks: each lane of a row gets its own.

The base weights run once over the whole row; what is added to a lane's positions is computed of that lane alone.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from swarm.errors import InvalidInput
from swarm.models.lora import Pair, Place, decode
from swarm.models.span.attention.base import current_row
from swarm.types import Adapter, Span

MOST_BYTES = 256 << 20
"""Of adapters that are kept decoded."""


class Adapters:
    """Those of all clients. `blocks`: of the span, which begins at block `first`."""

    def __init__(self, blocks: Sequence[nn.Module], first: int) -> None:
        self._blocks = blocks
        self._span = Span(first, first + len(blocks))
        self._decoded: OrderedDict[bytes, Mapping[Place, Pair]] = OrderedDict()
        self._nbytes: dict[bytes, int] = {}
        self._watched: set[Place] = set()

    def get(self, adapter: Adapter | None) -> Mapping[Place, Pair] | None:
        """Its matrices, beside layers that will add them. Raises InvalidInput as `check`."""
        if adapter is None:
            return None
        pairs = self._decoded.get(adapter.digest)
        if pairs is None:
            pairs = self.check(adapter.data)
            for place in pairs.keys() - self._watched:
                self._watch(place)
            self._decoded[adapter.digest], self._nbytes[adapter.digest] = pairs, len(adapter.data)
            while sum(self._nbytes.values()) > MOST_BYTES and len(self._decoded) > 1:
                del self._nbytes[self._decoded.popitem(last=False)[0]]
        self._decoded.move_to_end(adapter.digest)
        return pairs

    def check(self, data: bytes | memoryview) -> dict[Place, Pair]:
        """What is in the file of an adapter. Raises InvalidInput where it does not fit these blocks.

        May be called from any thread.
        """
        pairs = decode(data, self._span)
        for place, pair in pairs.items():
            expected, found = self._shape(place), (pair.a.shape[1], pair.b.shape[0])
            if found != expected:
                raise InvalidInput(f"the adapter of {place} is for a layer of {found} features, which has {expected}")
        return pairs

    def _shape(self, place: Place) -> tuple[int, int]:
        """Features that go into a layer, and come out. Raises InvalidInput where there is no linear one."""
        layer: Any = self._layer(place)
        names = ("in_features", "out_features") if hasattr(layer, "in_features") else ("nx", "nf")
        sizes = tuple(getattr(layer, name, None) for name in names)
        if not all(isinstance(size, int) for size in sizes):
            raise InvalidInput(f"{str(place)[:100]} is no linear layer of these blocks")
        return sizes  # type: ignore[return-value]

    def _layer(self, place: Place) -> nn.Module:
        try:
            return self._blocks[place.block - self._span.first].get_submodule(place.path)
        except AttributeError:
            raise InvalidInput(f"{str(place)[:100]} is no layer of these blocks") from None

    def _watch(self, place: Place) -> None:
        self._watched.add(place)

        def add(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            return _with_adapters(place, args[0], output)

        self._layer(place).register_forward_hook(add)


def _with_adapters(place: Place, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """What a layer made of `rows`, with what the adapter of each lane adds to it."""
    row = current_row.get(None)
    if row is None or not any(lane.adapter and place in lane.adapter for lane in row.lanes):
        return output
    counts = [lane.count for lane in row.lanes]
    if rows.shape[-2] != sum(counts):
        raise InvalidInput(f"{place} does not see all positions, one after the other: it takes no adapter")
    parts, whole = [], (torch.split(rows, counts, -2), torch.split(output, counts, -2))
    for lane, given, made in zip(row.lanes, *whole, strict=True):
        pair = lane.adapter.get(place) if lane.adapter else None
        parts.append(made if pair is None else made + _product(given, pair, place, lane.seed).to(made.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def _product(rows: torch.Tensor, pair: Pair, place: Place, seed: bytes) -> torch.Tensor:
    given = rows.to(pair.a.dtype)
    if seed and pair.dropout:
        given = given * _kept(given, pair.dropout, place, seed)
    return linear(linear(given, pair.a), pair.b)


def _kept(rows: torch.Tensor, dropout: float, place: Place, seed: bytes) -> torch.Tensor:
    """Which numbers of `rows` are not dropped, and by how much more they count: the same whoever computes them."""
    digest = hashlib.blake2b(seed + str(place).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    kept = torch.rand(rows.shape[-2:], generator=generator) >= dropout
    return (kept / (1.0 - dropout)).to(rows.device, rows.dtype)
