"""Synchronous callers, asynchronous network: one event loop in a thread of its own for the whole process."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from swarm.errors import NetworkError

T = TypeVar("T")

CANCEL_PATIENCE = 5.0
"""Seconds that a cancelled call may take to clean up before it is left behind."""


class LoopThread:
    """An event loop that runs in a daemon thread until `close`."""

    def __init__(self, name: str = "swarm-network") -> None:
        self.loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and wait for it, from any thread but the loop's own.

        Ctrl-C cancels the work, lets it clean up, and goes on as KeyboardInterrupt. Raises what the work raises, and
        NetworkError in a process that was forked off, where the loop does not run.
        """
        return self.wait(self.start(work))

    @staticmethod
    def wait(future: concurrent.futures.Future[T]) -> T:
        """Wait for what `start` began, as `run` does."""
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                concurrent.futures.wait([future], timeout=CANCEL_PATIENCE)
            raise

    @property
    def usable(self) -> bool:
        """Whether it runs, and in this process: in one that was forked off the thread is not there."""
        return os.getpid() == self._pid and not self.loop.is_closed()

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Let the loop call `callback` soon. From any thread, the loop's own too; nothing where it is not `usable`."""
        if self.usable:
            with contextlib.suppress(RuntimeError):  # closed in between
                self.loop.call_soon_threadsafe(callback, *args)

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `work` on the loop without waiting; works begin in the order of the calls."""
        if os.getpid() != self._pid:
            work.close()
            raise NetworkError("this process was forked from one that uses swarm: connect anew after the fork")
        if self.loop.is_closed() or threading.current_thread() is self._thread:
            work.close()
            raise NetworkError("the network thread is closed, or this is it")
        # In a context of its own: tasks that live long would keep the caller's context variables alive.
        return contextvars.Context().run(asyncio.run_coroutine_threadsafe, work, self.loop)

    def close(self) -> None:
        """Cancel what still runs, and end the thread. May be called twice."""
        if not self.usable:
            return
        with_tasks = asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop)
        concurrent.futures.wait([with_tasks], timeout=CANCEL_PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=CANCEL_PATIENCE)


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


_shared: LoopThread | None = None
_lock = threading.Lock()


def _forget() -> None:
    """In a process that was just forked off: another thread may have held the lock, and is not here to release it."""
    global _shared, _lock
    _shared, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)


def shared_loop() -> LoopThread:
    """The process's network thread, started at first use and closed at exit. A forked process gets its own."""
    global _shared
    with _lock:
        if _shared is None or not _shared.usable:
            _shared = LoopThread()
            atexit.register(_shared.close)
        return _shared
