"""How hidden states travel on each link of a route. Pure: what is offered and what was measured in, names out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.wire.codecs import INT8, RAW

SHORTEST = 1e-6
"""Seconds; a clock that shows less between two answers shows nothing."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second from this client to a server and back; None: not known."""

    up: float | None = None
    down: float | None = None


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """A hop as the end of its links: what it speaks, how fast it is reached, and what it computes in a second."""

    codecs: Sequence[str]
    rates: Rates
    positions_per_second: float


def rates_of(times: Sequence[float], padding: int) -> Rates:
    """Rates from when three probes, sent back to back, were answered: a plain one, one with `padding` bytes, and one
    whose answer had so many. Each waits for the one before, so that the round trip is not in the differences."""
    up, down = ((times[i + 1] - times[i]) if len(times) > i + 1 else None for i in range(2))
    return Rates(*(padding / max(seconds, SHORTEST) if seconds is not None else None for seconds in (up, down)))


def choose_codec(
    bytes_per_second: float | None, row_bytes: int, positions_per_second: float, offered: Sequence[str]
) -> str:
    """`int8` where a prompt would come faster out of the hop's blocks than raw positions of `row_bytes` through the
    wire; `raw` where it would not, where it is not known, and where `int8` is not offered."""
    if INT8 not in offered or bytes_per_second is None:
        return RAW
    return INT8 if row_bytes * positions_per_second > bytes_per_second else RAW


def choose_codecs(setting: str, hops: Sequence[LinkEnd], row_bytes: int, own: Sequence[str]) -> list[str]:
    """The codec of every link of a route: from the client to the first hop, between the hops, from the last one back.

    `setting`: raw, int8 or auto; `own`: what the client speaks. A link that goes through the client has one codec on
    both halves, so that what goes over it is the same as when it is made directly.
    """
    chosen = []
    for before, after in zip([None, *hops], [*hops, None], strict=True):
        ends = [end for end in (before, after) if end is not None]
        common = [name for name in own if all(name in end.codecs for end in ends)]
        if setting == INT8:
            chosen.append(INT8 if INT8 in common else RAW)
        elif setting == RAW:
            chosen.append(RAW)
        else:
            chosen.append(choose_codec(_rate(before, after), row_bytes, ends[-1].positions_per_second, common))
    return chosen


def _rate(before: LinkEnd | None, after: LinkEnd | None) -> float | None:
    """What a link carries: as much as its sender got through to the client, and its receiver from it."""
    known = [before.rates.down if before is not None else None, after.rates.up if after is not None else None]
    return min((rate for rate in known if rate is not None), default=None)
