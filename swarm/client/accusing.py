"""Who was found out is asked once more, alone, and what it signs is kept for others to see."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from swarm.client.claim import Claim
from swarm.client.evidence import written
from swarm.client.replay import TELL_TALE, Past, Replays
from swarm.client.routing import with_relays
from swarm.client.trust import Needs
from swarm.client.view import View
from swarm.errors import SwarmError
from swarm.files import write_whole
from swarm.types import Hop, PeerId, Route, Span

log = logging.getLogger(__name__)


class Accuser:
    """For one session. What is found is in the folder that `view.config` names, if it names one."""

    def __init__(self, replays: Replays, view: View, pins: Mapping[int, bytes]) -> None:
        self._replays = replays
        self._view = view
        self._pins = pins

    async def accuse(self, hop: Hop, claim: Claim, right: Route) -> None:
        """Have a server sign what it makes of this claim's inputs, as the right route computes them up to it.

        Nothing comes of it where it signs nothing, computes otherwise when it is asked alone, or does not answer: it
        stays convicted here, on what this client has seen.
        """
        folder = self._view.config.evidence
        if folder is None:
            return
        try:
            data = await self._signed(hop, claim, right)
            file = keep(folder, hop.peer_id, data)
        except (SwarmError, TimeoutError, OSError) as error:
            log.warning("there is no evidence against %s: %s", hop.peer_id, error)
            return
        log.warning("what %s signed is in %s: swarm-audit checks it", hop.peer_id, file)

    async def _signed(self, hop: Hop, claim: Claim, right: Route) -> bytes:
        """Raises SwarmError, TimeoutError."""
        past = claim.past.upto(min(claim.positions[0] + TELL_TALE, claim.past.length))
        inputs = past.inputs
        if hop.span.first > right.span.first:
            before = self._part(right, Span(right.span.first, hop.span.first))
            inputs = await self._replays.along(before, Past(inputs, 0, past.row_bytes))
        own = Past(inputs, past.first, past.row_bytes)
        outputs, commitments = await self._replays.signed(hop, own)
        return written(self._view.model.name, inputs, past.first, outputs, commitments)

    def _part(self, route: Route, span: Span) -> Route:
        """What a route does on these blocks."""
        parts = [(hop, max(hop.span.first, span.first), min(hop.span.last, span.last)) for hop in route.hops]
        hops = tuple(Hop(hop.server, Span(first, last)) for hop, first, last in parts if first < last)
        return with_relays(hops, self._view.conditions(Needs(), self._pins))


def keep(folder: str, peer: PeerId, data: bytes) -> Path:
    """In a file of its own. Raises OSError."""
    file = Path(folder).expanduser() / f"{peer}-{int(time.time() * 1000)}.evidence"
    write_whole(file, data)
    return file
