"""Forward and backward passes over whole sequences through remote blocks, that go on whatever happens to the servers.

The client is in the middle of the chain: it has what goes into every hop of a pass, and so what failed at one server is
asked of another, and nothing else is computed again. A pass is cut into parts, which are on different hops at a time.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from swarm.client.blame import Blame
from swarm.client.matrices import NOTHING, Blob, Matrices
from swarm.client.patience import MISSING_PAUSES, Patience
from swarm.client.routing import find_route
from swarm.client.session import Notice
from swarm.client.training_link import Lacking, TrainingLink
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
from swarm.wire.messages import SESSION_BYTES

log = logging.getLogger(__name__)

T = TypeVar("T")

PART_POSITIONS = 256
"""Of all sequences of a part together, where there are several."""
PARTS_AT_ONCE = 8
STRIDE, MOST_SEED = 0x9E3779B97F4A7C15, (1 << 64) - 1
"""Between the seeds of two parts."""


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """The blocks of `span` on a part's way, with what went into them. `hop`: who computed it and may still have the
    inputs under `id`; None: nobody has yet."""

    span: Span
    inputs: bytes
    hop: Hop | None = None
    id: bytes = field(default_factory=lambda: os.urandom(SESSION_BYTES))


@dataclass(slots=True, eq=False)
class Part:
    """Some sequences of a pass, of `counts` positions, on their way together. `seed`: of what is dropped."""

    counts: tuple[int, ...]
    outputs: bytes
    seed: int = 0
    legs: list[Leg] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """A pass that went forward, with an adapter. `outputs`: of each sequence."""

    parts: tuple[Part, ...]
    outputs: tuple[bytes, ...]
    matrices: Matrices


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Gradients: of each sequence's inputs, where they are wanted, and files with parts of those of the adapter's
    matrices."""

    inputs: tuple[bytes, ...]
    adapters: tuple[bytes, ...]


