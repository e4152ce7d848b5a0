"""One route of a session, and that it goes on running: what is late on it is looked into, what fails is repaired.

docs/protocol.md describes the state machine. One task per lane changes its route; whatever goes wrong is noted,
coalesced, and answered by one new epoch: repair the route, ask every hop what it has, decide where each resumes. This
file has the waiting and the order of things; who is to blame is decided in `blame`, and `epoch` makes the next epoch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from swarm.client.blame import Blame, Parting, Verdict
from swarm.client.choice import Choice
from swarm.client.chunks import LARGEST
from swarm.client.diagnosis import find_suspect
from swarm.client.epoch import Epochs, Hearing
from swarm.client.fitness import listed
from swarm.client.held import Held
from swarm.client.link import Event, HopLink
from swarm.client.moving import Moves
from swarm.client.overdue import Overdue
from swarm.client.patience import MISSING_PAUSES, Patience, pause
from swarm.client.recalling import Recaller
from swarm.client.sequences import Sequences
from swarm.client.streams import EpochStreams
from swarm.client.vetting import Vetting
from swarm.client.view import View
from swarm.client.weighing import Weighing
from swarm.errors import Implausible, MissingBlocks, SwarmError
from swarm.net.base import Host
from swarm.tasks import Tasks, ended
from swarm.types import HopKey, PeerId, Route, Span
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

RECALL = 0.3
"""Seconds to wait for the directory before going on with the servers that are known."""
COALESCE = 0.02
"""Seconds in which reports of one incident come together before it is answered."""
MOST_HELD = 64 << 20
"""Bytes of hidden states that wait for a spare lane; one that lags further begins anew with all of them."""
SPARE_TRIES = 3
"""Attempts in a row to run a spare lane."""
SPARE_PAUSE = 5.0
"""Seconds until the next."""
PART_EVERY = 15.0
"""Seconds between two looks into the directory for servers of its own, where it shares some with the other lane."""


@dataclass(frozen=True, slots=True)
class Hears:
    """Who hears what happens on a lane: outputs that came, an error that nobody on it can mend, that it begins to run,
    that it is later than usual or broken, and what a user may want to see. `wanted`: whether anybody waits."""

    result: Callable[[Lane, pb.Step], None]
    failed: Callable[[Lane, BaseException], None]
    began: Callable[[Lane], None]
    slow: Callable[[Lane], None]
    notice: Callable[[str, str, tuple[tuple[int, int], ...], float], None]
    wanted: Callable[[], bool]


class Lane:
    """A route over `span`, kept running. `pins`: fingerprints, of all lanes.

    `apart`: what being on a peer costs beside the time, for a spare lane: one that computes what another has computed,
    to go on where that one fails; `wholly_apart`: on no peer of the other one.
    """

    def __init__(
        self,
        host: Host,
        view: View,
        span: Span,
        sequences: Sequences,
        pins: dict[int, bytes],
        tasks: Tasks,
        hears: Hears,
        rng: random.Random,
        apart: Callable[[], Mapping[PeerId, float]] | None = None,
        *,
        wholly_apart: bool = False,
    ) -> None:
        self.view = view
        self.config = view.config
        self.reroutes = 0
        self.spare = apart is not None
        self.blame = Blame(view.trust, view.config)
        self.vetting = Vetting(view.contract, sequences)
        hearing = Hearing(self._on_result, self._on_broken, self._on_event)
        self.epochs = Epochs(
            host,
            view,
            sequences,
            self.blame,
            tasks,
            hearing,
            self.vetting,
            pins,
            Choice(view, span, pins, apart, wholly_apart=wholly_apart),
            recaller=None if self.spare else Recaller(host, view, span, pins),
        )
        self.held = Held()
        self._hears = hears
        self._random = rng
        self._tasks = tasks
        self._overdue = Overdue(self.epochs, view.config, lambda: hears.slow(self), self._look_into)
        self._weighing = Weighing(self.epochs, view, rng)
        self._trouble = asyncio.Event()
        self._maintainer: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self._looked_apart = 0.0
        self._steps = 0
        self._moves = Moves()
        self._moving = False
        self._shorter_ways: set[HopLink] = set()
        """Hops that could take a shorter way to the next one."""

    @property
    def route(self) -> Route | None:
        """The route in use, once there is one."""
        return self.epochs.route

    @property
    def _keys(self) -> list[HopKey]:
        return [link.hop.key for link in self.epochs.links]

    @property
    def late(self) -> bool:
        """Whether its outputs are later than they used to be."""
        return self._overdue.late

    @property
    def running(self) -> bool:
        """Whether steps go along it now."""
        return self.epochs.streams is not None

    def put(self, steps: Iterable[pb.Step]) -> None:
        """Compute steps: now, or as soon as it runs; on a spare lane, when they are released."""
        if self.spare and self.running:
            self.held.hold(steps)
            if self.held.nbytes > MOST_HELD:
                self._break()
        else:
            self._give(steps)

    def _give(self, steps: Iterable[pb.Step]) -> None:
        streams = self.epochs.streams
        idle = streams is not None and not streams.given.awaited
        self.epochs.put(steps)
        if idle:
            self._overdue.sent()
        else:
            self._overdue.watch()

    def renew(self) -> None:
        """Go on with rows of another layout: every hop is opened anew, and gets everything again."""
        self.epochs.renew()
        self._break()

    def ensure(self) -> None:
        """See to it that it runs, or will. A spare lane that failed of late is left alone."""
        if self.running or _now() < self._not_before:
            return
        self._trouble.set()
        if self._maintainer is None:
            self._maintainer = self._tasks.spawn(
                self._maintain(), name=f"maintaining a route of {self.view.model.name}"
            )

    # ---- a spare lane -----------------------------------------------------------------------------------------

    def answered(self, outputs: pb.Step) -> None:
        """The lane that this one stands by for has computed so far."""
        self.held.answered(outputs)
        self._pump()
        self.ensure()
        if _now() >= self._looked_apart + PART_EVERY:
            self.keep_apart()

    def release(self) -> None:
        """What is held is to be computed at once: first answer wins."""
        self.held.release()
        self._pump()

    def keep_apart(self) -> None:
        """Leave servers that the other lane uses, too, where there are others by now."""
        self._looked_apart = _now()
        if self.running and self.epochs.shares:
            self._tasks.spawn(self._part(), name=f"parting routes of {self.view.model.name}")

    async def _part(self) -> None:
        with contextlib.suppress(SwarmError):
            await self.view.refresh(self.config.view_refresh)
        if self.running and self.epochs.part():
            self._break()

    def _pump(self) -> None:
        """Give out what was released, when all before it is answered: so much at a time is under way."""
        streams = self.epochs.streams
        if streams is not None and not streams.given.awaited and (steps := self.held.take(LARGEST)):
            self._give(steps)

    # ---- what comes -------------------------------------------------------------------------------------------

    def _on_result(self, step: pb.Step) -> None:
        streams = self.epochs.streams
        try:
            self.vetting.look(step)
        except Implausible as suspicion:
            self._on_suspicion(len(self.epochs.links) - 1, suspicion)
            return
        self._hears.result(self, step)
        self.vetting.passed()
        if streams is None or not streams.given.came(step):
            return
        self._overdue.came(streams)
        self.blame.works(link.hop for link in self.epochs.links)
        self._steps += 1
        if self._moves.due(_now(), outdated=self._could_move, idle=not streams.given.awaited):
            self._move()
        elif self.spare:
            self._pump()
        elif self._weighing.due():
            self._tasks.spawn(self._weigh(), name=f"weighing a route of {self.view.model.name}")

    @property
    def _could_move(self) -> bool:
        return bool(self._shorter_ways) or self.epochs.outdated

    def _move(self) -> None:
        """Begin an epoch of the same hops, whose streams take the ways that there are now."""
        log.info("a shorter way has come up: the streams of %s move", self.route)
        self._moving = True
        self.epochs.end()
        self.held.clear()
        self.ensure()

    async def _weigh(self) -> None:
        if await self._weighing.look(self._steps):
            log.info("leaving a route for a faster one")
            self._break()

    # ---- what goes wrong --------------------------------------------------------------------------------------

    def _look_into(self, streams: EpochStreams, silence: float) -> None:
        """Ask every hop how far it is, and judge by what they last said: dead, who was silent for `silence` seconds."""
        frame = (self.config.chunk_positions or LARGEST) * self.epochs.row_bytes
        reports, lengths = [link.report() for link in streams.links], streams.given.lengths
        suspect = find_suspect(
            reports, lengths, _now(), self.config, silence, frame, streams.unconfirmed, self._overdue.last_sign
        )
        if suspect is None:
            for link in streams.links:
                self._tasks.spawn(_quietly(link.probe()), name=f"probing {link}")
            return
        log.warning("suspecting %s: %s", streams.links[min(suspect.index, len(streams.links) - 1)], suspect.reason)
        self._carry_out(self.blame.suspect(streams.route, suspect, _now()))
        self._break()

    def _on_event(self, link: HopLink, event: Event) -> None:
        """A hop says something unasked, or its control stream is lost."""
        if isinstance(event, pb.Kept):
            self.epochs.kept(link, event)
            return
        index, route = self.epochs.index_of(link), self.epochs.route
        if index is None or route is None or (isinstance(event, pb.Leaving) and not self.epochs.leaves(link)):
            return
        if isinstance(event, pb.ShorterWay):
            self._shorter_ways.add(link)
            return
        log.info("%s: %s", link, event)
        if isinstance(event, pb.Leaving):
            self.blame.leaves(link.hop, event.deadline, _now())
        elif isinstance(event, pb.LinkDown):
            self.blame.link_down(route, index, _now(), closed_here=self.epochs.is_broken)
        elif isinstance(event, pb.Failure):
            error = link.error_of(event)
            if isinstance(error, Implausible):
                self._on_suspicion(index - 1, error, accuser=index)
                return
            self._carry_out(self.blame.failed(route.hops, index, error, _now()))
        else:
            self.blame.doubt(link.hop)
        self._break()

    def _on_suspicion(self, index: int, suspicion: Implausible, *, accuser: int | None = None) -> None:
        """What hop `index` sent cannot be right: by what came here, or on the word of the hop behind it."""
        links = self.epochs.links
        if links[max(index, 0)].ended:
            return
        log.warning("%s: %s", links[max(index, 0)], suspicion.message)
        told, hops = accuser is not None, [link.hop for link in links]
        if index < 0 or self.vetting.convinced(suspicion, hops[index].peer_id, told=told):
            self._carry_out(self.blame.implausible(hops, index, suspicion, _now(), accuser))
        self._break()

    def expel(self, peers: Collection[PeerId]) -> None:
        """Leave these, who are known to compute wrong, and forget what came of it."""
        hops = [link.hop for link in self.epochs.links]
        first = next((index for index, hop in enumerate(hops) if hop.peer_id in peers), None)
        if first is not None and not self.epochs.links[first].ended:
            self._carry_out(Verdict({hop.key: Parting.CLOSED for hop in hops[first:]}))
            self._break()

    def _on_broken(self, index: int, error: SwarmError) -> None:
        """A data stream between a hop and this client failed."""
        log.info("the data stream with hop %d failed: %s", index, error)
        if isinstance(error, Implausible):
            self._on_suspicion(index - 1, error, accuser=index)
            return
        hops = [link.hop for link in self.epochs.links]
        self._carry_out(self.blame.stream_failed(hops, index, error, _now()))
        self._break()

    def _carry_out(self, verdict: Verdict) -> None:
        self.epochs.carry_out(verdict)
        if verdict.ends is not None:
            self._fail(verdict.ends)

    def _fail(self, error: BaseException) -> None:
        """Nobody on this lane can mend it."""
        if self.spare:
            self._not_before = _now() + SPARE_PAUSE
        self._hears.failed(self, error)

    def _break(self) -> None:
        """End this epoch's streams; the maintainer builds the next. Idle sessions wait for their next step."""
        self.epochs.end()
        self.held.clear()
        if self._hears.wanted():
            self._hears.slow(self)
        if self._hears.wanted() or self.epochs.has_leavers:
            self.ensure()

    # ---- routes -----------------------------------------------------------------------------------------------

    async def _maintain(self) -> None:
        """The one task that changes the route."""
        while True:
            await self._trouble.wait()
            if self.blame.setbacks or self.epochs.number:
                await asyncio.sleep(COALESCE)
            self._trouble.clear()
            try:
                await self._establish()
            except SwarmError as error:
                self._fail(error)
            except Exception as error:
                log.exception("changing the route failed")
                self._fail(error)

    async def _establish(self) -> None:
        """Try until the session runs again. Raises what nobody can mend, and whatever has lasted for `max_wait`."""
        waiting = Patience(self.config, _now(), has_run=self.epochs.has_run)
        refresh = self.config.view_refresh if self.epochs.number == 0 else 1.0
        patience: float | None = RECALL
        tries = 0
        while self.epochs.streams is None:
            try:
                await self._attempt(refresh, patience)
            except SwarmError as error:
                log.info("no route after %.1f s: %s", waiting.waited(_now()), error)
                missing, seen, tries = isinstance(error, MissingBlocks), self._seen(error), tries + 1
                if self.spare and (missing or tries >= SPARE_TRIES):
                    raise
                waiting.bear(error, _now(), seen)
                if not self.spare and waiting.tells(error, _now()):
                    self._notify_waiting(error, seen, waiting.waited(_now()))
                patience = None if missing else RECALL
                if missing:
                    await asyncio.sleep(self.config.retry_base * MISSING_PAUSES)
            refresh = self.config.retry_base

    async def _attempt(self, refresh: float, patience: float | None) -> None:
        """Try once, by a reading of the directory that is at most `refresh` seconds old or takes `patience` seconds."""
        if seconds := pause(self.blame.setbacks, self.config, self._random):
            await asyncio.sleep(seconds)
        self._carry_out(self.blame.judge(_now()))
        moved, self._moving = self._moving, False
        if not moved:
            await self.view.refresh(refresh, patience)
        self.blame.attempt()
        self.held.clear()
        self._shorter_ways.clear()
        hops = self._keys
        await self.epochs.begin()
        moved = moved and self._keys == hops
        self._weighing.begin()
        self._overdue.begin()
        changed = self.epochs.number > 1 and not moved
        self.reroutes += changed
        if self.spare:
            log.info("standing by: %s", self.route)
        elif not moved:
            self._hears.notice("rerouted" if changed else "route", str(self.route), (), 0.0)
        self._hears.began(self)

    def _seen(self, error: SwarmError) -> str:
        """What is the matter, and with whom."""
        misfits = [] if isinstance(error, MissingBlocks) else self.epochs.misfits()
        return f"no route now: {listed(misfits)}" if misfits else error.message

    def _notify_waiting(self, error: SwarmError, seen: str, seconds: float) -> None:
        text = f"{self.view.model.name}: {seen}, since {seconds:.0f} s; waiting"
        self._hears.notice("waiting", text, error.blocks if isinstance(error, MissingBlocks) else (), seconds)

    async def close(self) -> None:
        """Stop, and free what the servers hold, at once."""
        self._overdue.stop()
        await ended(*(task for task in (self._maintainer,) if task is not None))
        await self.epochs.close()


async def _quietly(asking: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(SwarmError):
        await asking


def _now() -> float:
    return asyncio.get_running_loop().time()
