"""How long hidden states are on their way, between any two servers and to the client and back. Pure.

Round trips from here are measured. Those from a server to the nearest that can follow it are in its record; others are
estimated, from coordinates where both have one (`swarm/coordinates.py`), else as the mean of their round trips from
here. Whatever a server says, a way is no shorter than what was measured from here to both its ends allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from swarm.coordinates import DIMENSIONS, Coordinate, round_trip_ms
from swarm.types import MAX_NEAR, PeerId, ServerRecord, digest

VAGUE = 0.9
"""From this error on a coordinate says nothing."""

_NOBODY = -1
_Floats = NDArray[np.float64]
_Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Ways:
    """One way, in ms, one number or row a server.

    `client`: to or from the client; `measured`: the same, not a number where it is an estimate; `apart`: a server's
    part of the way to another, where a coordinate is missing; `points` and `heights`, not numbers where there is none;
    `followers`: the places of servers that it found near, and `near`: how near each is; `radius`: none that it did not
    find is nearer.
    """

    client: _Floats
    measured: _Floats
    apart: _Floats
    points: _Floats
    heights: _Floats
    followers: _Indices
    near: _Floats
    radius: _Floats

    @classmethod
    def of(
        cls,
        servers: Sequence[ServerRecord],
        rtt_ms: Mapping[PeerId, float],
        here: Coordinate | None,
        default_rtt_ms: float,
    ) -> Ways:
        """As far as it is known: `rtt_ms`: measured, from here; `default_rtt_ms`: of whom nothing is known."""
        here = usable(here)
        known = [usable(server.coordinate) for server in servers]
        measured = np.array([rtt_ms.get(server.peer_id, np.nan) for server in servers])
        guessed = [default_rtt_ms if here is None or at is None else round_trip_ms(here, at) for at in known]
        rtt = np.where(np.isnan(measured), guessed, measured)
        nowhere = [np.nan] * (DIMENSIONS + 1)
        table = np.array([nowhere if at is None else [*at.point, at.height] for at in known])
        followers, near = _near(servers)
        full = np.array([len(server.near) >= MAX_NEAR for server in servers])
        radius = np.where(full, near.max(axis=1, initial=0.0), 0.0)
        return cls(rtt / 2, measured / 2, rtt / 4, table[:, :DIMENSIONS], table[:, DIMENSIONS], followers, near, radius)

    @property
    def count(self) -> int:
        """Servers."""
        return len(self.client)

    def between(self, sources: Sequence[int] | _Indices, targets: Sequence[int] | _Indices) -> _Floats:
        """(sources, targets): from each to each."""
        one, other = np.asarray(sources), np.asarray(targets)
        squares = np.square(self.points[one][:, None] - self.points[other][None]).sum(axis=-1)
        estimated = (np.sqrt(squares) + self.heights[one][:, None] + self.heights[other][None]) / 2
        there, beyond = self.measured[one][:, None], self.measured[other][None]
        estimated = np.fmin(estimated, there + beyond)  # it can go through the client
        apart = self.apart[one][:, None] + self.apart[other][None]
        unknown = np.isnan(self.heights[one][:, None] + self.heights[other][None])
        ways: _Floats = np.maximum(np.where(unknown, apart, estimated), self.radius[one][:, None])
        columns = np.full(self.count + 1, _NOBODY)  # the last is nobody's
        columns[other] = np.arange(len(other))
        found = columns[self.followers[one]]
        rows, which = np.nonzero(found != _NOBODY)
        ways[rows, found[rows, which]] = self.near[one][rows, which]
        return np.where(unknown, ways, np.fmax(ways, np.abs(there - beyond)))


def usable(coordinate: Coordinate | None) -> Coordinate | None:
    """The coordinate, where it says something."""
    return None if coordinate is None or coordinate.error >= VAGUE else coordinate


def _near(servers: Sequence[ServerRecord]) -> tuple[_Indices, _Floats]:
    """(servers, some): the places of those near each, `_NOBODY` where there are no more, and the way there in ms."""
    places: dict[bytes, list[int]] = {}
    if any(server.near for server in servers):
        for place, server in enumerate(servers):
            places.setdefault(digest(server.peer_id), []).append(place)
    found = [
        [(place, rtt_ms / 2) for peer, rtt_ms in server.near for place in places.get(peer, ())] for server in servers
    ]
    most = max(map(len, found), default=0)
    followers = np.full((len(servers), most), _NOBODY, dtype=np.intp)
    near = np.zeros((len(servers), most))
    for row, each in enumerate(found):
        if each:
            followers[row, : len(each)], near[row, : len(each)] = zip(*each, strict=True)
    return followers, near
