"""Which server is asked for the ends of a model. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from swarm.types import PeerId, ServerRecord, ServerState

WORTH = 2.0
"""How many times as long another takes that is left: what answers take varies."""


def offering(records: Iterable[ServerRecord], dtype: str, vocabulary: int) -> list[ServerRecord]:
    """Those that have the ends of this model and compute in `dtype`, whatever they have its blocks on; one a peer."""
    fit = {
        record.peer_id: record
        for record in records
        if record.ends is not None
        and record.ends.vocabulary == vocabulary
        and record.contract.dtype == dtype
        and record.state is ServerState.ONLINE
    }
    return list(fit.values())


def agreed(records: Sequence[ServerRecord], known: bytes | None) -> bytes | None:
    """The beginning of the fingerprint that is asked for: the one that is `known` to have been in use, else the one of
    most servers; None: nobody has any."""
    if known is not None:
        return known
    votes: dict[bytes, int] = {}
    for record in records:
        if record.ends is not None:
            votes[record.ends.fingerprint] = votes.get(record.ends.fingerprint, 0) + 1
    return max(votes, key=lambda mark: (votes[mark], mark), default=None)


def nearest(
    records: Iterable[ServerRecord],
    fingerprint: bytes,
    seen_ms: Mapping[PeerId, float],
    rtt_ms: Mapping[PeerId, float],
    avoided: Collection[PeerId],
    last: PeerId | None = None,
) -> ServerRecord | None:
    """Who answers soonest of those that have these ends; None: nobody is left. `seen_ms`: what answers took; `rtt_ms`:
    measured round trips of those that were not asked yet; `last`: who was asked last, and is left for one that is twice
    as soon."""
    usual = min(rtt_ms.values(), default=50.0)

    def cost(record: ServerRecord) -> tuple[float, PeerId]:
        head_ms = 0.0 if record.ends is None else record.ends.head_ms
        return seen_ms.get(record.peer_id, rtt_ms.get(record.peer_id, usual) + head_ms), record.peer_id

    fit = [
        record
        for record in records
        if record.ends is not None and record.ends.fingerprint == fingerprint and record.peer_id not in avoided
    ]
    best = min(fit, key=cost, default=None)
    known = next((record for record in fit if record.peer_id == last), None)
    return known if best is not None and known is not None and cost(known)[0] <= WORTH * cost(best)[0] else best
