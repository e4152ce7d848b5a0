"""How the devices of one machine share blocks that were asked for. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from swarm.errors import InvalidInput
from swarm.span import is_inside
from swarm.types import Span


def split(span: Span, block_bytes: Sequence[int], memories: Sequence[int], joined: Sequence[Span] = ()) -> list[Span]:
    """A run of blocks for each device, in their order, as many bytes of blocks as its share of all memories.

    `block_bytes`: what each block of the model costs; `memories`: bytes of each device; `joined`: runs of blocks that
    must stay together. Every device gets at least one block. Raises InvalidInput where there are fewer parts than
    devices.
    """
    cuts = [place for place in range(span.first, span.last + 1) if not is_inside(place, joined)]
    pieces = [Span(first, last) for first, last in itertools.pairwise(cuts)]
    if len(pieces) < len(memories):
        raise InvalidInput(f"blocks {span} are fewer than the {len(memories)} devices: name fewer with --device")
    costs = [sum(block_bytes[block] for block in piece) for piece in pieces]
    whole, total = sum(costs), max(sum(memories), 1)
    parts, first, filled, due = list[Span](), 0, 0, 0.0
    for place, memory in enumerate(memories):
        due += whole * memory / total
        last, left = first, len(memories) - place - 1
        while last < len(pieces) - left and (last == first or filled + costs[last] / 2 <= due or not left):
            filled += costs[last]
            last += 1
        parts.append(Span(pieces[first].first, pieces[last - 1].last))
        first = last
    return parts
