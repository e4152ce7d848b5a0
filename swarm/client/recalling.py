"""Sends a session where the beginning of its prompt is kept: remembers who keeps it, and asks whether they still do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace

from swarm.client.affinity import holdings, preferred
from swarm.client.beginnings import GRAIN, Holding, Match, labels_of
from swarm.client.sequences import Sequences
from swarm.client.trust import Needs
from swarm.client.view import View
from swarm.config import CONTROL_FRAME_LIMIT
from swarm.errors import MalformedFrame, SwarmError
from swarm.net.base import Host
from swarm.types import Hop, HopKey, Route, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.rows import RowLog

log = logging.getLogger(__name__)

PATIENCE = 1.0
"""Seconds within which a hop says whether it still keeps something."""
MOST_ROUNDS = 3
"""Of questions, each about hops that come into it by the answers to those before."""


class Recaller:
    """What decides it, for one session over `span`. `pins`: fingerprints that blocks must have."""

    def __init__(self, host: Host, view: View, span: Span, pins: Mapping[int, bytes]) -> None:
        self._host = host
        self._view = view
        self._span = span
        self._pins = pins
        self._labels: dict[tuple[int, int], tuple[bytes, ...]] = {}

    def note(self, hop: Hop, kept: pb.Kept, route: Route, sequences: Sequences) -> None:
        """A hop says what it keeps of a prompt."""
        rows = sequences.log(kept.sequence)
        if rows is not None and GRAIN <= kept.positions <= rows.last:
            labels = self._labels_of(kept.sequence, rows, kept.positions)
            self._view.beginnings.note(labels, route, hop.key, Holding(kept.positions, kept.digest))

    def _labels_of(self, sequence: int, rows: RowLog, positions: int) -> tuple[bytes, ...]:
        """Computed once for all hops: of so many positions, or more at first."""
        key = sequence, rows.row_bytes
        if len(self._labels.get(key, ())) < positions // GRAIN:
            self._labels[key] = labels_of(rows, positions)
        return self._labels.get(key, ())[: positions // GRAIN]

    async def route(self, needs: Needs, sequences: Sequences) -> Route | None:
        """The route to begin with; None: nothing is known of such a prompt, and the best one will do.

        Only the longest sequence is looked at. Hops are asked only where what they say decides.
        """
        matches, positions = self._matches(sequences)
        if not matches:
            return None
        try:
            plain = self._view.route(self._span, needs, self._pins)
        except SwarmError:
            return None
        conditions, sure = self._view.conditions(needs, self._pins), {hop.key for hop in plain.hops}
        for _ in range(MOST_ROUNDS):
            route = preferred(plain, matches, positions, self._view.seen(), conditions)
            held = holdings(matches)
            unsure = [hop for hop in route.hops if hop.key in held and hop.key not in sure]
            if not unsure:
                return route
            answers = await asyncio.gather(*(self._ask(hop, held[hop.key].digest) for hop in unsure))
            gone = {hop.key for hop, kept in zip(unsure, answers, strict=True) if not kept}
            sure |= {hop.key for hop in unsure}
            matches = [Match(each.route, _less(each.held, gone)) for each in matches]
        return plain

    def _matches(self, sequences: Sequences) -> tuple[list[Match], int]:
        """Earlier prompts that began as the longest sequence does, and how long all are together."""
        if not self._view.beginnings or not sequences.lengths:
            return [], 0
        longest = max(sequences.lengths, key=sequences.length)
        rows = sequences.log(longest)
        if rows is None:
            return [], 0
        return self._view.beginnings.matches(self._labels_of(longest, rows, rows.last)), sequences.positions

    async def _ask(self, hop: Hop, digest: bytes) -> bool:
        """Whether a hop still keeps what it told of; where it does not answer, it does not."""
        prints = hop.server.contract.on(hop.span).fingerprints
        asked = replace(self._view.contract.on(hop.span), fingerprints=prints)
        recall = pb.Recall(contract=messages.contract_message(asked), digest=digest)
        try:
            async with asyncio.timeout(PATIENCE):
                kept = await self._answer(hop, pb.ControlRequest(recall=recall))
        except (SwarmError, TimeoutError) as error:
            log.info("%s at %s does not say what it keeps: %s", hop.span, hop.peer_id, error)
            return False
        if not kept.positions:
            self._view.beginnings.forget(hop.key, digest)
        return bool(kept.positions)

    async def _answer(self, hop: Hop, request: pb.ControlRequest) -> pb.Kept:
        server = hop.server
        stream = await self._host.open_stream(server.peer_id, messages.CONTROL_PROTOCOL, server.addresses)
        try:
            await stream.send(request.SerializeToString())
            reply = messages.decode(pb.ControlReply, await stream.receive(CONTROL_FRAME_LIMIT))
        finally:
            stream.close()
        match reply.WhichOneof("kind"):
            case "kept":
                return messages.check_kept(reply.kept)
            case "failure":
                raise messages.error_of(reply.failure, server.peer_id, where=str(server.peer_id), span=hop.span)
            case kind:
                raise MalformedFrame(f"{server.peer_id} answers a recall with {kind}")


def _less(held: Mapping[HopKey, Holding], gone: set[HopKey]) -> dict[HopKey, Holding]:
    return {hop: holding for hop, holding in held.items() if hop not in gone}
