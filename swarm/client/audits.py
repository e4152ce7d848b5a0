"""When a session has computed of it looked at again: by chance, after the fact."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from swarm.client.auditor import Auditor
from swarm.client.integrity import Integrity
from swarm.client.outputs import Outputs
from swarm.errors import Refuted, SwarmError
from swarm.types import Route
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

WINDOW = 16
"""Outputs after which lots are drawn."""
GROWTH = 4
"""As a replay is of all that came before, a long sequence waits until so small a part of it is new."""
SETTLING = 20.0
"""Seconds that an audit may hold up the end of a text."""


class Audits:
    """Of one session. `refuted`: what is wrong with what was given, once that is known; `on_refuted` is told at once.

    `spawn`: runs in the background what the session ends with itself.
    """

    def __init__(
        self,
        auditor: Auditor,
        outputs: Outputs,
        integrity: Integrity,
        rng: random.Random,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        on_refuted: Callable[[Refuted], None],
        on_undecided: Callable[[str], None],
    ) -> None:
        self.refuted: Refuted | None = None
        self.outputs = outputs
        self.made = 0
        self._auditor = auditor
        self._integrity = integrity
        self._random = rng
        self._spawn = spawn
        self._on_refuted = on_refuted
        self._on_undecided = on_undecided
        self._since = 0
        self._running: asyncio.Task[None] | None = None

    def given(self, step: pb.Step, route: Route) -> None:
        """Outputs came, which nobody can take back."""
        self._since += self.outputs.note(step, route)
        if self._since >= max(WINDOW, self.outputs.longest // GROWTH):
            self._draw(route)

    def _draw(self, route: Route) -> None:
        self._since = 0
        rate = self._integrity.rate((hop.peer_id for hop in route.hops), time.time())
        if self._random.random() < rate and (self._running is None or self._running.done()):
            self._running = self._spawn(self._audit(), f"auditing {route}")

    async def _audit(self) -> None:
        claim = self.outputs.claim(self._random)
        if claim is None:
            return
        try:
            finding = await self._auditor.audit(claim)
        except (SwarmError, TimeoutError) as error:
            log.info("no audit: %s", error)
            return
        self.made += 1
        if finding.undecided:
            words = "two routes come to different results, and there is no third to decide which is right"
            self._on_undecided(f"{words}: {claim.route}")
        elif finding.first is not None:
            self._refute(claim.sequence, finding.first)

    def check(self) -> None:
        """Raises Refuted once anything that was given is known to be wrong, also by what others found out."""
        convicted = self._integrity.convicted
        if self.refuted is None and convicted and (place := self.outputs.by(convicted)) is not None:
            self._refute(*place)
        if self.refuted is not None:
            raise self.refuted

    def _refute(self, sequence: int, position: int) -> None:
        text = f"a server computed wrong: what came from position {position} of sequence {sequence} on is not right"
        self.refuted = Refuted(f"{text}; begin again, with another cache", sequence, position)
        self._on_refuted(self.refuted)

    async def settled(self, route: Route | None) -> None:
        """The text is at its end, for now: draw lots once more, and wait for what is being looked at.

        Raises Refuted.
        """
        if self._since and route is not None:
            self._draw(route)
        if self._running is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLING):
                    await asyncio.shield(self._running)
        self.check()
