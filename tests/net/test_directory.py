"""The DHT below the directory: what strangers may put there, and what becomes of it when peers come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import swarm.net.hivemind.directory as directories
from swarm import net
from swarm.config import NetworkConfig
from swarm.contract import Contract
from swarm.errors import NetworkError
from swarm.net import records
from swarm.net.identity import Identity
from swarm.types import ModelInfo, ServerRecord, Span

pytestmark = pytest.mark.processes

CONFIG = NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",), dial_timeout=3.0)
MODEL = ModelInfo("0123abcd", "tiny", blocks=4, hidden_size=64)
KEY = records.span_key(MODEL.key, 0)


def record(peer_id: str, lifetime: float = 60.0) -> ServerRecord:
    expires = time.time() + lifetime
    return ServerRecord(peer_id, Contract(MODEL.key, Span(0, 4), (bytes(8),) * 4), expires=expires)


async def join(config: NetworkConfig) -> tuple[net.Network, Any]:
    """A peer and its directory, whose insides are looked at."""
    network = await net.open(config)
    return network, network.directory


async def until(sound: Callable[[], Awaitable[bool]], patience: float = 15.0) -> None:
    async with asyncio.timeout(patience):
        while not await sound():
            await asyncio.sleep(0.1)


def test_strangers_put_nothing_there_that_is_not_theirs() -> None:
    async def main() -> None:
        one, honest = await join(CONFIG)
        two, forger = await join(replace(CONFIG, initial_peers=tuple(one.host.addresses)))
        announced = await honest.announce(record(one.identity.peer_id), MODEL)
        until, later = announced.expires, announced.expires + 30
        stranger = Identity.generate()
        theirs = records.sign_record(stranger, record(stranger.peer_id))
        forged = {
            "not signed": (KEY, b"hello", one.identity.peer_id, later),
            "no bytes": (KEY, {"a": 1}, one.identity.peer_id, later),
            "prolonged": (KEY, announced.signed, one.identity.peer_id, later),
            "under another's name": (KEY, theirs, one.identity.peer_id, later),
            "under another key": (records.span_key(MODEL.key, 1), announced.signed, one.identity.peer_id, until),
            "a tombstone of another": (KEY, records.sign(two.identity, KEY, b"", later), one.identity.peer_id, later),
            "no subkey": (KEY, announced.signed, None, until),
            "a subkey that is no peer": (KEY, announced.signed, 7, until),
            "junk, well signed": (KEY, records.sign(two.identity, KEY, b"junk", until), two.identity.peer_id, until),
            "immortal": (KEY, records.sign(two.identity, KEY, b"", later + 1000), two.identity.peer_id, later + 1000),
            "too large": (KEY, bytes(100_000), two.identity.peer_id, later),
        }
        for what, (key, value, subkey, expires) in forged.items():
            assert not await forger._node.store(key, value, expires, subkey=subkey), what
        for directory in (honest, forger):
            assert await directory.lookup(MODEL.key, 4) == [announced]
        await two.close()
        await one.close()

    asyncio.run(main())


def test_what_expires_takes_nothing_living_along() -> None:
    async def main() -> None:
        one, first = await join(CONFIG)
        two, second = await join(replace(CONFIG, initial_peers=tuple(one.host.addresses)))
        living = await first.announce(record(one.identity.peer_id), MODEL)
        await second.announce(record(two.identity.peer_id, 1.0), MODEL)
        assert len(await first.lookup(MODEL.key, 4)) == 2
        deadline = time.time() + 1.5
        while time.time() < deadline:
            for directory in (first, second):
                assert living in await directory.lookup(MODEL.key, 4)
        assert await second.lookup(MODEL.key, 4) == [living]
        await two.close()
        await one.close()

    asyncio.run(main())


def test_a_node_stores_only_so_many_peers_under_one_key() -> None:
    storage, now = directories.CappedStorage(replace(CONFIG, max_records_per_key=3)), time.time()
    key = directories.DHTID.generate("key")
    assert [storage.store_subkey(key, f"peer{n}", b"x", now + 60) for n in range(5)] == [True] * 3 + [False] * 2
    assert storage.store_subkey(key, "peer1", b"y", now + 61)


def test_a_server_is_found_though_enough_others_name_its_model() -> None:
    async def main() -> None:
        few = replace(CONFIG, max_records_per_key=1)
        one, first = await join(few)
        two, second = await join(replace(few, initial_peers=tuple(one.host.addresses)))
        await first.announce(record(one.identity.peer_id), MODEL)
        late = replace(record(two.identity.peer_id), contract=Contract(MODEL.key, Span(1, 4), (bytes(8),) * 3))
        late = await second.announce(late, MODEL)
        assert late in await first.lookup(MODEL.key, 4)
        assert await second.models() == [MODEL]
        with pytest.raises(NetworkError, match="nobody in the directory took"):
            await second.announce(record(two.identity.peer_id), MODEL)
        await second.withdraw(late)
        assert late not in await first.lookup(MODEL.key, 4)
        await two.close()
        await one.close()

    asyncio.run(main())


def test_where_nobody_answers_it_does_not_say_that_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor before who does not answer is struck off, which hivemind does in tasks of its own."""

    async def later(*given: Any, **named: Any) -> None:
        pass

    async def main() -> None:
        bootstrap, _ = await join(CONFIG)
        joined = replace(CONFIG, initial_peers=tuple(bootstrap.host.addresses))
        one, _ = await join(joined)
        two, directory = await join(joined)
        assert await directory.lookup(MODEL.key, 4) == [], "somebody says so"
        await bootstrap.close()
        await one.close()
        monkeypatch.setattr(directory._node.protocol, "update_routing_table", later)
        try:
            for _ in range(2):
                with pytest.raises(NetworkError, match="none of its peers answers"):
                    await directory.lookup(MODEL.key, 4)
        finally:
            await two.close()

    asyncio.run(main())


