"""What comes of a source, and notice where nothing comes: those who wait for it must know that it is alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Generic, TypeVar

from swarm.tasks import ended

T = TypeVar("T")


class Heartbeat(Generic[T]):
    """Iterates over `source`, with None wherever nothing comes of it for `seconds`. Closes it in the end.

    The source is never cancelled in the middle of an item, except by leaving.
    """

    def __init__(self, source: AsyncGenerator[T, None], seconds: float) -> None:
        self._source = source
        self._seconds = seconds
        self._coming: asyncio.Future[T] | None = None

    async def __aenter__(self) -> Heartbeat[T]:
        return self

    def __aiter__(self) -> Heartbeat[T]:
        return self

    async def __anext__(self) -> T | None:
        if self._coming is None:
            self._coming = asyncio.ensure_future(anext(self._source))
        done, _ = await asyncio.wait({self._coming}, timeout=self._seconds)
        if not done:
            return None
        coming, self._coming = self._coming, None
        return coming.result()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._coming is not None:
            await ended(self._coming)
        await self._source.aclose()
