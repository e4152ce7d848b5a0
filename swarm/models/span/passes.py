"""A forward pass over several sequences: all in one row, or one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn.functional import pad

from swarm.models.span.attention.base import Attention, C, Lane, Row, current_row
from swarm.models.span.base_model import BaseModel
from swarm.models.span.kv.base import KeyValueCache
from swarm.models.span.kv.library import LibraryCache
from swarm.models.span.kv.whole import WholeSequence


class Passes(Protocol[C]):
    """A way to compute the lanes of a row, and the caches that it needs."""

    def new_cache(self) -> C:
        """Of a sequence that has no positions yet."""

    def no_cache(self) -> C:
        """Of a sequence whose positions all come at once, and which does not go on."""

    def run(self, lanes: Sequence[Lane[C]], hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` `[1, T, hidden_size]` of all lanes, one behind the other → the same shape. The caches have grown."""


class Batched:
    """All lanes in one pass, with an attention that keeps them apart."""

    def __init__(self, model: BaseModel, attention: Attention) -> None:
        self._model = model
        self._attention = attention

    def new_cache(self) -> KeyValueCache:
        """What the attention reads."""
        return self._attention.new_cache()

    def no_cache(self) -> KeyValueCache:
        """Of a sequence that does not go on: gradients flow through what is not copied anywhere."""
        return WholeSequence()

    def run(self, lanes: Sequence[Lane[KeyValueCache]], hidden: torch.Tensor) -> torch.Tensor:
        """`[1, T, hidden_size]` → the same shape."""
        if len({lane.planes for lane in lanes if lane.planes > 1}) > 1:
            parts = torch.split(hidden, [lane.count for lane in lanes], dim=1)
            return torch.cat([self.run([lane], part) for lane, part in zip(lanes, parts, strict=True)], dim=1)
        count, fewest = hidden.shape[1], self._model.fewest_rows
        if count < fewest:  # the rest of the row belongs to nobody
            hidden = pad(hidden, (0, 0, 0, fewest - count))
            lanes = [*lanes, Lane(0, fewest - count, self.new_cache())]
        output, _ = self.run_row(lanes, hidden)
        return output[:, :count]

    def run_row(self, lanes: Sequence[Lane[KeyValueCache]], hidden: torch.Tensor) -> tuple[torch.Tensor, Row]:
        """As `run`; also returns how often attention was called."""
        row = Row(lanes, {})
        token = current_row.set(row)
        try:
            mask = torch.ones(1, hidden.shape[1], dtype=torch.long, device=hidden.device)
            output = self._model.run(hidden, positions_of(lanes, hidden.device), attention_mask=mask, use_cache=False)
        finally:
            current_row.reset(token)
        for lane in lanes:
            lane.cache.length = lane.start + lane.count
        return output, row


class Unbatched:
    """One lane after the other, each with the library's own mask and cache."""

    def __init__(self, model: BaseModel) -> None:
        self._model = model

    def new_cache(self) -> LibraryCache:
        """Of the library's layers."""
        return LibraryCache(self._model.config)

    def no_cache(self) -> LibraryCache:
        """The same."""
        return self.new_cache()

    def run(self, lanes: Sequence[Lane[LibraryCache]], hidden: torch.Tensor) -> torch.Tensor:
        """`[1, T, hidden_size]` → the same shape."""
        parts = torch.split(hidden, [lane.count for lane in lanes], dim=1)
        outputs = []
        for lane, part in zip(lanes, parts, strict=True):
            token = current_row.set(Row([lane], {}))
            try:
                outputs.append(self.run_alone(lane.cache, part, lane.places))
            finally:
                current_row.reset(token)
        return torch.cat(outputs, dim=1)

    def run_alone(self, cache: LibraryCache, hidden: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """The next positions of one sequence, `[1, T, hidden_size]` → the same shape."""
        if self._model.singly and cache.length and hidden.shape[1] > 1:
            parts = [
                (hidden[:, i : i + 1], places if places is None else places[:, i : i + 1])
                for i in range(hidden.shape[1])
            ]
            return torch.cat([self.run_alone(cache, *part) for part in parts], dim=1)
        end = cache.length + hidden.shape[1]
        positions = positions_of([Lane(cache.length, hidden.shape[1], cache, places)], hidden.device)
        output = self._model.run(hidden, positions, past_key_values=cache.cache, use_cache=True)
        cache.length = end
        cache.release()
        return output


def positions_of(lanes: Sequence[Lane[Any]], device: torch.device) -> torch.Tensor:
    """`[1, T]`, or `[planes, 1, T]` where positions have several places: each lane's own."""
    planes = max(lane.planes for lane in lanes)
    if planes:
        whole = torch.cat([_places(lane, planes, device) for lane in lanes], dim=1)
        return whole if planes == 1 else whole.unsqueeze(1)
    if len(lanes) == 1:
        return torch.arange(lanes[0].start, lanes[0].start + lanes[0].count, device=device).unsqueeze(0)
    positions = [position for lane in lanes for position in range(lane.start, lane.start + lane.count)]
    return torch.tensor([positions], device=device)


def _places(lane: Lane[Any], planes: int, device: torch.device) -> torch.Tensor:
    """`[planes, count]` of one lane."""
    if lane.places is None:
        return torch.arange(lane.start, lane.start + lane.count, device=device).expand(planes, -1)
    return lane.places.expand(planes, -1)
