"""How a session's epochs begin: choose the hops, meet them, ask what each has, decide where each goes on, resume.

docs/protocol.md describes the steps. Whoever calls decides when; an attempt is all or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarm.client.blame import Blame, Parting, Verdict
from swarm.client.choice import Choice
from swarm.client.chunks import best_chunk, grain_of, stage
from swarm.client.fitness import Misfit
from swarm.client.given import Given
from swarm.client.link import Event, HopLink
from swarm.client.meeting import Meeting
from swarm.client.recalling import Recaller
from swarm.client.resume import HopPlan, HopState, plan_resume
from swarm.client.sequences import Sequences, Snapshot
from swarm.client.streams import EpochStreams
from swarm.client.trust import Needs
from swarm.client.vetting import Vetting
from swarm.client.view import View
from swarm.errors import MissingBlocks, StreamClosed, SwarmError
from swarm.net.base import Host
from swarm.tasks import Tasks
from swarm.types import PeerId, Route
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import Codec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Hearing:
    """Who hears what comes in an epoch: results, that hop `index`'s data stream failed, what a hop says unasked."""

    result: Callable[[pb.Step], None]
    broken: Callable[[int, SwarmError], None]
    event: Callable[[HopLink, Event], None]


class Epochs:
    """The hops that a session has open, the streams of its present epoch, and how the next one is begun.

    `codec`: how hidden states travel, None: as the view is configured; `recaller`: knows where prompts are kept, None:
    it does not matter.
    `number`: of the last epoch that was tried, 0 before the first; `streams`: of the present one, None while there is
    none that runs; `links`: one a hop of `route`.
    """

    def __init__(
        self,
        host: Host,
        view: View,
        sequences: Sequences,
        blame: Blame,
        tasks: Tasks,
        hearing: Hearing,
        vetting: Vetting,
        pins: dict[int, bytes],
        choice: Choice,
        *,
        codec: str | None = None,
        recaller: Recaller | None = None,
    ) -> None:
        self.number = 0
        self.route: Route | None = None
        self.links: tuple[HopLink, ...] = ()
        self.streams: EpochStreams | None = None
        self._host = host
        self._view = view
        self._sequences = sequences
        self._blame = blame
        self._tasks = tasks
        self._goodbyes = Tasks(log)
        """Hops that are told that their session ends."""
        self._hearing = hearing
        self._backlog: list[pb.Step] = []
        self._broken = -1
        self._leaving: set[HopLink] = set()
        self._beginning = False
        self._choice = choice
        self._recaller = recaller
        how = codec or view.config.codec
        self._meeting = Meeting(host, view, sequences, blame, how, self.carry_out, vetting)
        self._pins = pins
        """The fingerprint of each block, of the first route: later hops must have the same weights."""

    # ---- the present one --------------------------------------------------------------------------------------

    def put(self, steps: Iterable[pb.Step]) -> None:
        """Send steps to the first hop, now or when the epoch that begins runs; a later one sends all there is."""
        steps = list(steps)
        if self.streams is not None:
            self.streams.put(steps)
        elif self._beginning:
            self._backlog.extend(steps)
        else:
            return
        self._count(steps)

    def _count(self, steps: Sequence[pb.Step]) -> None:
        """All hops are going to compute these, and to be signed for them."""
        for link in self.links:
            if link.paying is not None:
                link.paying.sent(steps)

    def chunk(self, positions: int) -> int:
        """Into frames of how many positions to cut so many, on the route in use."""
        if self._view.config.chunk_positions is not None:
            return self._view.config.chunk_positions
        stages = [stage(hop) for hop in self.route.hops] if self.route is not None else []
        return best_chunk(positions, stages, self.grain)

    @property
    def grain(self) -> int:
        """Frames are cut at multiples of so many positions, where the hops of the route compare prompts."""
        return grain_of(link.prefix_chunk for link in self.links)

    @property
    def is_broken(self) -> bool:
        """Whether the last epoch was ended from here."""
        return self._broken == self.number

    def end(self) -> None:
        """End this epoch's streams; the hops stay open."""
        self._broken = self.number
        if self.streams is not None:
            self.streams.close()
            self.streams = None

    def renew(self) -> None:
        """Open all hops anew in the next epoch: rows are laid out otherwise from now on."""
        self.end()
        for link in self.links:
            self._let_go(link)

    @property
    def row_bytes(self) -> int:
        """Of one position, as it is kept."""
        return self._sequences.row_bytes

    @property
    def outdated(self) -> bool:
        """Whether a stream of this client could take a shorter way."""
        return any(link.outdated for link in self.links) or (self.streams is not None and self.streams.outdated)

    def index_of(self, link: HopLink) -> int | None:
        """Which hop of the route it is; None: none any more."""
        return self.links.index(link) if link in self.links else None

    @property
    def has_leavers(self) -> bool:
        """Whether a hop's server goes, and a successor is to be found."""
        return bool(self._leaving)

    def kept(self, link: HopLink, kept: pb.Kept) -> None:
        """A hop says what it keeps of a prompt."""
        if self._recaller is not None and self.route is not None and link in self.links:
            self._recaller.note(link.hop, kept, self.route, self._sequences)

    def leaves(self, link: HopLink) -> bool:
        """Note that this hop's server goes. False if that is known already."""
        known = link in self._leaving
        self._leaving.add(link)
        return not known

    def carry_out(self, verdict: Verdict) -> None:
        """Let go of the hops that are to be let go."""
        for link in self.links:
            match verdict.partings.get(link.hop.key):
                case Parting.DROPPED:
                    link.drop()
                case Parting.CLOSED:
                    self._let_go(link)
                case Parting.FORGOTTEN:
                    link.ended = True
                    link.drop()

    def _let_go(self, link: HopLink) -> None:
        self._goodbyes.spawn(link.close(), name=f"closing {link}")
        link.lost = link.ended = True

    async def close(self) -> None:
        """End it all, and free what the hops hold, at once."""
        self.end()
        await asyncio.gather(self._goodbyes.finished(), *(link.close() for link in self.links))

    @property
    def has_run(self) -> bool:
        """Whether any session on this model has run, in this client: servers like those that it had may come back."""
        return self._view.has_run

    def admit(self, needs: Needs) -> None:
        """See to it that the hops may hold so much: what is too much for one of them ends the present epoch.

        Raises LimitExceeded or ContextTooLong, and changes nothing, where it is too much for every server.
        """
        self._blame.needs = self._blame.needs.most(needs)
        if not any(link.limits.exceeded(needs) for link in self.links):
            return
        with contextlib.suppress(MissingBlocks):
            self._choice.look(needs)
        self.end()

    def misfits(self) -> list[Misfit]:
        """The servers that cannot be used now, and why."""
        return self._choice.misfits(self._sequences.needs)

    # ---- the next one -----------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """One attempt. Raises SwarmError after blaming who failed; then no streams run."""
        try:
            await self._begin()
        finally:
            self._beginning = False

    async def _begin(self) -> None:
        await self._reattach()
        route = await self._recalled() or self._choose()
        fresh = self._take(route)
        self.number += 1
        self._backlog.clear()
        self._beginning = True
        snapshot = self._sequences.snapshot()
        self._blame.needs = self._sequences.needs
        codecs, states = await self._meet(route, fresh, snapshot)
        plan = plan_resume(states, snapshot.wanted)
        anew = not any(state.held for state in states)
        for link, state, resumed in zip(self.links, states, plan.hops, strict=True):
            if link.paying is not None and not anew:
                link.paying.again(_lacking(snapshot, state, resumed))
        streams = EpochStreams(
            route,
            self.links,
            self.number,
            codecs,
            self._hearing.result,
            self._hearing.broken,
            self._tasks,
            Given(snapshot.lengths, snapshot.wanted),
        )
        try:
            await self._open(streams)
            await self._meeting.resume(self.number, self.links, plan.hops, snapshot.wanted)
            if self.is_broken:
                raise StreamClosed("a link broke while the route was made")
        except SwarmError:
            streams.close()
            raise
        self._run(streams, snapshot, plan.client_from, anew=anew)

    async def _reattach(self) -> None:
        """A control stream that was lost may have been just that: take the session up again where the peer answers. So
        does one move that could take a shorter way."""
        lost = [link for link in self.links if (link.lost or link.outdated) and not link.ended]
        avoided = self._view.trust.peers.active(_now())
        tries = [link for link in lost if link.hop.peer_id not in avoided and link not in self._leaving]
        await asyncio.gather(*(self._try_attach(link) for link in tries))

    async def _try_attach(self, link: HopLink) -> None:
        silence = self._view.config.silence
        try:
            async with asyncio.timeout(silence):
                await link.attach()
        except (SwarmError, TimeoutError) as error:
            if not link.lost:
                log.info("%s stays on the longer way: %s", link, error)
                return
            log.info("%s is gone: %s", link, error)
            told = error if isinstance(error, SwarmError) else StreamClosed(f"{link}: silent for {silence:.0f} s")
            self.carry_out(self._blame.refused(link.hop, told, _now()))

    async def _recalled(self) -> Route | None:
        """The first route, where something is known of such a prompt."""
        if self.route is not None or self._recaller is None:
            return None
        return await self._recaller.route(self._sequences.needs, self._sequences)

    def _choose(self) -> Route:
        needs = self._sequences.needs
        lost = {i for i, link in enumerate(self.links) if link.lost or link.limits.exceeded(needs)}
        leaving = {i for i, link in enumerate(self.links) if link in self._leaving}
        return self._choice.next(self.route, lost, leaving, needs)

    @property
    def shares(self) -> bool:
        """Whether its route has peers that are to be kept away from."""
        return self.route is not None and bool(self._choice.shared(self.route))

    def part(self) -> bool:
        """Whether there are other servers by now for hops on such peers: then these are let go in the next epoch."""
        return self.route is not None and self.leave(self._choice.spared(self.route, self._sequences.needs))

    def outdone(self, steps: int) -> set[PeerId]:
        """The peers to leave for a faster route, after so many steps; none where that is not worth it."""
        if self.route is None:
            return set()
        return self._choice.outdone(self.route, self._sequences.needs, steps, self._sequences.positions)

    def leave(self, peers: Container[PeerId]) -> bool:
        """Let the hops on these peers go in the next epoch. False: there are none."""
        going = {link for link in self.links if link.hop.peer_id in peers}
        self._leaving |= going
        return bool(going)

    def _take(self, route: Route) -> list[HopLink]:
        """A link for every hop, those that are open as they are; the others are let go. Returns which are new."""
        old, kept = self.links, {link.hop.key: link for link in self.links if not link.lost}
        config, event, payer = self._view.config, self._hearing.event, self._view.usable_payer
        self.links = tuple(
            kept.get(hop.key) or HopLink(self._host, hop, config, event, self._tasks, payer) for hop in route.hops
        )
        self.route = route
        self._leaving &= set(self.links)
        for link in old:
            if link not in self.links:
                self._let_go(link)
        return [link for link in self.links if link not in old]

    async def _meet(
        self, route: Route, fresh: Sequence[HopLink], snapshot: Snapshot
    ) -> tuple[list[Codec], list[HopState]]:
        """All or nothing: on failure the new ones are closed."""
        try:
            return await self._meeting.meet(self.number, route, self.links, fresh, snapshot)
        except (SwarmError, asyncio.CancelledError):
            for link in fresh:
                self._let_go(link)
            raise

    async def _open(self, streams: EpochStreams) -> None:
        """Open the data streams. Raises the first error after blaming its hop."""
        for index, error in await streams.open():
            self.carry_out(self._blame.refused(self.links[index].hop, error, _now()))
            raise error

    def _run(self, streams: EpochStreams, snapshot: Snapshot, starts: Mapping[int, int], *, anew: bool) -> None:
        """From now on steps go out: first what the hops lack, `anew` where that is all, then what was issued in the
        meantime."""
        self.streams = streams
        self._view.has_run = True
        again = sum(max(length - starts.get(sequence, 0), 0) for sequence, length in snapshot.lengths.items())
        steps = list(snapshot.steps(starts, self.chunk(again), self.grain))
        if anew:
            self._count(steps)
        streams.put(steps)
        streams.put(self._backlog)
        self._backlog.clear()
        for hop in streams.route.hops:
            for block, fingerprint in zip(hop.span, hop.server.contract.on(hop.span).fingerprints, strict=True):
                self._pins.setdefault(block, fingerprint)


def _lacking(snapshot: Snapshot, state: HopState, plan: HopPlan) -> int:
    """Positions that a hop has to compute to have all that was issued."""
    held = {sequence: holding.length for sequence, holding in state.held.items()}
    kept = {sequence: min(length, plan.cuts.get(sequence, length)) for sequence, length in held.items()}
    return sum(max(length - kept.get(sequence, 0), 0) for sequence, length in snapshot.lengths.items())


def _now() -> float:
    return asyncio.get_running_loop().time()
