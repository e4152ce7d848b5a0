"""Passes over blocks of which some keep a running state: decode steps of all sequences together, prompts one by one.

The rows of decode steps stand as a batch `[sequences, 1, hidden_size]`, their states stacked alike, so that every
linear layer and every step of a state runs once for all; attention looks at each sequence by itself, as in a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from swarm.models.span.attention.base import Attention, Lane, Row, current_row
from swarm.models.span.base_model import BaseModel
from swarm.models.span.kv.hybrid import HybridCache, apart, together
from swarm.models.span.passes import positions_of


def pieces_of(lane: Lane[HybridCache], hidden: torch.Tensor) -> Iterator[tuple[Lane[HybridCache], torch.Tensor]]:
    """The positions of a lane that goes on, one by one, with their rows of `[1, count, hidden_size]`; else the lane."""
    if not lane.start:
        yield lane, hidden
        return
    for i in range(lane.count):
        places = None if lane.places is None else lane.places[:, i : i + 1]
        yield Lane(lane.start + i, 1, lane.cache, places, lane.adapter), hidden[:, i : i + 1]


class Stacked:
    """Lanes of one position together, the others one after the other. `Passes` over hybrid caches."""

    def __init__(self, model: BaseModel, attention: Attention) -> None:
        self._model = model
        self._attention = attention

    def new_cache(self) -> HybridCache:
        """Of a sequence that has no positions yet."""
        return HybridCache(self._model.config)

    def no_cache(self) -> HybridCache:
        """The same."""
        return self.new_cache()

    def run(self, lanes: Sequence[Lane[HybridCache]], hidden: torch.Tensor) -> torch.Tensor:
        """`[1, T, hidden_size]` → the same shape."""
        if self._model.singly and any(lane.start and lane.count > 1 for lane in lanes):
            return self._run_singly(lanes, hidden)
        parts = list(torch.split(hidden, [lane.count for lane in lanes], dim=1))
        steps = [i for i, lane in enumerate(lanes) if lane.count == 1 and lane.start and lane.adapter is None]
        if len(steps) > 1 and len({lanes[i].planes for i in steps if lanes[i].planes > 1}) < 2:
            output, _ = self.run_stacked([lanes[i] for i in steps], torch.cat([parts[i] for i in steps]))
            for row, i in enumerate(steps):
                parts[i] = output[row : row + 1]
        else:
            steps = []
        for i, lane in enumerate(lanes):
            if i not in steps:
                parts[i], _ = self.run_stacked([lane], parts[i])
        return torch.cat(parts, dim=1)

    def _run_singly(self, lanes: Sequence[Lane[HybridCache]], hidden: torch.Tensor) -> torch.Tensor:
        """Each lane by itself, position by position where it goes on."""
        outputs = []
        for lane, part in zip(lanes, torch.split(hidden, [lane.count for lane in lanes], dim=1), strict=True):
            for piece, rows in pieces_of(lane, part):
                outputs.append(self.run_stacked([piece], rows)[0])
        return torch.cat(outputs, dim=1)

    def run_stacked(self, lanes: Sequence[Lane[HybridCache]], hidden: torch.Tensor) -> tuple[torch.Tensor, Row]:
        """`[lanes, T, hidden_size]` → the same shape; T is 1 where there are several. Also how often attention was
        called."""
        caches = [lane.cache for lane in lanes]
        cache, row = together(caches), Row(lanes, {})
        positions = positions_of(lanes, hidden.device)
        if len(lanes) > 1:  # from one row of all to a row for each
            positions = positions.transpose(-1, -2)
        token = current_row.set(row)
        try:
            output = self._model.run(hidden, positions, past_key_values=cache, use_cache=True)
        finally:
            current_row.reset(token)
        apart(cache, caches)
        for lane in lanes:
            lane.cache.ended(lane.start + lane.count)
        return output, row