def parts_of(counts: Sequence[int], most: int = PART_POSITIONS) -> list[tuple[int, ...]]:
    """Sequences that follow each other, together as long as they have no more than `most` positions."""
    parts: list[list[int]] = []
    for count in counts:
        if parts and sum(parts[-1]) + count <= most:
            parts[-1].append(count)
        else:
            parts.append([count])
    return [tuple(part) for part in parts]


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
        self._places = asyncio.Semaphore(PARTS_AT_ONCE)

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
        for group in parts_of(counts):
            drawn = (seed + len(parts) * STRIDE) & MOST_SEED if seed else 0
            parts.append(Part(group, b"".join(sequences[begin : begin + len(group)]), drawn))
            begin += len(group)
        self._blame.step_begins()
        await self._all([self._go(part, matrices, first) for part in parts])
        outputs = [each for part in parts for each in _split(part.outputs, part.counts, self.row_bytes)]
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
        pairs = zip(passed.parts, wanted, strict=True)
        found = await self._all([self._return(part, gradient, passed.matrices, first) for part, gradient in pairs])
        adapters = tuple(each for _, of_adapter in found for each in of_adapter)
        if first is not None:
            return Found((), adapters)
        whole = zip(passed.parts, found, strict=True)
        inputs = [each for part, (rows, _) in whole for each in _split(rows, part.counts, self.row_bytes)]
        return Found(tuple(inputs), adapters)

    def _count(self, sequence: bytes) -> int:
        count, rest = divmod(len(sequence), self.row_bytes)
        if rest or not count:
            raise InvalidInput(f"{len(sequence)} bytes are no rows of {self.row_bytes}")
        return count

    async def _go(self, part: Part, matrices: Matrices, first: int | None) -> None:
        """Forward, from block to block."""
        async with self._places:
            begin = self.span.first
            while begin < self.span.last:
                span = Span(begin, self.span.last)
                leg, part.outputs = await self._compute(span, part, part.outputs, matrices, first)
                part.legs.append(leg)
                begin = leg.span.last

    async def _compute(
        self, span: Span, part: Part, inputs: bytes, matrices: Matrices, first: int | None
    ) -> tuple[Leg, bytes]:
        """As many of the first blocks of `span` as one server computes."""
        while True:
            hop = await self._hop(span)
            leg, adapter = Leg(hop.span, inputs, hop), matrices.on(hop.span)
            try:
                async with TrainingLink(self._host, hop, self.view.contract, self._config) as link:
                    await self._adapt(link, adapter)
                    wanted = _inputs_wanted(hop.span, adapter, first)
                    outputs = await link.forward(leg.id, part.counts, inputs, adapter, wanted, part.seed)
                    self._check(link, outputs)
            except SwarmError as error:
                self._failed(hop, error)
                continue
            self._blame.works([hop])
            return leg, outputs

    async def _return(
        self, part: Part, gradient: bytes, matrices: Matrices, first: int | None
    ) -> tuple[bytes, list[bytes]]:
        """Backward; where who computed a leg is gone, others compute it from the inputs that are here."""
        async with self._places:
            legs, of_adapter = list(part.legs), list[bytes]()
            while legs and (first is None or legs[-1].span.last > first):
                leg = legs.pop()
                hop = leg.hop if leg.hop is not None and self._usable(leg.hop) else None
                if hop is None:
                    hop = await self._hop(leg.span)
                    if hop.span != leg.span:
                        # Several do what one did: forward through the first, to have what goes into the rest.
                        begun, between = await self._compute(leg.span, part, leg.inputs, matrices, first)
                        legs.append(begun)
                        if begun.span != leg.span:
                            legs.append(Leg(Span(begun.span.last, leg.span.last), between))
                        continue
                wanted = _inputs_wanted(leg.span, matrices.on(leg.span), first)
                try:
                    rows, file = await self._gradients(hop, leg, part, gradient, matrices, wanted)
                except SwarmError as error:
                    self._failed(hop, error)
                    legs.append(leg)
                    continue
                self._blame.works([hop])
                gradient = rows
                of_adapter += [file] if file else []
            return gradient, of_adapter

    async def _gradients(
        self, hop: Hop, leg: Leg, part: Part, gradient: bytes, matrices: Matrices, inputs_wanted: bool
    ) -> tuple[bytes, bytes]:
        """Of a leg's inputs and of its adapter. Raises ComputeFailed for what cannot be gradients of these."""
        adapter = matrices.on(leg.span)
        async with TrainingLink(self._host, hop, self.view.contract, self._config) as link:
            await self._adapt(link, adapter)
            ask = partial(link.backward, leg.id, part.counts)
            rest = gradient, adapter, inputs_wanted, part.seed
            try:
                rows, file = await ask(None if hop is leg.hop else leg.inputs, *rest)
            except Lacking:
                log.debug("%s has forgotten its inputs", link)
                rows, file = await ask(leg.inputs, *rest)
            self._check(link, rows)
            if adapter is not None:
                try:
                    await asyncio.to_thread(matrices.check, adapter.data, file)
                except InvalidInput as error:
                    raise ComputeFailed(f"{link}: {error.message}") from error
            return rows, file

    def _check(self, link: TrainingLink, rows: bytes) -> None:
        """Raises ComputeFailed for numbers that are not finite."""
        contract = self.view.contract
        values = values_of(rows, contract.dtype, contract.row_bytes) if rows else None
        if values is not None and not bool(np.isfinite(values).all()):
            raise ComputeFailed(f"{link} sends numbers that are not finite")

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


def _split(rows: bytes, counts: Sequence[int], row_bytes: int) -> list[bytes]:
    parts, begin = list[bytes](), 0
    for count in counts:
        parts.append(rows[begin : begin + count * row_bytes])
        begin += count * row_bytes
    return parts


def _now() -> float:
    return asyncio.get_running_loop().time()
