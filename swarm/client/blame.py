"""Who is to blame for what goes wrong in a session, and what follows for its hops. Pure: no clock, no network.

What may be chance is a *doubt*: it is counted until an output comes, and at the second time (later, where the hop may
be innocent) its peer is avoided. What cannot be chance has its peer avoided at once. What fails again and again on the
same step is no server's fault and ends the step.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from swarm.client.diagnosis import Fault, Suspect
from swarm.client.trust import Limits, Link, Needs, Process, Trust
from swarm.config import ClientConfig
from swarm.errors import (
    ComputeFailed,
    ContextTooLong,
    FrameRejected,
    Gap,
    GenerationFailed,
    Implausible,
    LimitExceeded,
    NetworkError,
    PeerUnreachable,
    ProtocolError,
    RemoteError,
    ServerBusy,
    SessionNotFound,
    StreamClosed,
    SwarmError,
)
from swarm.types import Hop, HopKey, PeerId, Route

PATIENCE = 2
"""So many doubts about one peer without any output between them are no chance."""
PATIENCE_BEFORE_GAP = 3
"""The hop before a gap may have sent all that it had."""
SHORTEST_LEAVE, LONGEST_LEAVE = 1.0, 600.0
"""Seconds for which a peer that leaves is avoided, whatever deadline it says."""


class Parting(enum.Enum):
    """How a hop is let go: without a word, so that its server keeps the session for a while; by telling its server; or
    because its server has no such session."""

    DROPPED = "dropped"
    CLOSED = "closed"
    FORGOTTEN = "forgotten"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows: which hops are let go and how, and the error that ends the steps under way, if any does."""

    partings: Mapping[HopKey, Parting] = field(default_factory=dict)
    ends: SwarmError | None = None


NOTHING = Verdict()


