"""A session at one moment, for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.client.encoding import Rates
from swarm.types import Hop, Route


@dataclass(frozen=True, slots=True)
class HopStatistics:
    """One hop of the route in use: bytes a second there and back, where they were measured, and the round trip."""

    hop: Hop
    rtt_ms: float | None
    rates: Rates


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """A session at one moment. `epochs`: tried so far; `reroutes`: changes of a route that ran; `setbacks`: attempts to
    make a route since the last output; `waiting`: steps whose outputs are on their way; `codecs`: of every link of the
    route, from the one into the first hop to the one out of the last, none while no epoch runs; `standby`: the
    route that stands by, while it runs; `raced`: times that it brought outputs first."""

    epochs: int
    reroutes: int
    setbacks: int
    sequences: int
    positions: int
    waiting: int
    codecs: tuple[str, ...]
    hops: tuple[HopStatistics, ...]
    standby: Route | None = None
    raced: int = 0
