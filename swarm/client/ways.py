"""How long hidden states are on their way, between any two servers and to the client and back. Pure.

Round trips from here are measured; those between others are estimated, from coordinates where both have one
(`swarm/coordinates.py`), else as the mean of their round trips from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from swarm.coordinates import DIMENSIONS, Coordinate, round_trip_ms

if TYPE_CHECKING:
    from swarm.client.routing import Conditions
    from swarm.types import PeerId, ServerRecord

VAGUE = 0.9
"""From this error on a coordinate says nothing."""

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ways:
    """One way, in ms, one number or row a server. `client`: to or from the client; `apart`: a server's part of the way
    to another, where a coordinate is missing; `points` and `heights`, not numbers where there is none."""

    client: _Floats
    apart: _Floats
    measured: _Floats
    points: _Floats
    heights: _Floats

    @classmethod
    def of(cls, servers: Sequence[ServerRecord], conditions: Conditions) -> Ways:
        """As far as it is known under these conditions."""
        rtt = np.array([_rtt_ms(server, conditions) for server in servers])
        nowhere = [np.nan] * (DIMENSIONS + 1)
        known = [usable(server.coordinate) for server in servers]
        table = np.array([nowhere if each is None else [*each.point, each.height] for each in known])
        measured = np.array([conditions.rtt_ms.get(server.peer_id, np.nan) for server in servers]) / 2
        return cls(rtt / 2, rtt / 4, measured, table[:, :DIMENSIONS], table[:, DIMENSIONS])

    @property
    def count(self) -> int:
        """Servers."""
        return len(self.client)

    def between(self, sources: Sequence[int] | NDArray[Any], targets: Sequence[int] | NDArray[Any]) -> _Floats:
        """(sources, targets): from each to each."""
        one, other = np.asarray(sources), np.asarray(targets)
        squares = np.square(self.points[one][:, None] - self.points[other][None]).sum(axis=-1)
        estimated = (np.sqrt(squares) + self.heights[one][:, None] + self.heights[other][None]) / 2
        # Through the client it is no shorter, and by as much as one is farther from here than the other it is long.
        there, beyond = self.measured[one][:, None], self.measured[other][None]
        bounded = np.fmax(np.fmin(estimated, there + beyond), np.abs(there - beyond))
        apart = self.apart[one][:, None] + self.apart[other][None]
        ways: _Floats = np.where(np.isnan(estimated), apart, bounded)
        return ways


def usable(coordinate: Coordinate | None) -> Coordinate | None:
    """The coordinate, where it says something."""
    return None if coordinate is None or coordinate.error >= VAGUE else coordinate


def _rtt_ms(server: ServerRecord, conditions: Conditions) -> float:
    """There and back: as measured, else as estimated, else as what is usual."""
    measured: Mapping[PeerId, float] = conditions.rtt_ms
    if server.peer_id in measured:
        return measured[server.peer_id]
    here, there = usable(conditions.here), usable(server.coordinate)
    return conditions.default_rtt_ms if here is None or there is None else round_trip_ms(here, there)
