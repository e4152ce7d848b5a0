"""Forward and backward passes over whole sequences through remote blocks, that go on whatever happens to the servers.

A pass is cut into parts, which are on different hops at a time, and hops hand on to each other what they computed. What
failed at one server is asked of another: what goes into it is had from the hop before, which has kept its own inputs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from swarm.client.blame import Blame
from swarm.client.matrices import NOTHING, Blob, Matrices
from swarm.client.patience import MISSING_PAUSES, Patience
from swarm.client.routing import find_route
from swarm.client.session import Notice
from swarm.client.training_chain import Outcome, along
from swarm.client.training_link import Answer, Lacking, NothingCame, TrainingLink, Way
from swarm.client.training_parts import Found, Leg, Part, Passed, parts_of, split
from swarm.client.trust import Needs
from swarm.client.view import NOTHING_YET, View
from swarm.config import ClientConfig
from swarm.errors import (
    ComputeFailed,
    InvalidInput,
    LimitExceeded,
    MissingBlocks,
    NetworkError,
    NoServerFits,
    SwarmError,
)
from swarm.net.base import Host
from swarm.tasks import ended
from swarm.types import Hop, HopKey, PeerId, Route, Span
from swarm.wire.codecs import values_of

log = logging.getLogger(__name__)

T = TypeVar("T")

PARTS_AT_ONCE = 8
"""At least, and twice as many as there are hops."""
STRIDE, MOST_SEED = 0x9E3779B97F4A7C15, (1 << 64) - 1
"""Between the seeds of two parts."""


class Training:
    """Passes through the remote blocks `span` of a model. All methods belong to the event loop."""

    def __init__(
        self,
        host: Host,
        view: View,
        span: Span,
        *,
        config: ClientConfig,
        on_notice: Callable[[Notice], None] = lambda notice: None,
    ) -> None:
        self.view = view
        self.span = span
        self.row_bytes = view.contract.row_bytes
        self._host = host
        self._config = config
        self._on_notice = on_notice
        self._pins: dict[int, bytes] = {}
        """The fingerprint of each block of the first route: gradients are of one set of weights."""
        self._hops: dict[int, Hop] = {}
        """Who computes from a block on."""
        self._small: dict[PeerId, LimitExceeded] = {}
        """Who never takes so much as was asked."""
        self._adapted: dict[HopKey, bytes] = {}
        self._adapting: dict[HopKey, asyncio.Lock] = {}
        self._blame = Blame(view.trust, config)

    # ---- passes -----------------------------------------------------------------------------------------------

    async def forward(
        self, sequences: Sequence[bytes], matrices: Matrices = NOTHING, seed: int = 0, first: int | None = None
    ) -> Passed:
        """Whole sequences, each as the bytes of its hidden states, through all blocks with what an adapter adds.

        `seed`: of what it drops of its inputs, 0 for nothing; `first`: as `backward` will be asked, as far as is known.

        Survives every failure of servers and links. Raises what `Session.step` raises; NoServerFits, too, where no
        server of some blocks takes training.
        """
        counts = [self._count(sequence) for sequence in sequences]
        parts, begin = list[Part](), 0
        await self._hop(self.span)
        for group in parts_of(counts, self._route_length()):
            drawn = (seed + len(parts) * STRIDE) & MOST_SEED if seed else 0
            parts.append(Part(group, b"".join(sequences[begin : begin + len(group)]), drawn))
            begin += len(group)
        self._blame.step_begins()
        places = self._places()
        await self._all([self._go(part, matrices, first, places) for part in parts])
        outputs = [each for part in parts for each in split(part.outputs, part.counts, self.row_bytes)]
        return Passed(tuple(parts), tuple(outputs), matrices)

    async def backward(self, passed: Passed, gradients: Sequence[bytes], first: int | None = None) -> Found:
        """The gradients of each sequence's inputs, and of the adapter, from those of its outputs. Raises as `forward`.

        `first`: those of the inputs are not wanted, but of the adapter from this block on; None: all are.
        """
        wanted, begin = list[bytes](), 0
        for part in passed.parts:
            wanted.append(b"".join(gradients[begin : begin + len(part.counts)]))
            begin += len(part.counts)
        self._blame.step_begins()
        places, pairs = self._places(), list(zip(passed.parts, wanted, strict=True))
        # Servers that have not room for all forget the oldest first: so the youngest go back first.
        works = [self._return(part, each, passed.matrices, first, places) for part, each in reversed(pairs)]
        found = list(reversed(await self._all(works)))
        adapters = tuple(each for _, of_adapter in found for each in of_adapter)
        if first is not None:
            return Found((), adapters)
        whole = zip(passed.parts, found, strict=True)
        inputs = [each for part, (rows, _) in whole for each in split(rows, part.counts, self.row_bytes)]
        return Found(tuple(inputs), adapters)

    def _count(self, sequence: bytes) -> int:
        count, rest = divmod(len(sequence), self.row_bytes)
        if rest or not count:
            raise InvalidInput(f"{len(sequence)} bytes are no rows of {self.row_bytes}")
        return count

    def _places(self) -> asyncio.Semaphore:
        """For the parts of a pass that are on their way at a time."""
        return asyncio.Semaphore(max(PARTS_AT_ONCE, 2 * self._route_length()))

    async def _go(self, part: Part, matrices: Matrices, first: int | None, places: asyncio.Semaphore) -> None:
        """Forward, from hop to hop."""
        async with places:
            begin = self.span.first
            while begin < self.span.last:
                hops = await self._way(Span(begin, self.span.last), part)
                legs = [Leg(hop.span, None if index else part.outputs, hop) for index, hop in enumerate(hops)]
                outcome = await self._forward(part, legs, matrices, first)
                if outcome.answers:
                    part.legs += legs[: len(outcome.answers)]
                    part.outputs, begin = outcome.rows, part.legs[-1].span.last

    async def _forward(self, part: Part, legs: Sequence[Leg], matrices: Matrices, first: int | None) -> Outcome:
        """Through the blocks of legs that have somebody, as far as it comes."""

        async def ask(link: TrainingLink, leg: Leg, adapter: Blob | None, way: Way) -> Answer:
            wanted = _inputs_wanted(leg.span, adapter, first)
            return await link.forward(leg.id, part.counts, leg.inputs, adapter, wanted, part.seed, way)

        return await self._along(part, legs, matrices, ask)

    async def _return(
        self, part: Part, gradient: bytes, matrices: Matrices, first: int | None, places: asyncio.Semaphore
    ) -> tuple[bytes, list[bytes]]:
        """Backward; where who computed a leg is gone, others compute it from the same inputs."""
        async with places:
            legs, of_adapter = list(part.legs), list[bytes]()
            while legs and (first is None or legs[-1].span.last > first):
                chain = await self._back_along(part, legs, matrices, first)
                if not chain:
                    continue
                outcome = await self._backward(part, chain, gradient, matrices, first)
                if outcome.answers:
                    del legs[-len(outcome.answers) :]
                    gradient = outcome.rows
                    of_adapter += [answer.adapter for answer in outcome.answers if answer.adapter]
                if any(isinstance(fault, Lacking) for _, fault in outcome.faults):
                    legs[-1] = replace(legs[-1], hop=None)
            return gradient, of_adapter

    async def _back_along(self, part: Part, legs: list[Leg], matrices: Matrices, first: int | None) -> list[Leg]:
        """The last legs, backwards, as far as those who computed them can give each other gradients; or the last one
        alone, with another hop. Empty: the last leg is several now, or its inputs are here."""
        last = legs[-1]
        if last.hop is not None and self._usable(last.hop):
            chain = [replace(last, inputs=None)]
            for leg in reversed(legs[:-1]):
                needed = first is None or leg.span.last > first
                if part.apart or not needed or leg.hop is None or not self._linked(chain[-1].hop, leg.hop):
                    break
                chain.append(replace(leg, inputs=None))
            return chain
        if last.inputs is None:
            await self._recover(part, legs, matrices, first)
            return []
        hop = await self._hop(last.span)
        if hop.span == last.span:
            return [replace(last, hop=hop)]
        # Several do what one did: forward through the first, to have what goes into the rest.
        begun = Leg(hop.span, last.inputs, hop)
        outcome = await self._forward(part, [begun], matrices, first)
        if outcome.answers:
            rest = Span(hop.span.last, last.span.last)
            legs[-1:] = [begun, Leg(rest, outcome.rows)] if len(rest) else [begun]
        return []

    async def _recover(self, part: Part, legs: list[Leg], matrices: Matrices, first: int | None) -> None:
        """Have what goes into the last leg here: from the nearest hop before it that still has its own inputs, or from
        where they are here, through all that lie between."""
        last, index, rows = legs[-1], len(legs) - 1, b""
        while not rows and legs[index].inputs is None:
            index -= 1
            rows = await self._again(part, legs[index], matrices)
        keep = index + 1 if rows else index
        rows = rows or legs[index].inputs or b""
        begin = legs[keep].span.first
        del legs[keep:]
        while begin < last.span.first:
            hop = await self._hop(Span(begin, last.span.first))
            leg = Leg(hop.span, rows, hop)
            outcome = await self._forward(part, [leg], matrices, first)
            if outcome.answers:
                legs.append(leg)
                rows, begin = outcome.rows, leg.span.last
        legs.append(replace(last, inputs=rows))

    async def _again(self, part: Part, leg: Leg, matrices: Matrices) -> bytes:
        """What a leg's hop makes of the inputs that it kept; empty where it has not."""
        if leg.hop is None or not self._usable(leg.hop):
            return b""

        async def ask(link: TrainingLink, leg: Leg, adapter: Blob | None, way: Way) -> Answer:
            return await link.again(leg.id, part.counts, adapter, part.seed)

        return (await self._along(part, [leg], matrices, ask)).rows

    async def _backward(
        self, part: Part, legs: Sequence[Leg], gradient: bytes, matrices: Matrices, first: int | None
    ) -> Outcome:
        """Through legs from the last on, as far as it comes."""

        async def ask(link: TrainingLink, leg: Leg, adapter: Blob | None, way: Way) -> Answer:
            given = None if way.upstream else gradient
            wanted = way.onward is not None or _inputs_wanted(leg.span, adapter, first)
            answer = await link.backward(leg.id, part.counts, leg.inputs, given, adapter, wanted, part.seed, way)
            if adapter is not None:
                try:
                    await asyncio.to_thread(matrices.check, adapter.data, answer.adapter)
                except InvalidInput as error:
                    raise ComputeFailed(f"{link}: {error.message}") from error
            return answer

        return await self._along(part, legs, matrices, ask)

    async def _along(
        self,
        part: Part,
        legs: Sequence[Leg],
        matrices: Matrices,
        ask: Callable[[TrainingLink, Leg, Blob | None, Way], Coroutine[Any, Any, Answer]],
    ) -> Outcome:
        """Ask the hops of legs, each of which hands on to the next, and see to what went wrong."""
        hops = [leg.hop for leg in legs if leg.hop is not None]
        links = [TrainingLink(self._host, hop, self.view.contract, self._config) for hop in hops]

        async def one(index: int, way: Way) -> Answer:
            return await ask(links[index], legs[index], matrices.on(legs[index].span), way)

        try:
            ready, faults = await self._ready(links, [matrices.on(leg.span) for leg in legs])
            size = sum(part.counts) * self.row_bytes
            outcome = await along(links[:ready], [leg.id for leg in legs], one, size)
        finally:
            for link in links:
                link.close()
        for index, fault in [*faults, *outcome.faults]:
            if isinstance(fault, NothingCame):
                pair = hops[index - 1].peer_id, hops[index].peer_id
                log.info("%s hands nothing on to %s", *pair)
                self.view.trust.links.add(pair, _now(), why="hands nothing on")
            elif isinstance(fault, SwarmError):
                self._fails(part, hops[index], index, fault)
        if outcome.answers and not self._is_finite(outcome.rows):
            index = len(outcome.answers) - 1
            error = ComputeFailed(f"{links[index]} sends numbers that are not finite")
            self._fails(part, hops[index], index, error)
            return Outcome((), b"", outcome.faults)
        if outcome.answers:
            self._blame.works(hops[: len(outcome.answers)])
        return outcome

    async def _ready(
        self, links: Sequence[TrainingLink], adapters: Sequence[Blob | None]
    ) -> tuple[int, list[tuple[int, SwarmError]]]:
        """Open links and see to it that their servers have what is added. How many of the first do; what went wrong."""

        async def one(link: TrainingLink, adapter: Blob | None) -> SwarmError | None:
            try:
                await link.open()
                await self._adapt(link, adapter)
            except SwarmError as error:
                return error
            return None

        found = await self._all([one(link, adapter) for link, adapter in zip(links, adapters, strict=True)])
        faults = [(index, error) for index, error in enumerate(found) if error is not None]
        return (faults[0][0] if faults else len(links)), faults

    def _fails(self, part: Part, hop: Hop, index: int, error: SwarmError) -> None:
        """What a hop computes of what another handed to it may be that one's fault: from now on they are seen apart."""
        if index and isinstance(error, ComputeFailed):
            log.info("%s: %s; hops are asked one by one", hop.peer_id, error)
            part.apart = True
        else:
            self._failed(hop, error)

    def _is_finite(self, rows: bytes) -> bool:
        contract = self.view.contract
        values = values_of(rows, contract.dtype, contract.row_bytes) if rows else None
        return values is None or bool(np.isfinite(values).all())

    async def _adapt(self, link: TrainingLink, adapter: Blob | None) -> None:
        """Give an adapter to a server that was not given it last, once for all parts."""
        if adapter is None:
            return
        async with self._adapting.setdefault(link.hop.key, asyncio.Lock()):
            if self._adapted.get(link.hop.key) != adapter.digest:
                await link.adapt(adapter)
                self._adapted[link.hop.key] = adapter.digest

    async def _all(self, works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """What all give. The first error ends them all."""
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            await ended(*tasks)

    # ---- who computes -----------------------------------------------------------------------------------------

    def _route_length(self) -> int:
        """Hops of the way that is known."""
        begin, count = self.span.first, 0
        while (hop := self._hops.get(begin)) is not None:
            begin, count = hop.span.last, count + 1
        return max(count, 1)

    async def _way(self, span: Span, part: Part) -> list[Hop]:
        """Who computes the first blocks of `span`, and those behind that can be handed what comes of it."""
        hops = [await self._hop(span)]
        while not part.apart and (after := self._hops.get(hops[-1].span.last)) is not None:
            if after.span.last > span.last or not self._linked(hops[-1], after):
                break
            hops.append(after)
        return hops

    def _linked(self, one: Hop | None, other: Hop) -> bool:
        """Whether the first may hand rows to the second."""
        if one is None or one.peer_id == other.peer_id or not self._usable(other):
            return False
        return (one.peer_id, other.peer_id) not in self.view.trust.links.active(_now())

    def _usable(self, hop: Hop) -> bool:
        return hop.peer_id not in self.view.trust.peers.active(_now()) and hop.peer_id not in self._small

    async def _hop(self, span: Span) -> Hop:
        """Who computes the first blocks of `span`. Waits for it as sessions do, and raises what they raise."""
        patience, age = Patience(self._config, _now(), has_run=self.view.has_run), self._config.view_refresh
        while True:
            known = self._hops.get(span.first)
            if known is not None and known.span.last <= span.last and self._usable(known):
                return known
            try:
                await self.view.refresh(age, 0.3)
                return self._choose(span)
            except SwarmError as error:
                patience.bear(error, _now(), error.message)
                if patience.tells(error, _now()):
                    self._tell("waiting", f"{self.view.model.name}: {error.message}; waiting", error)
                await asyncio.sleep(self._config.retry_base * MISSING_PAUSES)
            age = self._config.retry_base

    def _choose(self, span: Span) -> Hop:
        """By a route over all of `span`, of those who take training."""
        willing = [record for record in self.view.records if record.training]
        able = [record for record in willing if record.peer_id not in self._small]
        try:
            route = find_route(able, span, self.view.conditions(NOTHING_YET, self._pins))
        except MissingBlocks as missing:
            self.view.route(span, Needs(), self._pins)
            # There is one, of servers that are not asked.
            blocks = [block for first, last in missing.blocks for block in range(first, last)]
            if any(_meet(record.span, blocks) for record in able):
                raise
            small = [self._small[r.peer_id] for r in willing if r.peer_id in self._small and _meet(r.span, blocks)]
            beyond = max(small, key=lambda error: error.allowed, default=None)
            raise NoServerFits(f"no server of blocks {span} takes training", missing.blocks, beyond) from None
        changed = bool(self._hops)
        for hop in route.hops:
            self._hops[hop.span.first] = hop
            for block, print_ in zip(hop.span, hop.server.contract.on(hop.span).fingerprints, strict=False):
                self._pins.setdefault(block, print_)
        self.view.has_run = True
        self._tell("rerouted" if changed else "route", f"training: {route}", route=route)
        return route.hops[0]

    def _failed(self, hop: Hop, error: SwarmError) -> None:
        """Raises what no other server mends."""
        if not self._usable(hop):
            return  # that is known: parts fail together
        log.info("a training pass failed at %s: %s", hop.peer_id, error)
        if isinstance(error, LimitExceeded):
            self._small[hop.peer_id] = error
            return
        if isinstance(error, InvalidInput):
            raise error
        self._blame.attempt()
        if isinstance(error, NetworkError):
            verdict = self._blame.refused(hop, error, _now())
        else:
            verdict = self._blame.failed([hop], 0, error, _now())
        if verdict.ends is not None:
            raise verdict.ends
        if self._usable(hop):
            self.view.trust.peers.add(hop.peer_id, _now(), why=error.message)

    def _tell(self, kind: str, text: str, error: SwarmError | None = None, route: Route | None = None) -> None:
        log.log(logging.WARNING if kind == "waiting" else logging.INFO, "%s", text)
        self._on_notice(Notice(kind, text, route, error.blocks if isinstance(error, MissingBlocks) else ()))


def _inputs_wanted(span: Span, adapter: Blob | None, first: int | None) -> bool:
    """Whether gradients of what goes into `span` are, where those from block `first` on are."""
    return first is None or span.first > first or adapter is None


def _meet(span: Span, blocks: Sequence[int]) -> bool:
    return any(block in span for block in blocks)


def _now() -> float:
    return asyncio.get_running_loop().time()
