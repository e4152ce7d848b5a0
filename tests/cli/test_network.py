"""A command's edge: needed or not, and its addresses in a file."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from typing import Any

import click
import pytest

from swarm import net
from swarm.cli import network
from swarm.cli.network import edge_of, kept_written
from swarm.config import EdgeConfig, NetworkConfig, PeerLimits
from swarm.errors import EdgeFailed
from swarm.net import Network
from swarm.net.guard import Guard
from swarm.net.identity import Identity

IDENTITY = Identity.generate()
CONFIG = EdgeConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0/ws",))


def test_an_edge_that_nobody_asked_for_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with edge_of(IDENTITY, None) as nothing:
            assert nothing is None
        async with edge_of(IDENTITY, CONFIG) as edge:
            assert edge is not None
            taken = EdgeConfig(host_maddrs=(edge.addresses[0].partition("/p2p/")[0],))
            async with edge_of(IDENTITY, taken, needed=False) as nothing:
                assert nothing is None
            with pytest.raises(EdgeFailed):
                async with edge_of(IDENTITY, taken):
                    pass

    # Commands that ran in this process before may have made the log quieter.
    with caplog.at_level(logging.WARNING, logger="swarm"):
        asyncio.run(main())
    assert "browsers cannot reach this peer" in caplog.text


def test_the_file_of_addresses_is_written_and_follows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_LOOK", 0.01)
    file = tmp_path / "addresses"

    async def main() -> None:
        async with edge_of(IDENTITY, CONFIG) as edge, kept_written(edge, file):
            assert edge is not None
            first = await asyncio.to_thread(file.read_text)
            assert first == f"{edge.addresses[0]}\n"
            monkeypatch.setattr(type(edge), "addresses", ("/one", "/two"))
            while await asyncio.to_thread(file.read_text) == first:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert file.read_text() == "/one\n/two\n"


def test_a_signal_before_the_network_is_there_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def slow(config: NetworkConfig) -> Network:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("joining")
        raise AssertionError

    async def main() -> None:
        leaving = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, leaving.set)
        with pytest.raises(click.exceptions.Exit) as left:
            await network.join(NetworkConfig(), leaving)
        assert left.value.exit_code == 0

    monkeypatch.setattr(net, "open", slow)
    asyncio.run(main())
    assert ended == ["joining"]


def test_a_hangup_reads_the_lists_anew_where_there_are_some(tmp_path: Path) -> None:
    one = Identity.generate().peer_id
    block = tmp_path / "block"
    block.write_text("")
    host: Any = None
    lists = Guard(PeerLimits(block=str(block)))
    before = signal.getsignal(signal.SIGHUP)

    async def main() -> None:
        network.reload_lists_on_hangup(Network(host, host, IDENTITY, host))
        assert signal.getsignal(signal.SIGHUP) is before
        network.reload_lists_on_hangup(Network(host, host, IDENTITY, host, guard=lists))
        now = asyncio.get_running_loop().time()
        assert lists.lists.admits(one, now)
        block.write_text(one)
        signal.raise_signal(signal.SIGHUP)
        while lists.lists.admits(one, now):  # a look of its own comes a second later
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 10.0))
