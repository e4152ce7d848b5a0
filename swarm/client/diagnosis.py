"""Who holds up a step that is late. Pure: what the hops last said goes in, a suspect or patience comes out."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swarm.config import ClientConfig


@dataclass(frozen=True, slots=True)
class Moved:
    """How far one sequence has come at one hop: positions received, computed, forwarded."""

    received: int = 0
    computed: int = 0
    forwarded: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a hop last said. `unanswered_since`: when the oldest probe without an answer was sent (None: all are
    answered); `changed`: when anything it said last changed; `heard`: whether it has said anything in this epoch."""

    unanswered_since: float | None
    changed: float
    moved: Mapping[int, Moved]
    heard: bool = True


class Fault(enum.Enum):
    """A peer is silent or hung; or the link into hop `index` moves nothing (index = number of hops: the client's)."""

    PEER = "peer"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Suspect:
    """What to route around, and why."""

    fault: Fault
    index: int
    reason: str
    silent: bool = False
    """Whether nothing comes from it at all: it may be the way to it that is gone."""


IN_FLIGHT = 1 << 20
"""Bytes that may be under way on a link, in buffers that nobody can look into; a probe queues behind them."""


def find_suspect(
    reports: Sequence[Report],
    targets: Mapping[int, int],
    now: float,
    config: ClientConfig,
    silence: float,
    frame_bytes: int = 0,
    sent_bytes: int = 0,
    since: float = float("-inf"),
) -> Suspect | None:
    """The first hop or link in the chain that fails, or None: everybody works or there is reason to wait.

    `targets`: how far each sequence must come; `silence`: seconds for which a probe may be unanswered; `frame_bytes`:
    the largest frame, which a slow link may take long for; `sent_bytes`: what went to the first hop and may still be on
    its way; `since`: when the last outputs came: what was said before them is old.
    """
    behind = min(sent_bytes, IN_FLIGHT) / config.slowest_rate
    for index, report in enumerate(reports):
        allowed = silence + (behind if index == 0 else 0.0)
        if report.unanswered_since is not None and now - report.unanswered_since > allowed:
            reason = f"no answer for {now - report.unanswered_since:.1f} s"
            return Suspect(Fault.PEER, index, reason, silent=True)
    if not all(report.heard for report in reports):
        return None
    stall = config.stall + frame_bytes / config.slowest_rate
    for index, report in enumerate(reports):
        quiet = now - max(report.changed, since)
        if _behind(report, targets, "received"):
            reason = f"nothing has come in for {quiet:.1f} s though the upstream sent"
            return Suspect(Fault.LINK, index, reason) if quiet > stall else None
        if _behind(report, targets, "computed"):
            reason = f"the engine has not moved for {quiet:.1f} s"
            return Suspect(Fault.PEER, index, reason) if quiet > config.engine_stall else None
        if _behind(report, targets, "forwarded"):
            reason = f"nothing has gone out for {quiet:.1f} s though it is computed"
            return Suspect(Fault.LINK, index + 1, reason) if quiet > stall else None
    quiet = now - max([since, *(report.changed for report in reports)]) if reports else 0.0
    if quiet > stall:
        return Suspect(Fault.LINK, len(reports), f"results have been on their way for {quiet:.1f} s")
    return None


def _behind(report: Report, targets: Mapping[int, int], stage: str) -> bool:
    return any(getattr(report.moved.get(s, Moved()), stage) < target for s, target in targets.items())
