"""What a client remembers of the swarm, and what it keeps away from."""

from __future__ import annotations

import asyncio

import pytest

from swarm.client.view import View
from swarm.config import ClientConfig
from swarm.contract import Contract
from swarm.errors import DaemonFailed, NetworkError
from swarm.testing import run
from swarm.types import ModelInfo, ServerRecord, Span


class CountingDirectory:
    """A directory that takes a second to read."""

    def __init__(self, *records: ServerRecord) -> None:
        self.records = list(records)
        self.reads = 0
        self.error: NetworkError | None = None

    async def lookup(self, model: str, blocks: int) -> list[ServerRecord]:
        self.reads += 1
        await asyncio.sleep(1.0)
        if self.error is not None:
            raise self.error
        return self.records

    async def models(self) -> list[ModelInfo]:
        return []


def record(name: str, dtype: str = "float32") -> ServerRecord:
    return ServerRecord(name, Contract("m", Span(0, 4), (b"12345678",) * 4, dtype), free_tokens=99)


def view_of(directory: CountingDirectory) -> View:
    info = ModelInfo("m", "m", 4, 8)
    return View(directory, info, info.contract("float32", 32), ClientConfig())  # type: ignore[arg-type]


def test_who_reads_at_the_same_time_shares_one_reading_and_a_fresh_one_is_kept() -> None:
    async def main() -> None:
        directory = CountingDirectory(record("a"))
        view = view_of(directory)
        await asyncio.gather(*(view.refresh(5.0) for _ in range(9)))
        await asyncio.sleep(4.0)
        await view.refresh(5.0)
        assert directory.reads == 1
        await view.refresh(3.0)
        assert directory.reads == 2

    run(main())


def test_a_reader_that_is_cancelled_does_not_take_the_reading_with_it() -> None:
    async def main() -> None:
        directory = CountingDirectory(record("a"))
        view = view_of(directory)
        hasty, patient = (asyncio.ensure_future(view.refresh(5.0)) for _ in range(2))
        await asyncio.sleep(0.5)
        hasty.cancel()
        await patient
        assert directory.reads == 1
        assert view.records

    run(main())


def test_while_the_directory_cannot_be_read_and_has_just_begun_anew_the_servers_known_are_used() -> None:
    async def main() -> None:
        directory = CountingDirectory()
        view = view_of(directory)
        directory.error = NetworkError("nobody answers")
        with pytest.raises(NetworkError):
            await view.refresh(-1.0)
        directory.error, directory.records = None, [record("a")]
        await view.refresh(-1.0)
        directory.error = NetworkError("nobody answers")
        await view.refresh(-1.0)
        directory.error, directory.records = None, []
        await view.refresh(-1.0)
        assert [known.peer_id for known in view.records] == ["a"]
        directory.error = DaemonFailed("p2pd died")
        with pytest.raises(DaemonFailed):
            await view.refresh(-1.0)
        directory.error = None
        await asyncio.sleep(61.0)
        await view.refresh(-1.0)
        assert view.records == []

    run(main())


def test_servers_of_another_dtype_are_not_seen() -> None:
    async def main() -> None:
        view = view_of(CountingDirectory(record("a", "bfloat16"), record("b")))
        await view.refresh(0.0)
        assert [r.peer_id for r in view.records] == ["b"]

    run(main())


def test_round_trips_are_smoothed() -> None:
    view = view_of(CountingDirectory())
    view.measured("a", 100.0)
    assert view.rtt_ms["a"] == 100.0
    view.measured("a", 200.0)
    assert view.rtt_ms["a"] == 130.0
