"""How the devices of one machine share blocks that were asked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.errors import InvalidInput
from swarm.types import Span


def split(span: Span, block_bytes: Sequence[int], memories: Sequence[int]) -> list[Span]:
    """A run of blocks for each device, in their order, as many bytes of blocks as its share of all memories.

    `block_bytes`: what each block of the model costs; `memories`: bytes of each device. Every device gets at least one
    block. Raises InvalidInput where there are fewer blocks than devices.
    """
    if len(span) < len(memories):
        raise InvalidInput(f"blocks {span} are fewer than the {len(memories)} devices: name fewer with --device")
    whole, total = sum(block_bytes[block] for block in span), max(sum(memories), 1)
    parts, first, filled, due = list[Span](), span.first, 0, 0.0
    for place, memory in enumerate(memories):
        due += whole * memory / total
        last, left = first, len(memories) - place - 1
        while last < span.last - left and (last == first or filled + block_bytes[last] / 2 <= due or not left):
            filled += block_bytes[last]
            last += 1
        parts.append(Span(first, last))
        first = last
    return parts