def test_a_bootstrap_peer_that_comes_back_is_found_and_finds_everybody(tmp_path: Path) -> None:
    async def main() -> None:
        soon = replace(CONFIG, rejoin=0.3, refresh=0.3)
        config = replace(soon, identity_path=str(tmp_path / "key"))
        bootstrap, _ = await join(config)
        port = bootstrap.host.addresses[0].split("/")[4]
        one, first = await join(replace(soon, initial_peers=tuple(bootstrap.host.addresses)))
        two, _ = await join(replace(soon, initial_peers=tuple(bootstrap.host.addresses)))
        await bootstrap.close()
        await first.announce(record(one.identity.peer_id), MODEL)
        bootstrap, again = await join(replace(config, host_maddrs=(f"/ip4/127.0.0.1/tcp/{port}",)))

        async def knows_it() -> bool:
            return [found.peer_id for found in await again.lookup(MODEL.key, 4)] == [one.identity.peer_id]

        await until(knows_it)
        three, third = await join(replace(CONFIG, initial_peers=tuple(bootstrap.host.addresses)))
        assert [found.peer_id for found in await third.lookup(MODEL.key, 4)] == [one.identity.peer_id]
        for peer in (three, two, one, bootstrap):
            await peer.close()

    asyncio.run(main())


def test_two_machines_with_one_key_both_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        bootstrap, _ = await join(CONFIG)
        cloned = replace(
            CONFIG,
            identity_path=str(tmp_path / "key"),
            initial_peers=tuple(bootstrap.host.addresses),
            dial_timeout=10.0,
        )
        (one, first), (two, second) = [await join(cloned) for _ in range(2)]
        halves = [Contract(MODEL.key, span, (bytes(8),) * 2) for span in (Span(0, 2), Span(2, 4))]
        for round_ in range(3):
            for network, directory, contract in ((one, first, halves[0]), (two, second, halves[1])):
                expires = time.time() + 60.0 + round_
                await directory.announce(ServerRecord(network.identity.peer_id, contract, expires=expires), MODEL)
        for network in (two, one, bootstrap):
            await network.close()

    asyncio.run(main())
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len([line for line in lines if "another machine" in line and str(tmp_path / "key") in line]) == 2


def test_the_clock_is_said_to_be_wrong() -> None:
    error = Exception("local time must be within 3 seconds  of others(local: 1.0, peer: 9.0)")
    assert "clock" in str(directories._not_joined(error, ("/ip4/127.0.0.1/tcp/9",)))
