"""A generation's state along a route, which goes on whatever happens to the servers on it.

docs/protocol.md describes the state machine. One task per session changes the route; whatever goes wrong is noted,
coalesced, and answered by one new epoch: repair the route, ask every hop what it has, decide where each resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from swarm.client.chunks import LARGEST, best_chunk, stage
from swarm.client.diagnosis import Fault, Suspect, find_suspect
from swarm.client.encoding import choose_codecs
from swarm.client.link import Event, HopLink
from swarm.client.resume import HopPlan, HopState, plan_resume
from swarm.client.sequences import Expected, Piece, Sequences, Snapshot
from swarm.client.streams import EpochStreams
from swarm.client.view import View
from swarm.config import ClientConfig
from swarm.errors import (
    ComputeFailed,
    ContextTooLong,
    DaemonFailed,
    FrameRejected,
    Gap,
    GenerationFailed,
    InvalidInput,
    LimitExceeded,
    MissingBlocks,
    ProtocolError,
    RemoteError,
    ServerBusy,
    SessionClosed,
    SessionNotFound,
    StepVoid,
    StreamClosed,
    SwarmError,
)
from swarm.net.base import Host
from swarm.tasks import Tasks, ended
from swarm.types import Hop, Route, Rows, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import Codec, codec_of, offered

log = logging.getLogger(__name__)

T = TypeVar("T")

RECALL = 0.3
"""Seconds to wait for the directory before going on with the servers that are known."""
COALESCE = 0.02
"""Seconds in which reports of one incident come together before it is answered."""
NOTICE_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the user may want to see: `kind` is route, rerouted or waiting; `text` says it in words.

    While waiting, `blocks` are those without a server, none where servers are busy; `seconds`: since when.
    """

    kind: str
    text: str
    route: Route | None = None
    blocks: tuple[tuple[int, int], ...] = ()
    seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Wait:
    """A step whose outputs are on their way."""

    expected: Sequence[Expected]
    done: asyncio.Future[None]


