"""An engine in simulated time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from swarm.server.computing import compute
from swarm.server.engine import Engine
from swarm.server.runner import Runner
from swarm.server.work import Work


class InlineEngine(Engine):
    """An engine on the event loop, for simulations: a pass takes `seconds(positions)` of the loop's own time."""

    def __init__(
        self, runner: Runner, *, seconds: Callable[[int], float] = lambda positions: 0.0, **options: Any
    ) -> None:
        super().__init__(runner, **options)
        self._seconds = seconds
        self._task: asyncio.Task[None] | None = None

    def submit(self, work: Work) -> None:
        self._enqueue(work)
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    def _clock(self) -> float:
        return asyncio.get_running_loop().time()

    async def _run(self) -> None:
        while self._queues:
            shares = self._take()
            self._running = len(shares)
            began = self._clock()
            await asyncio.sleep(self._seconds(sum(share.positions for share in shares)))
            results = compute(self.runner, shares)
            self.note(shares)
            self._running = 0
            self._report(results, self._clock() - began)
        self._task = None

    async def close(self) -> None:
        self._queues.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
