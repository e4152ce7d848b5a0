"""A part of a training pass along several hops, each of which hands what it computed to the next.

All are asked at once, and the client hears of each. What one has handed on it holds until the client hangs up: where
the next fails, the rows are had from there, and nothing is computed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.client.training_link import Answer, Lacking, NothingCame, TrainingLink, Way
from swarm.errors import SwarmError
from swarm.tasks import ended
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

Ask = Callable[[int, Way], Coroutine[Any, Any, Answer]]
Fault = SwarmError | Lacking | NothingCame


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What the first links answered, and the `rows` that come out of the last of these. `faults`: what went wrong, by
    link; NothingCame: on the way to it."""

    answers: Sequence[Answer]
    rows: bytes
    faults: Sequence[tuple[int, Fault]] = ()


async def along(links: Sequence[TrainingLink], ids: Sequence[bytes], ask: Ask, size: int) -> Outcome:
    """`ask` each link, which is open, by its index and where its rows come from and go; `ids`: of their passes, `size`:
    bytes of rows. As far as it comes: what goes wrong is told."""
    tasks: list[asyncio.Task[Answer]] = []
    for index in range(len(links)):
        tasks.append(asyncio.ensure_future(ask(index, _way(links, ids, index, tasks))))
    try:
        end, faults = await _settled(links, tasks)
        rows = tasks[-1].result().rows if tasks and end == len(links) else b""
        while 0 < end < len(links):
            try:
                rows = await links[end - 1].recall(size)
                break
            except SwarmError as error:
                log.debug("what was handed on is not there any more: %s", error)
                end -= 1
        return Outcome([task.result() for task in tasks[:end]], rows, faults)
    finally:
        await ended(*tasks)


def _way(
    links: Sequence[TrainingLink], ids: Sequence[bytes], index: int, before: Sequence[asyncio.Task[Answer]]
) -> Way:
    upstream = links[index - 1].hop.peer_id if index else ""
    last = index + 1 == len(links)
    onward = None if last else pb.Onward(record=links[index + 1].hop.server.signed, id=ids[index + 1])
    return Way(upstream, onward, before[-1] if before else None)


async def _settled(
    links: Sequence[TrainingLink], tasks: Sequence[asyncio.Task[Answer]]
) -> tuple[int, list[tuple[int, Fault]]]:
    """How many of the first links have answered, when no more will; what went wrong behind them."""
    end, faults = len(tasks), list[tuple[int, Fault]]()
    while running := [task for task in tasks[:end] if not task.done()]:
        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if (found := _fault(tasks[:end])) is not None:
            # Only what holds up those before counts: these may still come to their end.
            end = found[0]
            faults.append(found)
            if end and not tasks[end - 1].done():
                await links[end - 1].stop()
    return end, faults


def _fault(tasks: Sequence[asyncio.Task[Answer]]) -> tuple[int, Fault] | None:
    """The first link with which something is wrong, or to which the way is."""
    for index, task in enumerate(tasks):
        if not task.done():
            continue
        error = task.exception()
        if isinstance(error, Fault):
            return index, error
        if error is not None:
            raise error
        if index + 1 < len(tasks) and not task.result().handed:
            return index + 1, NothingCame(f"{index}")
    return None