class Blame:
    """What went wrong at the hops of one session so far. `trust`: where the verdicts stand for all sessions.

    `now`: the loop's time, in seconds.
    """

    def __init__(self, trust: Trust, config: ClientConfig) -> None:
        self.needs = Needs()
        """What the session holds, and held in this epoch."""
        self.setbacks = 0
        """Attempts to make a route since the last output came."""
        self._trust = trust
        self._config = config
        self._doubts: dict[HopKey, tuple[Hop, int]] = {}
        self._strikes: Counter[PeerId] = Counter()
        self._link_failures: Counter[Link] = Counter()
        self._step_failures = 0

    # ---- how it goes ------------------------------------------------------------------------------------------

    def attempt(self) -> None:
        """A route is about to be made, once more."""
        self.setbacks += 1

    def step_begins(self) -> None:
        """All steps before have their outputs."""
        self._step_failures = 0

    def works(self, hops: Iterable[Hop]) -> None:
        """Outputs came: what is on the route works."""
        if self.setbacks:
            self.setbacks = 0
            self._strikes.clear()
            for hop in hops:
                self._trust.peers.forgive(hop.peer_id)

    # ---- what goes wrong --------------------------------------------------------------------------------------

    def suspect(self, route: Route, suspect: Suspect, now: float) -> Verdict:
        """A step is late, and this is held up by whom."""
        hops, index = route.hops, min(suspect.index, len(route.hops) - 1)
        if suspect.fault is not Fault.LINK or not 0 < suspect.index < len(hops):
            give_up = self._cut_off if suspect.silent and hops[index].server.relayed else self._absent
            return give_up(hops[index], now, suspect.reason)
        self._trust.links.add((hops[index - 1].peer_id, hops[index].peer_id), now, why=suspect.reason)
        if index - 1 not in route.relayed_links:
            return NOTHING
        # Neither the direct way nor the one through here: one of them does not do what it says.
        return _both(*(self._give_up(hop, now, suspect.reason) for hop in hops[index - 1 : index + 1]))

    def leaves(self, hop: Hop, deadline: float, now: float) -> None:
        """Its server goes, in `deadline` seconds; the hop is kept until there is a successor."""
        seconds = min(max(deadline, SHORTEST_LEAVE), LONGEST_LEAVE)
        self._trust.peers.add(hop.peer_id, now, seconds, "is leaving", process=_process(hop))

    def link_down(self, route: Route, index: int, now: float, *, closed_here: bool) -> None:
        """Hop `index` cannot send on. `closed_here`: this client has ended the epoch's streams itself."""
        hops = route.hops
        if index + 1 == len(hops) or index in route.relayed_links:
            if not closed_here:
                self.doubt(hops[index])
            return
        link = hops[index].peer_id, hops[index + 1].peer_id
        self._link_failures[link] += 1
        # Once may be chance, or the next hop's death, which its control stream tells; twice is the link.
        if self._link_failures[link] > 1:
            self._trust.links.add(link, now, why="failed twice")

    def failed(self, hops: Sequence[Hop], index: int, error: SwarmError, now: float) -> Verdict:
        """The server of hop `index` said why it cannot go on."""
        hop, why = hops[index], _said(hops[index], error)
        if isinstance(error, ServerBusy):
            return self._give_up(hop, now, why, error.retry_after)
        if isinstance(error, ContextTooLong):
            return Verdict(ends=error)
        if isinstance(error, FrameRejected):
            return Verdict(ends=self._count_failure(error))
        if self._learns(hop, error):
            return Verdict({hop.key: Parting.CLOSED})
        if isinstance(error, ComputeFailed | LimitExceeded):
            # Another server may compute it; where none does, that ends it.
            return Verdict(self._give_up(hop, now, why).partings, self._count_failure(error))
        if isinstance(error, SessionNotFound):
            # Forgotten, as by a restart: it is opened anew, there or elsewhere.
            self.doubt(hop)
            return Verdict({hop.key: Parting.FORGOTTEN})
        if isinstance(error, Gap):
            # This hop holds less than it said, or the one before left something out.
            self.doubt(hop)
            if index:
                self.doubt(hops[index - 1], PATIENCE_BEFORE_GAP)
            return NOTHING
        return self._give_up(hop, now, why)

    def implausible(
        self, hops: Sequence[Hop], index: int, suspicion: Implausible, now: float, accuser: int | None
    ) -> Verdict:
        """What hop `index` sent cannot be right (-1: what the client sent), by hop `accuser`, or as is seen here.

        All that was computed from it is forgotten, too. Who accuses one after the other is avoided as well.
        """
        if accuser is not None:
            accused = self._trust.accused.setdefault(hops[accuser].peer_id, set())
            accused.add(hops[index].peer_id if index >= 0 else "")
            if index < 0 or len(accused) > 1:
                verdict = self._give_up(hops[accuser], now, "accuses others of what they send")
                return verdict if index < 0 else _both(self._wrong(hops, index, suspicion, now), verdict)
        return self._wrong(hops, index, suspicion, now)

    def _wrong(self, hops: Sequence[Hop], index: int, suspicion: Implausible, now: float) -> Verdict:
        self._give_up(hops[index], now, f"sends what cannot be right: {suspicion.message}")
        partings = {hop.key: Parting.CLOSED for hop in hops[index:]}
        return Verdict(partings, self._count_failure(suspicion))

    def stream_failed(self, hops: Sequence[Hop], index: int, error: SwarmError, now: float) -> Verdict:
        """A data stream between hop `index` and this client ended with this error."""
        if isinstance(error, RemoteError | ContextTooLong):
            return self.failed(hops, index, error, now)
        if isinstance(error, ProtocolError):
            return self._give_up(hops[index], now, _said(hops[index], error))
        self.doubt(hops[index])
        return NOTHING

    def opened(self, hop: Hop, limits: Limits) -> None:
        """Its server says what one session may have there."""
        before = self._trust.limits.get(hop.peer_id, Limits())
        self._trust.limits[hop.peer_id] = replace(limits, refused=before.refused, blocks=len(hop.span))

    def refused(self, hop: Hop, error: SwarmError, now: float) -> Verdict:
        """The hop could not be opened, taken up again, prepared, or reached for data."""
        if isinstance(error, SessionNotFound):
            return Verdict({hop.key: Parting.FORGOTTEN})
        if self._learns(hop, error):
            return Verdict({hop.key: Parting.CLOSED})
        if isinstance(error, PeerUnreachable | StreamClosed) and hop.server.relayed:
            return self._cut_off(hop, now, _said(hop, error))
        if isinstance(error, ServerBusy):
            return self._absent(hop, now, _said(hop, error), error.retry_after)
        there = isinstance(error, RemoteError | ProtocolError)
        return (self._give_up if there else self._absent)(hop, now, _said(hop, error))

    def _learns(self, hop: Hop, error: SwarmError) -> bool:
        """Whether a server says that this is more than it ever allows. It serves those well who ask for less: whoever
        asks for so much goes elsewhere, and it is not avoided."""
        if not isinstance(error, LimitExceeded) or not 0 < error.allowed < error.asked:
            return False
        limits = self._trust.limits.get(hop.peer_id, Limits())
        limits = limits.tightened((error.limit, error.allowed, error.asked), self.needs)
        limits = replace(limits, blocks=len(hop.span))
        self._trust.limits[hop.peer_id] = limits
        return limits.exceeded(self.needs) is not None

    def doubt(self, hop: Hop, patience: int = PATIENCE) -> None:
        """Something went wrong at this hop that may be chance; `patience` times without any output, and it is not."""
        self._doubts.setdefault(hop.key, (hop, patience))

    def judge(self, now: float) -> Verdict:
        """When the reports of an incident are together: count the doubts that nothing else has explained."""
        doubts, self._doubts = self._doubts, {}
        explained = set(self._trust.peers.active(now))
        verdict = NOTHING
        for hop, patience in doubts.values():
            peer_id = hop.peer_id
            if peer_id not in explained:
                self._strikes[peer_id] += 1
                if self._strikes[peer_id] >= patience:
                    verdict = _both(verdict, self._absent(hop, now, "breaks off again and again"))
        return verdict

    def _cut_off(self, hop: Hop, now: float, why: str) -> Verdict:
        """It may be the way to this peer that is gone, a forwarder or what a router translated: there is another, or it
        is back soon."""
        self._trust.peers.add(hop.peer_id, now, why=why, longest=self._config.avoid_peer, process=_process(hop))
        return Verdict({hop.key: Parting.DROPPED})

    def _absent(self, hop: Hop, now: float, why: str, seconds: float | None = None) -> Verdict:
        """As `_give_up`, until its server is started again."""
        return self._give_up(hop, now, why, seconds, _process(hop))

    def _give_up(
        self, hop: Hop, now: float, why: str, seconds: float | None = None, process: Process | None = None
    ) -> Verdict:
        """This peer is not used for a while; its session is let go."""
        if seconds is not None:
            # Longer than the next attempts wait, so that they go elsewhere, however soon it promises room.
            seconds = max(seconds, self._config.retry_base * 2 ** min(self.setbacks, 7))
        self._trust.peers.add(hop.peer_id, now, seconds, why, process=process)
        return Verdict({hop.key: Parting.DROPPED if seconds is None else Parting.CLOSED})

    def _count_failure(self, error: SwarmError) -> SwarmError | None:
        """What fails again and again on the same step is no server's fault: it ends."""
        self._step_failures += 1
        if self._step_failures < self._config.max_step_failures:
            return None
        ends = GenerationFailed(f"the same step failed {self._step_failures} times; the last failure: {error}")
        ends.__cause__ = error
        return ends


def _process(hop: Hop) -> Process:
    return Process(hop.server.instance, hop.server.expires)


def _said(hop: Hop, error: SwarmError) -> str:
    """Why this hop's server cannot be used, as one says it of the server."""
    message = error.message.removeprefix(f"{hop.span} at {hop.peer_id}: ")
    if isinstance(error, ServerBusy):
        return f"has no room now: {message}"
    if isinstance(error, NetworkError):
        return f"could not be reached: {message}"
    return f"refuses: {message}" if isinstance(error, RemoteError) else f"breaks the protocol: {message}"


def _both(*verdicts: Verdict) -> Verdict:
    """All of these."""
    partings = {key: how for verdict in verdicts for key, how in verdict.partings.items()}
    return Verdict(partings, next((verdict.ends for verdict in verdicts if verdict.ends is not None), None))
