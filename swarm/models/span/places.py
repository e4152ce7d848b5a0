"""Whether positions may stand elsewhere than they are counted: tried at load, as the rest of what a span can do."""

from __future__ import annotations

import logging
from typing import Any

import torch

from swarm.models.span.attention.base import Lane
from swarm.models.span.base_model import BaseModel
from swarm.models.span.passes import Passes
from swarm.models.span.probe import close, random_states, run_whole

log = logging.getLogger(__name__)

PLANES = (1, 3, 4)
"""Places of a position in the models there are: one; time, height and width; these and its number in the text."""
COUNTS = (6, 5)
STEPS = 2


def proven_places(model: BaseModel, passes: Passes[Any]) -> int:
    """How many places a position may have at most; 0 where the model takes no positions from outside.

    Each number is tried with gaps between the positions, in two steps and beside a sequence that has none of its own:
    what comes out must be what comes of one step alone, and the stranger must get what it gets alone.
    """
    if not model.takes_positions:
        return 0
    most = 0
    for planes in PLANES:
        try:
            if not _agree(model, passes, planes):
                break
        except Exception as error:  # a model without such positions says so in its own way
            log.debug("no %d places a position: %r", planes, error)
            break
        most = planes
    return most


def _agree(model: BaseModel, passes: Passes[Any], planes: int) -> bool:
    hidden, stranger = random_states(model, COUNTS)
    count = hidden.shape[1]
    places = torch.stack([torch.arange(count) * (2 + plane) + plane for plane in range(planes)]).to(hidden.device)
    whole = passes.run([Lane(0, count, passes.new_cache(), places)], hidden)
    if whole.shape != hidden.shape:
        return False
    caches, first = [passes.new_cache(), passes.new_cache()], count - STEPS
    lanes = [Lane(0, first, caches[0], places[:, :first]), Lane(0, stranger.shape[1], caches[1])]
    head = passes.run(lanes, torch.cat([hidden[:, :first], stranger], dim=1))
    tail = passes.run([Lane(first, STEPS, caches[0], places[:, first:])], hidden[:, first:])
    stepped = torch.cat([head[:, :first], tail], dim=1)
    alone = run_whole(passes, stranger)
    return close(stepped, whole, model.quantized) and close(head[:, first:], alone, model.quantized)
