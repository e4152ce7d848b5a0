from __future__ import annotations

import asyncio
import logging

import pytest

from swarm.tasks import Tasks, ended, first_of, until_first

log = logging.getLogger(__name__)


async def _value(value: int) -> int:
    return value


async def _broken() -> None:
    raise ValueError("broken")


class _Watched:
    """Work that never ends by itself, and whether it was let end."""

    def __init__(self) -> None:
        self.over = False

    async def run(self) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.over = True
        return 0


def test_the_first_ends_all() -> None:
    async def run() -> None:
        other = _Watched()
        (done,) = await first_of(other.run(), _value(3))
        assert done.result() == 3
        assert other.over

    asyncio.run(run())


def test_what_the_first_raises_is_raised_when_all_is_over() -> None:
    async def run() -> None:
        other = _Watched()
        with pytest.raises(ValueError, match="broken"):
            await until_first(_broken(), other.run())
        assert other.over

    asyncio.run(run())


def test_cancelling_the_caller_ends_all() -> None:
    async def run() -> None:
        works = [_Watched(), _Watched()]
        task = asyncio.create_task(until_first(*(work.run() for work in works)))
        await asyncio.sleep(0.01)
        await ended(task)
        assert task.cancelled()
        assert all(work.over for work in works)

    asyncio.run(run())


def test_an_owner_awaits_what_it_began(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        tasks, work = Tasks(log), _Watched()
        tasks.spawn(work.run())
        tasks.spawn(_broken(), name="the broken one")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(tasks) == 1
        await tasks.close()
        assert work.over
        assert len(tasks) == 0
        late = tasks.spawn(_value(1))
        await tasks.close()
        assert late.cancelled()

    asyncio.run(run())
    assert "the broken one failed: broken" in caplog.text


def test_a_task_may_close_its_owner() -> None:
    async def run() -> None:
        tasks, work = Tasks(log), _Watched()
        tasks.spawn(work.run())

        async def closer() -> int:
            await tasks.close()
            return 5

        assert await tasks.spawn(closer()) == 5
        assert work.over

    asyncio.run(run())


def test_waiting_for_tasks_cancels_none() -> None:
    async def run() -> None:
        tasks, done = Tasks(log), list[int]()

        async def work(number: int) -> None:
            await asyncio.sleep(0)
            done.append(number)

        for number in range(3):
            tasks.spawn(work(number))
        await tasks.finished()
        assert done == [0, 1, 2]
        assert len(tasks) == 0

    asyncio.run(run())
