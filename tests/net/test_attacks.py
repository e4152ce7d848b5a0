"""What a peer may try to hide others' records, or to fill others' memory, with records that are its own and valid."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

import msgpack
import pytest

import swarm.net.hivemind.directory as directories  # before hivemind

from hivemind.p2p import PeerID  # isort: skip
from hivemind.utils.timed_storage import ValueWithExpiration  # isort: skip
from swarm import net
from swarm.config import NetworkConfig
from swarm.contract import Contract
from swarm.net import records
from swarm.net.identity import Identity
from swarm.types import ModelInfo, ServerRecord, Span

CONFIG = NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",), dial_timeout=3.0)
MODEL = ModelInfo("0123abcd", "tiny", blocks=4, hidden_size=64)
KEY = records.span_key(MODEL.key, 0)
ID = directories.DHTID.generate(KEY)
Peer = tuple[net.Network, Any]
"""A peer and its directory, whose insides are looked at."""


def record(peer_id: str, lifetime: float = 60.0) -> ServerRecord:
    expires = time.time() + lifetime
    return ServerRecord(peer_id, Contract(MODEL.key, Span(0, 4), (bytes(8),) * 4), expires=expires)


def theirs(lifetime: float = 250.0) -> tuple[str, bytes, float]:
    """A stranger's own record, good in itself: peer id, value as it is stored, expiration."""
    stranger = Identity.generate()
    mine = record(stranger.peer_id, lifetime)
    return stranger.peer_id, msgpack.packb(records.sign_record(stranger, mine)), mine.expires


async def join(initial: tuple[str, ...] = ()) -> Peer:
    network = await net.open(replace(CONFIG, initial_peers=initial))
    return network, network.directory


def three(scenario: Callable[[Peer, Peer, Peer], Awaitable[None]]) -> None:
    async def main() -> None:
        peers = [await join()]
        peers += [await join(tuple(peers[0][0].host.addresses)) for _ in range(2)]
        await scenario(*peers)
        for network, _ in reversed(peers):
            await network.close()

    asyncio.run(main())


def test_what_is_written_into_a_cache_hides_nothing() -> None:
    async def scenario(honest: Peer, reader: Peer, attacker: Peer) -> None:
        await honest[1].announce(record(honest[0].identity.peer_id), MODEL)
        peer_id, value, expires = theirs()
        for network, directory in (honest, reader):
            stored = await attacker[1]._node.protocol.call_store(
                PeerID.from_base58(network.identity.peer_id), [ID], [value], expires, subkeys=[peer_id], in_cache=True
            )
            assert stored == [False]
            assert ID not in directory._node.protocol.cache
        found = await reader[1].lookup(MODEL.key, 4)
        assert [server.peer_id for server in found] == [honest[0].identity.peer_id]

    three(scenario)


def test_an_answer_that_claims_to_live_for_ever_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(honest: Peer, attacker: Peer, reader: Peer) -> None:
        peer_id, value, expires = theirs()
        announced = record(honest[0].identity.peer_id)
        signed = msgpack.packb(records.sign_record(honest[0].identity, announced))
        honest[1]._node.protocol.storage.store_subkey(ID, announced.peer_id, signed, announced.expires)
        protocol = reader[1]._node.protocol
        ask, lied = protocol.call_find, asyncio.Event()

        async def call_find(peer: PeerID, keys: Collection[Any]) -> Any:
            if peer.to_base58() != attacker[0].identity.peer_id:
                await lied.wait()
                return await ask(peer, keys)
            entries = directories.DictionaryDHTValue()
            entries.store(peer_id, value, expires)
            asyncio.get_running_loop().call_later(0.1, lied.set)
            return {key: (ValueWithExpiration(entries, float("inf")), {}) for key in keys}

        monkeypatch.setattr(protocol, "call_find", call_find)
        found = {server.peer_id for server in await reader[1].lookup(MODEL.key, 4)}
        assert found == {honest[0].identity.peer_id, peer_id}

    three(scenario)


def test_one_that_refuses_everything_does_not_speak_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(honest: Peer, announcer: Peer, attacker: Peer) -> None:
        protocol = announcer[1]._node.protocol
        ask = protocol.call_store

        async def call_store(peer: PeerID, keys: Collection[Any], *rest: Any, **more: Any) -> Any:
            if peer.to_base58() != attacker[0].identity.peer_id:
                return await ask(peer, keys, *rest, **more)
            await asyncio.sleep(0.2)
            return [False for _ in keys]

        monkeypatch.setattr(protocol, "call_store", call_store)
        announced = await announcer[1].announce(record(announcer[0].identity.peer_id), MODEL)
        assert await honest[1].lookup(MODEL.key, 4) == [announced]

    three(scenario)


def test_one_bad_entry_takes_no_good_one_along() -> None:
    validator = directories.SignedRecords(CONFIG)
    entries = directories.DictionaryDHTValue()
    good = [theirs() for _ in range(3)]
    for peer_id, value, expires in good:
        entries.store(peer_id, value, expires)
    for bad in ("unsigned", 7, good[0][0] + "x"):
        entries.store(bad, b"junk", time.time() + 60)
    entries.store(good[0][0] + "y", theirs(10_000.0)[1], time.time() + 60)
    assert validator.drop_invalid(ID.to_bytes(), entries)
    assert {subkey for subkey, _ in entries.items()} == {peer_id for peer_id, _, _ in good}


def test_an_answer_is_read_only_so_far() -> None:
    entries = directories.DictionaryDHTValue()
    for peer_id, value, expires in (theirs() for _ in range(5)):
        entries.store(peer_id, value, expires)
    validator = directories.SignedRecords(replace(CONFIG, max_records_per_key=3))
    assert validator.drop_invalid(ID.to_bytes(), entries)
    assert len(entries) == 3


def test_a_node_stores_only_so_many_keys() -> None:
    storage, until = directories.CappedStorage(replace(CONFIG, max_keys=3)), time.time() + 60
    keys = [directories.DHTID.generate(f"key{n}") for n in range(5)]
    assert [storage.store_subkey(key, "peer", b"x", until) for key in keys] == [True] * 3 + [False] * 2
    assert storage.store_subkey(keys[0], "peer", b"y", until + 1)


def test_a_record_that_is_sent_again_and_again_takes_no_room() -> None:
    storage, until = directories.CappedStorage(CONFIG), time.time() + 60
    assert [storage.store_subkey(ID, "peer", b"x", until) for _ in range(100)] == [True] * 100
    assert len(storage.get(ID).value.expiration_heap) == 1


def test_an_older_record_does_not_replace_a_newer_one() -> None:
    storage, until = directories.CappedStorage(CONFIG), time.time() + 60
    assert storage.store_subkey(ID, "peer", b"new", until)
    assert not storage.store_subkey(ID, "peer", b"old", until - 1)
    assert not storage.store_subkey(ID, "peer", b"other", until)
    assert storage.get(ID).value.get("peer").value == b"new"


def test_a_model_of_absurd_depth_is_refused() -> None:
    deep = replace(MODEL, blocks=records.MAX_BLOCKS + 1)
    signed = records.sign_model(Identity.generate(), deep, 60.0)
    with pytest.raises(records.RecordRefused):
        records.verify_model(signed, now=0.0, config=CONFIG)
