"""Whom a forwarder carries for. Pure."""

from __future__ import annotations

from collections.abc import Collection, Container

from swarm.config import ForwardConfig
from swarm.net.forwarding.circuits import Status
from swarm.types import PeerId

Pair = tuple[PeerId, PeerId]
"""Of a circuit: who opened it, and to whom."""


def refusal(pair: Pair, open_: Collection[Pair], limits: ForwardConfig, blocked: Container[PeerId]) -> Status | None:
    """Why a circuit is not opened beside those that are open; None: it is."""
    caller, target = pair
    if caller in blocked or target in blocked:
        return Status.PERMISSION_DENIED
    if caller == target:
        return Status.CONNECTION_FAILED
    callers = sum(one == caller for one, _ in open_)
    targets = sum(other == target for _, other in open_)
    if len(open_) >= limits.circuits or callers >= limits.per_caller or targets >= limits.per_target:
        return Status.RESOURCE_LIMIT_EXCEEDED
    return None
