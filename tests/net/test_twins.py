"""Two machines with one key notice it, both of them, and say so once."""

from __future__ import annotations

import asyncio
import logging

import pytest

from swarm.contract import Contract
from swarm.net.twins import SELDOM, Twins
from swarm.testing import MemoryDirectory, SimulatedNetwork, run
from swarm.types import ModelInfo, ServerRecord, Span

MODEL = ModelInfo("model", "a model", 4, 8)
ME, MINE, OTHER = "me", 7, 8


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def twins(key: str | None = "/here/serve.key", since: float | None = 60.0) -> Twins:
    made = Twins(ME, MINE, key)
    if since is not None:
        made.announced(since)
    return made


def test_another_machine_is_told_of_once_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    watch = twins()
    for _ in range(3):
        watch.look(ME, OTHER, 61.0, ["/ip4/192.0.2.7/tcp/1"])
    (line,) = told(caplog)
    assert "another machine" in line
    assert "/ip4/192.0.2.7/tcp/1" in line
    assert "delete /here/serve.key or give another --identity-path" in line
    watch.look(ME, OTHER + 1, 62.0, [])
    assert len(told(caplog)) == 2


def test_without_a_file_there_is_none_to_delete(caplog: pytest.LogCaptureFixture) -> None:
    twins(key=None).look(ME, OTHER, 61.0, [])
    (line,) = told(caplog)
    assert "give another --identity-path" in line
    assert "delete" not in line


def test_others_itself_and_its_earlier_lives_are_no_twins(caplog: pytest.LogCaptureFixture) -> None:
    watch = twins()
    watch.look("another", OTHER, 61.0, [])
    watch.look(ME, MINE, 100.0, [])
    watch.look(ME, 0, 100.0, [])  # of a version that does not say
    watch.look(ME, OTHER, 60.0, [])  # before it was killed and began anew
    twins(since=None).look(ME, OTHER, 61.0, [])  # it has not announced anything itself
    assert told(caplog) == []


def test_it_looks_soon_and_then_now_and_then() -> None:
    watch, due = Twins(ME, MINE, None), []
    for count in range(5 * SELDOM + 1):
        if watch.is_due():
            due.append(count)
        watch.announced(60.0)
    assert due == [1, 2, 4, 8, 12, 16, 20]


@pytest.mark.parametrize("spans", [(Span(0, 4), Span(0, 4)), (Span(0, 2), Span(2, 4))], ids=["same", "others"])
def test_both_of_two_that_keep_announcing_notice(spans: tuple[Span, Span], caplog: pytest.LogCaptureFixture) -> None:
    async def announce(directory: MemoryDirectory, span: Span, pause: float) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(pause)
        for _ in range(10):
            contract = Contract(MODEL.key, span, (bytes(8),) * len(span))
            await directory.announce(ServerRecord(ME, contract, expires=loop.time() + 60.0), MODEL)
            await asyncio.sleep(20.0)

    async def main() -> None:
        network = SimulatedNetwork()
        host = network.host(ME)
        one, other = network.directory(host), network.directory(host)
        await asyncio.gather(announce(one, spans[0], 0.0), announce(other, spans[1], 7.0))

    run(main())
    assert len(told(caplog)) == 2
