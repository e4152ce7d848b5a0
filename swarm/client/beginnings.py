"""What a client remembers of the prompts that it sent: how they began, and which hops keep what of them. Pure.

Prompts are compared here by the client's own inputs, which say only where it may pay to ask. What a hop has it finds
by its own hashes of what comes in.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from swarm.types import HopKey, Route
from swarm.wire.rows import RowLog

GRAIN = 64
"""Positions that one label stands for, with all before them. What is shorter is computed as soon as asked about."""
MOST_LABELS = 2048
"""Of one prompt; what is beyond is not compared."""
MOST_PROMPTS = 64
LABEL_BYTES = 16
SEEN_BYTES = 64
"""Of each position's inputs, at either end: enough to tell tokens apart."""


def labels_of(log: RowLog, positions: int) -> tuple[bytes, ...]:
    """One for every whole `GRAIN` of the first `positions` of a sequence's inputs, each over all up to its end."""
    label, found = b"", list[bytes]()
    for start in range(0, min(positions // GRAIN, MOST_LABELS) * GRAIN, GRAIN):
        rows = np.frombuffer(log.read(start, start + GRAIN), np.uint8).reshape(GRAIN, log.row_bytes)
        ends = rows[:, :SEEN_BYTES].tobytes() + rows[:, -SEEN_BYTES:].tobytes()
        label = blake2b(label + ends, digest_size=LABEL_BYTES).digest()
        found.append(label)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Holding:
    """What a hop keeps of a prompt: so many positions, told of under this digest."""

    positions: int
    digest: bytes


@dataclass(slots=True, eq=False)
class _Prompt:
    labels: tuple[bytes, ...]
    route: Route
    held: dict[HopKey, Holding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """A route that an earlier prompt took, and what its hops keep of that which begins as the new one does."""

    route: Route
    held: dict[HopKey, Holding]


class Beginnings:
    """The last `MOST_PROMPTS` prompts of a client of which hops keep something, the least recently used first."""

    def __init__(self) -> None:
        self._prompts: list[_Prompt] = []

    def __len__(self) -> int:
        return len(self._prompts)

    def note(self, labels: Sequence[bytes], route: Route, hop: HopKey, holding: Holding) -> None:
        """A hop of `route` keeps the beginning of a prompt, whose labels are these."""
        if not labels:
            return
        prompt = self._going_on(labels, route)
        if prompt is None:
            prompt = _Prompt(tuple(labels), route)
        else:
            self._prompts.remove(prompt)
        prompt.labels = max(prompt.labels, tuple(labels), key=len)
        # What is behind the last label could be another prompt's.
        told = Holding(min(holding.positions, len(labels) * GRAIN), holding.digest)
        if hop not in prompt.held or prompt.held[hop].positions <= told.positions:
            prompt.held[hop] = told
        self._prompts.append(prompt)
        del self._prompts[:-MOST_PROMPTS]

    def _going_on(self, labels: Sequence[bytes], route: Route) -> _Prompt | None:
        """The prompt on this route of which one is the beginning of the other."""
        keys = [hop.key for hop in route.hops]
        for prompt in reversed(self._prompts):
            shorter = min(len(prompt.labels), len(labels))
            if prompt.labels[shorter - 1] == labels[shorter - 1] and [hop.key for hop in prompt.route.hops] == keys:
                return prompt
        return None

    def forget(self, hop: HopKey, digest: bytes) -> None:
        """A hop does not keep this any more."""
        for prompt in self._prompts:
            if hop in prompt.held and prompt.held[hop].digest == digest:
                del prompt.held[hop]
        self._prompts = [prompt for prompt in self._prompts if prompt.held]

    def matches(self, labels: Sequence[bytes]) -> list[Match]:
        """The prompts that began as the one with these labels does, those that agree longest first."""
        found = []
        for prompt in self._prompts:
            common = _common(prompt.labels, labels) * GRAIN
            if common:
                held = {hop: Holding(min(each.positions, common), each.digest) for hop, each in prompt.held.items()}
                found.append((common, Match(prompt.route, held)))
        return [match for _, match in sorted(found, key=lambda each: each[0], reverse=True)]


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many labels two prompts share: where one agrees, all before it do."""
    shorter = min(len(one), len(other))
    return bisect.bisect_left(range(shorter), True, key=lambda index: one[index] != other[index])
