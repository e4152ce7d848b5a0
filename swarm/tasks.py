"""Owners of asyncio tasks: nothing runs in the background that nobody awaits."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Set
from typing import Any, TypeVar

T = TypeVar("T")


async def first_of(*works: Coroutine[Any, Any, T] | asyncio.Future[T]) -> Set[asyncio.Future[T]]:
    """Run several until one ends. Returns those that have ended, finished futures; the others are cancelled and over.

    Whoever calls decides what an end means: nothing is raised here but the caller's own cancellation, which ends all.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return done
    finally:
        await ended(*tasks)


async def until_first(*works: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> None:
    """Run several until one ends, and raise what those raise that have ended. The others are cancelled and over."""
    for work in await first_of(*works):
        work.result()


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs, and wait until all is over. What the tasks raise is their own affair."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run `work`, which cannot be interrupted, where it cannot hold up the end of the process."""
    loop, result = asyncio.get_running_loop(), asyncio.Future[T]()

    def deliver(value: T | None, error: BaseException | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        try:
            outcome = work(), None
        except BaseException as error:
            outcome = None, error  # type: ignore[assignment]
        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver, *outcome)

    threading.Thread(target=run, name="swarm-work", daemon=True).start()
    return await result


class Tasks:
    """Background tasks of one owner, which awaits them in `close`. What a task raises is logged, not lost.

    `log`: whose errors they are.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._running)

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Begin `work`. Once the owner is closed nothing begins any more: the task that is returned is cancelled."""
        task = asyncio.create_task(work, name=name)
        if self._closed:
            task.cancel()
        self._running.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("%s failed: %s", task.get_name(), error, exc_info=error)

    async def finished(self) -> None:
        """Wait until all that runs has come to its own end."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def cancel(self) -> None:
        """Cancel all, as a process that dies does; `close` waits for them."""
        for task in self._running:
            task.cancel()

    async def close(self) -> None:
        """Cancel all and wait until they are over. May be called by one of them, which then goes on."""
        self._closed = True
        me = asyncio.current_task()
        await ended(*(task for task in self._running if task is not me))
