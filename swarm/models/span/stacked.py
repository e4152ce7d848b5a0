"""Passes over blocks of which some keep a running state: lanes of as many positions together, prompts one by one.

The rows of decode steps, and of windows of guesses, are a batch `[sequences, positions, hidden_size]`, their states
stacked alike, so that every linear layer and every step of a state runs once for all; attention looks at each sequence
by itself, as in a row. A sequence that has gone back computes what its states have still to see with what comes next.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from swarm.models.span.attention.base import Attention, Lane, Row, current_row
from swarm.models.span.base_model import BaseModel
from swarm.models.span.kv.hybrid import HybridCache, apart, together
from swarm.models.span.kv.snapshots import Inputs
from swarm.models.span.passes import positions_of

OWED = 16
"""Positions that a sequence computes once more together with what comes next; more are computed before, so that the
next time there are fewer."""

Hybrids = Sequence[Lane[HybridCache]]


class Stacked:
    """Lanes of as many positions together, the others one after the other. `Passes` over hybrid caches."""

    def __init__(self, model: BaseModel, attention: Attention) -> None:
        self._model = model
        self._attention = attention

    def new_cache(self) -> HybridCache:
        """Of a sequence that has no positions yet."""
        return HybridCache(self._model.config)

    def no_cache(self) -> HybridCache:
        """The same."""
        return self.new_cache()

    def run(self, lanes: Hybrids, hidden: torch.Tensor) -> torch.Tensor:
        """`[1, T, hidden_size]` → the same shape."""
        parts = list(torch.split(hidden, [lane.count for lane in lanes], dim=1))
        ahead = [_with_owed(lane, part) for lane, part in zip(lanes, parts, strict=True)]
        if apart_from := [(lane, rows) for lane, rows in ahead if lane.start + OWED <= lane.cache.length]:
            self._run_alike([_owed_alone(lane, rows) for lane, rows in apart_from])
            ahead = [_with_owed(lane, part) for lane, part in zip(lanes, parts, strict=True)]
        before = [lane.cache.now for lane in lanes]
        outputs = self._run_alike(ahead)
        for lane, part, state in zip(lanes, parts, before, strict=True):
            if lane.rollback:
                lane.cache.remember(state, Inputs(lane.start, part, lane.places))
            else:
                lane.cache.forget_past()
        return torch.cat([each[:, -lane.count :] for each, lane in zip(outputs, lanes, strict=True)], dim=1)

    def _run_alike(self, parts: Sequence[tuple[Lane[HybridCache], torch.Tensor]]) -> list[torch.Tensor]:
        """Each lane's rows `[1, count, hidden_size]` → the same shapes; those that are alike in one pass."""
        groups: dict[Hashable, list[int]] = {}
        for i, (lane, _) in enumerate(parts):
            groups.setdefault((lane.count, lane.start > 0, lane.planes) if lane.adapter is None else -1 - i, []).append(
                i
            )
        outputs = [rows for _, rows in parts]
        for members in groups.values():
            lanes = [parts[i][0] for i in members]
            output = self._run_group(lanes, torch.cat([parts[i][1] for i in members]))
            for row, i in enumerate(members):
                outputs[i] = output[row : row + 1]
        return outputs

    def _run_group(self, lanes: Hybrids, hidden: torch.Tensor) -> torch.Tensor:
        """Lanes that are alike, position by position where the model's own kernels are right only so."""
        if not (self._model.singly and lanes[0].start):
            return self.run_stacked(lanes, hidden)[0]
        outputs = []
        for i in range(lanes[0].count):
            piece = [_piece(lane, i) for lane in lanes]
            outputs.append(self.run_stacked(piece, hidden[:, i : i + 1])[0])
        return torch.cat(outputs, dim=1)

    def run_stacked(self, lanes: Hybrids, hidden: torch.Tensor) -> tuple[torch.Tensor, Row]:
        """`[lanes, T, hidden_size]` → the same shape. Also how often attention was called."""
        caches = [lane.cache for lane in lanes]
        cache, row = together(caches), Row(lanes, {})
        positions = positions_of(lanes, hidden.device)
        if len(lanes) > 1:  # from one row of all to a row for each
            positions = positions.reshape(*positions.shape[:-2], len(lanes), -1)
        token = current_row.set(row)
        try:
            output = self._model.run(hidden, positions, past_key_values=cache, use_cache=True)
        finally:
            current_row.reset(token)
        apart(cache, caches)
        for lane in lanes:
            lane.cache.ended(lane.start + lane.count)
        return output, row


def _piece(lane: Lane[HybridCache], i: int) -> Lane[HybridCache]:
    """Its position i alone."""
    places = None if lane.places is None else lane.places[:, i : i + 1]
    return replace(lane, start=lane.start + i, count=1, places=places)


def _with_owed(lane: Lane[HybridCache], hidden: torch.Tensor) -> tuple[Lane[HybridCache], torch.Tensor]:
    """A lane with its rows `[1, count, hidden_size]`, and before them what its states have still to see."""
    owed = lane.cache.owed
    if owed is None:
        return lane, hidden
    places = lane.places if owed.places is None or lane.places is None else torch.cat([owed.places, lane.places], dim=1)
    count = lane.start + lane.count - owed.start
    return replace(lane, start=owed.start, count=count, places=places), torch.cat([owed.hidden, hidden], dim=1)


def _owed_alone(lane: Lane[HybridCache], hidden: torch.Tensor) -> tuple[Lane[HybridCache], torch.Tensor]:
    """Of a lane with what its states have still to see, that alone."""
    count = lane.cache.length - lane.start
    places = None if lane.places is None else lane.places[:, :count]
    return replace(lane, count=count, places=places), hidden[:, :count]
