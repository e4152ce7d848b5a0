"""What a route has given, as it may be looked at again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.client.replay import Past
from swarm.types import Route


@dataclass(frozen=True, slots=True)
class Claim:
    """Outputs of these positions of a sequence whose inputs are `past`."""

    sequence: int
    past: Past
    positions: Sequence[int]
    outputs: bytes
    route: Route