class Session:
    """A session of one model over `span`. All methods belong to the event loop.

    `on_notice` hears of routes, reroutes and waiting.
    """

    def __init__(
        self,
        host: Host,
        view: View,
        span: Span,
        *,
        config: ClientConfig,
        on_notice: Callable[[Notice], None] = lambda notice: None,
        rng: random.Random | None = None,
    ) -> None:
        self.view = view
        self.span = span
        self.row_bytes = row_bytes = view.contract.row_bytes
        self.config = config
        self.reroutes = 0
        self._host = host
        self._on_notice = on_notice
        self._random = rng or random.Random()
        self._sequences = Sequences(row_bytes)
        self._waits: list[_Wait] = []
        self._watcher: asyncio.Task[None] | None = None
        self._backlog: list[pb.Step] = []
        self._epoch = 0
        self._links: tuple[HopLink, ...] = ()
        self._route: Route | None = None
        self._streams: EpochStreams | None = None
        self._pins: dict[int, bytes] = {}
        """The fingerprint of each block, of the first route."""
        self._leaving: set[HopLink] = set()
        self._link_failures: Counter[tuple[str, str]] = Counter()
        self._doubts: dict[HopLink, int] = {}
        self._strikes: Counter[str] = Counter()
        self._step_failures = 0
        self._broken_epoch = -1
        self._setbacks = 0
        self._last_sign = 0.0
        self._trouble = asyncio.Event()
        self._maintainer: asyncio.Task[None] | None = None
        self._tasks = Tasks(log)
        self._goodbyes = Tasks(log)
        """Hops that are told that their session ends."""
        self._closed = False

    def __str__(self) -> str:
        return f"a session on {self.span} of {self.view.model.name}"

    @property
    def route(self) -> Route | None:
        """The route in use, once there is one."""
        return self._route

    @property
    def can_rollback(self) -> bool:
        """Whether the blocks on the route can forget single positions; True as long as there is no route."""
        return all(link.can_rollback for link in self._links)

    def length(self, sequence: int) -> int:
        """Positions that the sequence holds."""
        return self._sequences.length(sequence)

    # ---- steps ------------------------------------------------------------------------------------------------

    async def step(self, rows: Sequence[Rows], operations: Sequence[pb.Operation] = ()) -> list[bytes]:
        """Apply `operations`, compute `rows` along the route, and return the outputs wanted of each.

        Steps may follow each other without waiting for the outputs of those before: they are issued in the order of
        the calls. An operation that ends a sequence makes void what is still awaited of it: StepVoid.

        Survives every failure of servers and links. Raises ContextTooLong and InvalidInput before any work,
        MissingBlocks (or ServerBusy, or NetworkError) when that lasts for `max_wait`, GenerationFailed when the same
        step fails on every server, DaemonFailed when this client's own p2pd is gone, SessionClosed.
        """
        self._check(rows, self._sequences.preview(operations))
        self._sequences.operate(operations)
        self._settle()
        if not self._waits:
            self._step_failures = 0
        issued = [self._sequences.append(row) for row in rows]
        self._issue([piece for piece, _ in issued], operations)
        expected = [outputs for _, outputs in issued]
        if not all(outputs.complete for outputs in expected):
            await self._outputs(expected)
        return [outputs.outputs for outputs in expected]

    def _check(self, rows: Sequence[Rows], lengths: Mapping[int, int]) -> None:
        if self._closed:
            raise SessionClosed("the session is closed")
        if len({row.sequence for row in rows}) < len(rows):
            raise InvalidInput("a sequence is named twice in one step")
        limit = self.view.model.context_length
        for row in rows:
            count, rest = divmod(len(row.hidden), self.row_bytes)
            if rest or not count or not 0 <= row.want <= count:
                raise InvalidInput(f"{len(row.hidden)} bytes of which {row.want} rows of {self.row_bytes} are wanted")
            if row.sequence not in lengths:
                self._sequences.check_new(row.sequence)
            total = lengths.get(row.sequence, 0) + count
            if limit is not None and total > limit:
                raise ContextTooLong(f"{total} positions are more than the {limit} of {self.view.model.name}")

    def _issue(self, pieces: Sequence[Piece], operations: Sequence[pb.Operation]) -> None:
        steps = self._sequences.pack(pieces, self._chunk(sum(piece.count for piece in pieces)))
        if operations:
            first = steps[0] if steps else pb.Step()
            first.operations.extend(operations)
            steps = steps or [first]
        if self._streams is not None:
            self._streams.put(steps)
        else:
            self._backlog.extend(steps)
            self._trouble.set()
        if self._maintainer is None:
            self._maintainer = self._tasks.spawn(self._maintain(), name=f"maintaining {self}")

    def _chunk(self, positions: int) -> int:
        """Into frames of how many positions to cut so many, on the route in use."""
        if self.config.chunk_positions is not None:
            return self.config.chunk_positions
        return best_chunk(positions, [stage(hop) for hop in self._route.hops] if self._route is not None else [])

    async def _outputs(self, expected: Sequence[Expected]) -> None:
        """Wait for outputs, or the error that ends the waiting."""
        wait = _Wait(expected, asyncio.get_running_loop().create_future())
        self._waits.append(wait)
        if len(self._waits) == 1:
            self._last_sign = asyncio.get_running_loop().time()
        if self._streams is None:
            self._trouble.set()
        if self._watcher is None:
            self._watcher = self._tasks.spawn(self._watch(), name=f"watching {self}")
        try:
            await wait.done
        finally:
            self._waits.remove(wait)
            self._sequences.give_up(expected)

    async def _watch(self) -> None:
        """As long as outputs are waited for, look into it when they are late."""
        loop = asyncio.get_running_loop()
        try:
            while self._waits:
                late = loop.time() - self._last_sign >= self.config.late_after
                if late and self._streams is not None:
                    self._look_into(self._streams)
                patience = self.config.probe_interval if late else self.config.late_after
                await asyncio.wait([wait.done for wait in self._waits[-1:]], timeout=patience)
        finally:
            self._watcher = None

    def _on_result(self, step: pb.Step) -> None:
        if self._sequences.deliver(step):
            self._last_sign = asyncio.get_running_loop().time()
            if self._streams is not None:
                self._streams.unconfirmed = 0
            if self._setbacks:
                self._forgive()
            self._settle()

    def _settle(self) -> None:
        """Wake who has all that was waited for, and whose sequence has ended."""
        for wait in self._waits:
            if wait.done.done():
                continue
            if any(outputs.void for outputs in wait.expected):
                wait.done.set_exception(StepVoid("the sequence was ended before its outputs came"))
            elif all(outputs.complete for outputs in wait.expected):
                wait.done.set_result(None)

    def _forgive(self) -> None:
        """Outputs came: what is on the route works."""
        self._setbacks = 0
        self._strikes.clear()
        for link in self._links:
            self.view.peers.forgive(link.hop.peer_id)

    def _fail(self, error: BaseException) -> None:
        for wait in self._waits:
            if not wait.done.done():
                wait.done.set_exception(error)

    # ---- what goes wrong --------------------------------------------------------------------------------------

    def _look_into(self, streams: EpochStreams) -> None:
        """Ask every hop how far it is, and judge by what they last said."""
        now = asyncio.get_running_loop().time()
        frame = (self.config.chunk_positions or LARGEST) * self.row_bytes
        reports = [link.report() for link in streams.links]
        suspect = find_suspect(reports, self._sequences.lengths, now, self.config, frame, streams.unconfirmed)
        if suspect is not None:
            self._blame(streams, suspect)
            return
        for link in streams.links:
            self._tasks.spawn(_quietly(link.probe()), name=f"probing {link}")

    def _blame(self, streams: EpochStreams, suspect: Suspect) -> None:
        index = min(suspect.index, len(streams.links) - 1)
        link, inner = streams.links[index], 0 < suspect.index < len(streams.links)
        log.warning("suspecting %s: %s", link, suspect.reason)
        now = asyncio.get_running_loop().time()
        if suspect.fault is Fault.LINK and inner:
            pair = streams.links[index - 1].hop.peer_id, link.hop.peer_id
            if index - 1 in streams.route.relayed_links:
                # Neither the direct way nor the one through here: one of them does not do what it says.
                self._give_up_on(streams.links[index - 1])
                self._give_up_on(link)
            self.view.links.add(pair, now)
        else:
            self._give_up_on(link)
        self._break()

    def _on_event(self, link: HopLink, event: Event) -> None:
        """A hop says something unasked, or its control stream is lost."""
        if link not in self._links or (isinstance(event, pb.Leaving) and link in self._leaving):
            return
        log.info("%s: %s", link, event)
        if isinstance(event, pb.Leaving):
            self._on_leaving(link, event)
        elif isinstance(event, pb.LinkDown):
            self._on_link_down(link)
        elif isinstance(event, pb.Failure):
            self._on_failure(link, link.error_of(event))
        else:
            self._doubt(link)
        self._break()

    def _on_leaving(self, link: HopLink, event: pb.Leaving) -> None:
        self._leaving.add(link)
        now = asyncio.get_running_loop().time()
        self.view.peers.add(link.hop.peer_id, now, min(max(event.deadline, 1.0), 600.0))

    def _on_link_down(self, link: HopLink) -> None:
        index, relayed = self._links.index(link), self._route.relayed_links if self._route else ()
        if index + 1 == len(self._links) or index in relayed:
            # Unless the client has closed that link itself, because this epoch was broken already.
            if self._broken_epoch != self._epoch:
                self._doubt(link)
        else:
            pair = link.hop.peer_id, self._links[index + 1].hop.peer_id
            self._link_failures[pair] += 1
            # Once may be chance, or the next hop's death, which its control stream tells; twice is the link.
            if self._link_failures[pair] > 1:
                self.view.links.add(pair, asyncio.get_running_loop().time())

    def _on_failure(self, link: HopLink, error: SwarmError) -> None:
        if isinstance(error, ServerBusy):
            self._give_up_on(link, error.retry_after)
        elif isinstance(error, ComputeFailed):
            self._give_up_on(link)
            self._count_failure(error)
        elif isinstance(error, FrameRejected):
            self._count_failure(error)
        elif isinstance(error, ContextTooLong):
            self._fail(error)
        elif isinstance(error, LimitExceeded):
            # Another server may have more room; where none has, the step fails again and again, and that ends it.
            self._give_up_on(link)
            self._count_failure(error)
        elif isinstance(error, SessionNotFound):
            # Forgotten, as by a restart: it is opened anew, there or elsewhere.
            self._doubt(link)
            link.ended = True
            link.drop()
        elif isinstance(error, Gap):
            # This hop holds less than it said, or the one before left something out.
            self._doubt(link)
            for before, after in itertools.pairwise(self._links):
                if after is link:
                    self._doubt(before, 3)
        else:
            self._give_up_on(link)

    def _doubt(self, link: HopLink, patience: int = 2) -> None:
        """Something went wrong at this hop that may be chance; `patience` times without any output, and it is not."""
        self._doubts.setdefault(link, patience)

    def _judge(self) -> None:
        """When the reports of an incident are together: count the doubts that nothing else has explained."""
        doubts, self._doubts = self._doubts, {}
        avoided = self.view.peers.active(asyncio.get_running_loop().time())
        for link, patience in doubts.items():
            if link.hop.peer_id not in avoided:
                self._strikes[link.hop.peer_id] += 1
                if self._strikes[link.hop.peer_id] >= patience:
                    self._give_up_on(link)

    def _count_failure(self, error: SwarmError) -> None:
        """What fails again and again on the same step is no server's fault: it ends."""
        self._step_failures += 1
        if self._step_failures >= self.config.max_step_failures:
            failed = GenerationFailed(f"the same step failed {self._step_failures} times; the last failure: {error}")
            failed.__cause__ = error
            self._fail(failed)

    def _on_broken(self, index: int, error: SwarmError) -> None:
        """A data stream between a hop and this client failed."""
        log.info("the data stream with hop %d failed: %s", index, error)
        if isinstance(error, RemoteError | ContextTooLong):
            self._on_failure(self._links[index], error)
        elif isinstance(error, ProtocolError):
            self._give_up_on(self._links[index])
        else:
            self._doubt(self._links[index])
        self._break()

    def _give_up_on(self, link: HopLink, seconds: float | None = None) -> None:
        """This peer is not used for a while; its session is let go."""
        if seconds is not None:
            # Longer than the next attempts wait, so that they go elsewhere, however soon it promises room.
            seconds = max(seconds, self.config.retry_base * 2 ** min(self._setbacks, 7))
        self.view.peers.add(link.hop.peer_id, asyncio.get_running_loop().time(), seconds)
        link.drop() if seconds is None else self._let_go(link)

    def _let_go(self, link: HopLink) -> None:
        self._goodbyes.spawn(link.close(), name=f"closing {link}")
        link.lost = link.ended = True

    def _break(self) -> None:
        """End this epoch's streams; the maintainer builds the next. Idle sessions wait for their next step."""
        self._broken_epoch = self._epoch
        if self._streams is not None:
            self._streams.close()
            self._streams = None
        if self._waits or self._leaving:
            self._trouble.set()

    # ---- routes -----------------------------------------------------------------------------------------------

    async def _maintain(self) -> None:
        """The one task that changes the route."""
        while True:
            await self._trouble.wait()
            if self._setbacks or self._epoch:
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
        loop = asyncio.get_running_loop()
        began, noticed, refresh = loop.time(), float("-inf"), self.config.view_refresh if self._epoch == 0 else 1.0
        patience: float | None = RECALL
        while self._streams is None:
            try:
                await self._pause()
                self._judge()
                await self.view.refresh(refresh, patience)
                self._setbacks += 1
                await self._connect()
            except (InvalidInput, DaemonFailed):
                raise
            except SwarmError as error:
                patience = None if isinstance(error, MissingBlocks) else RECALL
                waited = loop.time() - began
                self._check_patience(error, waited)
                if isinstance(error, MissingBlocks | ServerBusy) and loop.time() - noticed >= NOTICE_EVERY:
                    noticed = loop.time()
                    text = f"{self.view.model.name}: {error}, since {waited:.0f} s; waiting"
                    blocks = error.blocks if isinstance(error, MissingBlocks) else ()
                    self._notice("waiting", text, blocks, waited)
                if isinstance(error, MissingBlocks):
                    await asyncio.sleep(self.config.retry_base * 5)
            refresh = self.config.retry_base

    def _check_patience(self, error: SwarmError, waited: float) -> None:
        """Raises the error once it has lasted for `max_wait`."""
        log.info("no route after %.1f s: %s", waited, error)
        if self.config.max_wait is None or waited < self.config.max_wait:
            return
        if isinstance(error, MissingBlocks):
            raise MissingBlocks(f"{error}, since {waited:.0f} s (max_wait)", error.blocks) from None
        raise error

    async def _pause(self) -> None:
        """Wait longer with every attempt that brought nothing, with jitter so that clients do not march in step."""
        if self._setbacks > 1:
            longest = min(self.config.retry_base * 2 ** min(self._setbacks - 2, 10), self.config.retry_max)
            await asyncio.sleep(longest * (0.5 + self._random.random() / 2))

    async def _connect(self) -> None:
        """One attempt: choose, open, prepare, decide, resume. Raises SwarmError after noting who failed."""
        await self._reattach()
        route = self._choose()
        links, fresh = self._links_of(route)
        old, self._links, self._route = self._links, links, route
        self._leaving &= set(links)
        for link in old:
            if link not in links:
                self._let_go(link)
        self._epoch += 1
        self._backlog.clear()
        snapshot = self._sequences.snapshot()
        codecs, states = await self._meet(route, links, fresh, snapshot)
        plan = plan_resume(states, snapshot.wanted)
        streams = EpochStreams(route, links, self._epoch, codecs, self._on_result, self._on_broken, self._tasks)
        try:
            for index, error in await streams.open():
                self._give_up_on(links[index])
                raise error
            resumes = [self._resume(p, snapshot) for p in plan.hops]
            await self._all(links, [link.resume(r) for link, r in zip(links, resumes, strict=True)])
            if self._broken_epoch == self._epoch:
                raise StreamClosed("a link broke while the route was made")
        except SwarmError:
            streams.close()
            raise
        self._begin(streams, snapshot, plan.client_from)

    def _begin(self, streams: EpochStreams, snapshot: Snapshot, starts: Mapping[int, int]) -> None:
        self._streams = streams
        again = sum(max(length - starts.get(sequence, 0), 0) for sequence, length in snapshot.lengths.items())
        streams.put(snapshot.steps(starts, self._chunk(again)))
        streams.put(self._backlog)
        self._backlog.clear()
        self._pin(streams.route)
        self._last_sign = asyncio.get_running_loop().time()
        self.reroutes += self._epoch > 1
        self._notice("rerouted" if self._epoch > 1 else "route", str(streams.route))

    def _pin(self, route: Route) -> None:
        """From now on only servers with these very weights count."""
        for hop in route.hops:
            record = hop.server
            for block in hop.span:
                self._pins.setdefault(block, record.fingerprints[block - record.span.first])

    def _choose(self) -> Route:
        """Keep what lives; fill the gaps; else begin anew. A hop that leaves is kept only if nobody can follow it."""
        positions = self._sequences.positions
        if self._route is None:
            return self.view.route(self.span, positions, self._pins)
        lost = {i for i, link in enumerate(self._links) if link.lost}
        leaving = {i for i, link in enumerate(self._links) if link in self._leaving}
        for gone in (lost | leaving, lost) if leaving else (lost,):
            try:
                return self.view.repair(self._route, gone, positions, self._pins)
            except MissingBlocks:
                continue
        return self.view.route(self.span, positions, self._pins)

    async def _reattach(self) -> None:
        """A control stream that was lost may have been just that: take the session up again where the peer answers."""
        lost = [link for link in self._links if link.lost and not link.ended]
        now = asyncio.get_running_loop().time()
        avoided = self.view.peers.active(now)
        tries = [link for link in lost if link.hop.peer_id not in avoided and link not in self._leaving]
        await asyncio.gather(*(self._try_attach(link) for link in tries))

    async def _try_attach(self, link: HopLink) -> None:
        try:
            async with asyncio.timeout(self.config.silence):
                await link.attach()
        except SessionNotFound:
            link.ended = True
            link.drop()
        except (SwarmError, TimeoutError) as error:
            log.info("%s is gone: %s", link, error)
            self._give_up_on(link)

    def _links_of(self, route: Route) -> tuple[tuple[HopLink, ...], list[HopLink]]:
        """A link for every hop, those that are open as they are; and which of them are new."""
        kept = {(link.hop.peer_id, link.hop.span): link for link in self._links if not link.lost}
        links = [
            kept.get((hop.peer_id, hop.span)) or HopLink(self._host, hop, self.config, self._on_event, self._tasks)
            for hop in route.hops
        ]
        return tuple(links), [link for link in links if link not in self._links]

    async def _meet(
        self, route: Route, links: Sequence[HopLink], fresh: Sequence[HopLink], snapshot: Snapshot
    ) -> tuple[list[Codec], list[HopState]]:
        """Open the new links and begin the epoch at all: how each link's states travel, and what each hop has.

        All or nothing: on failure the new ones are closed.
        """
        try:
            unopened = set(fresh)
            if self.config.codec == "auto":
                # How fast the hops are reached decides how they are prepared.
                await self._all(fresh, [link.open(self._open_request(link)) for link in fresh])
                unopened.clear()
            codecs = self._codecs(links)
            requests = self._prepares(route, links, snapshot, [codec.name for codec in codecs])
            asks = [
                link.open(self._open_request(link), request) if link in unopened else link.prepare(request)
                for link, request in zip(links, requests, strict=True)
            ]
            states = [state for state in await self._all(links, asks) if state is not None]
        except (SwarmError, asyncio.CancelledError):
            for link in fresh:
                self._let_go(link)
            raise
        for link in fresh:
            if link.rtt_ms is not None:
                self.view.measured(link.hop.peer_id, link.rtt_ms)
        return codecs, states

    def _open_request(self, link: HopLink) -> pb.Open:
        asked = replace(
            self.view.contract.on(link.hop.span), fingerprints=link.hop.server.contract.on(link.hop.span).fingerprints
        )
        return pb.Open(contract=messages.contract_message(asked), positions=self._sequences.positions)

    async def _all(self, links: Sequence[HopLink], asks: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Ask all at once. Whoever fails is noted; the first failure is raised when all have answered."""
        answers = await asyncio.gather(*asks, return_exceptions=True)
        failures = [(link, a) for link, a in zip(links, answers, strict=True) if isinstance(a, BaseException)]
        for link, error in failures:
            if not isinstance(error, SwarmError):
                raise error
            seconds = error.retry_after if isinstance(error, ServerBusy) else None
            if isinstance(error, SessionNotFound):
                link.ended = True
                link.drop()
            else:
                self._give_up_on(link, seconds)
        if failures:
            raise failures[0][1]
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _codecs(self, links: Sequence[HopLink]) -> list[Codec]:
        """How hidden states travel on every link, from the one into the first hop to the one out of the last."""
        dtype, size = self.view.contract.dtype, self.view.contract.hidden_size
        parties = [link.party for link in links]
        names = choose_codecs(self.config.codec, parties, self.row_bytes, offered(dtype, size))
        return [codec_of(name, dtype, size, self.row_bytes) for name in names]

    def _prepares(
        self, route: Route, links: Sequence[HopLink], snapshot: Snapshot, codecs: Sequence[str]
    ) -> list[pb.Prepare]:
        """Who feeds whom in this epoch."""
        requests = []
        for index, following in enumerate([*links[1:], None]):
            relayed = index in route.relayed_links
            request = pb.Prepare(epoch=self._epoch, sequences=snapshot.manifest, relayed=relayed)
            request.input_codec, request.output_codec = codecs[index], codecs[index + 1]
            if index > 0 and index - 1 not in route.relayed_links:
                request.upstream = links[index - 1].hop.peer_id
            if following is not None and not relayed:
                request.downstream.session = following.session
                request.downstream.record = self.view.newest(following.hop.server).signed
            requests.append(request)
        return requests

    def _resume(self, plan: HopPlan, snapshot: Snapshot) -> pb.Resume:
        return pb.Resume(
            epoch=self._epoch,
            cuts=[pb.Position(sequence=s, position=p) for s, p in plan.cuts.items()],
            replays=[pb.Position(sequence=s, position=p) for s, p in plan.replays.items()],
            wants=[pb.Position(sequence=s, position=p) for s, p in snapshot.wanted.items()],
        )

    def _notice(self, kind: str, text: str, blocks: tuple[tuple[int, int], ...] = (), seconds: float = 0.0) -> None:
        log.log(logging.WARNING if kind == "waiting" else logging.INFO, "%s", text)
        self._on_notice(Notice(kind, text, self._route, blocks, seconds))

    async def trace(self) -> list[tuple[Hop, Sequence[pb.Tally]]]:
        """Where the time of this session's steps went, hop by hop; of hops that do not answer, nothing."""

        async def ask(link: HopLink) -> Sequence[pb.Tally]:
            try:
                return await link.trace()
            except SwarmError:
                return ()

        told = await asyncio.gather(*(ask(link) for link in self._links))
        return [(link.hop, tallies) for link, tallies in zip(self._links, told, strict=True)]

    # ---- the end ----------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Free what the servers hold, at once. A step under way ends with SessionClosed."""
        if self._closed:
            return
        self._closed = True
        self._fail(SessionClosed("the session was closed"))
        await ended(*(task for task in (self._maintainer, self._watcher) if task is not None))
        if self._streams is not None:
            self._streams.close()
            self._streams = None
        await asyncio.gather(self._goodbyes.finished(), *(link.close() for link in self._links))
        await self._tasks.close()


async def _quietly(asking: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(SwarmError):
        await asking
