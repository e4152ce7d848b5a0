"""What is kept of forward passes so that their gradients need not be computed from the beginning: how much, of whom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from swarm.jobs import Activations
from swarm.server.kept import ITEM_BYTES, Kept
from swarm.types import PeerId

STALE = 120.0
"""Seconds after which who asks for no gradients gives way to who comes."""
GUESS = 24
"""Times what goes into a block, that its activations take, until it is known."""
MARGIN = 1.05
"""More than the last pass took."""


class KeptActivations:
    """Activations of clients by pass, at most `total` bytes of all and `per_client` of each, with what is under way.

    Unlike inputs, they do not give way to newer ones: a batch of which some is too much would lose the rest.
    """

    def __init__(self, total: int, per_client: int) -> None:
        self._kept = Kept[Activations](total, per_client)
        self._factors: dict[str, float] = {}
        """Of what goes into the blocks, by model."""

    @property
    def nbytes(self) -> int:
        """Of everything."""
        return self._kept.nbytes

    @contextmanager
    def room(self, client: PeerId, model: str, given: int, now: float) -> Iterator[int]:
        """Bytes that a pass may take for activations, kept free meanwhile; 0: there is no room. `given`: bytes of what
        goes into all its blocks."""
        wanted = int(given * self._factors.get(model, GUESS) * MARGIN)
        if self._kept.free(client) < wanted:
            self._kept.expire(now - STALE)
        room = min(wanted, self._kept.free(client) - ITEM_BYTES)
        if room <= given:
            yield 0
            return
        with self._kept.under_way(client, room):
            yield room

    def put(self, client: PeerId, name: bytes, activations: Activations, model: str, given: int, now: float) -> None:
        """Keep what a pass has left. As in `room`."""
        self._factors[model] = activations.whole_nbytes / given
        self._kept.put(client, name, activations, activations.nbytes, now)

    def take(self, client: PeerId, name: bytes) -> Activations | None:
        """What is kept of a pass, for who uses it up; None: nothing."""
        return self._kept.pop(client, name)

    def expire(self, horizon: float) -> None:
        """Forget what was kept before `horizon`."""
        self._kept.expire(horizon)
