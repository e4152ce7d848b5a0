"""A swarm with a key, and peers that try without it, with another one, and with what they overheard."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swarm.net.hivemind.directory as directories  # before hivemind

from hivemind.p2p import PeerID  # isort: skip
from swarm import net
from swarm.config import NetworkConfig
from swarm.contract import Contract
from swarm.errors import InvalidInput, RecordRefused, StreamClosed, SwarmError, WrongSwarmKey
from swarm.net import records
from swarm.net.base import Stream
from swarm.net.guard import Guard, GuardedHost
from swarm.net.swarm_key import SwarmKey
from swarm.testing import SimulatedNetwork, run
from swarm.types import ModelInfo, ServerRecord, Span

CONFIG = NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",), dial_timeout=5.0)
MODEL = ModelInfo("0123abcd", "secret-model", blocks=4, hidden_size=64)
PROTOCOL = "/swarm/control/1.0.0"
KEY, OTHER = SwarmKey(b"k" * 32), SwarmKey(b"o" * 32)


def key_file(folder: Path, name: str, digit: str) -> str:
    (folder / name).write_text(digit * 64 + "\n")
    return str(folder / name)


# ---- records ----------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.binary(min_size=20, max_size=20), st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=50)
def test_what_is_sealed_opens_with_the_key_at_its_place_alone(value: bytes, place: bytes, at: int, bit: int) -> None:
    sealed = KEY.close(place, value)
    assert KEY.open(place, sealed) == value
    assert sealed != KEY.close(place, value)
    broken = bytearray(sealed)
    broken[at % len(sealed)] ^= bit
    for key, where, what in (
        (OTHER, place, sealed),
        (KEY, b"x" * 20, sealed),
        (KEY, place, bytes(broken)),
        (KEY, place, sealed[:at]),
    ):
        if (key, where, what) != (KEY, place, sealed):
            with pytest.raises(RecordRefused):
                key.open(where, what)


def test_names_say_nothing_and_agree() -> None:
    assert KEY.name("models") == SwarmKey(b"k" * 32).name("models") != OTHER.name("models")
    assert "models" not in KEY.name("models")


@pytest.mark.parametrize("content", [b"", b"00" * 31, b"00" * 33, b"g" * 64, b"\xff" * 64, b"password"])
def test_a_file_that_holds_no_key_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(InvalidInput, match="openssl") as caught:
        SwarmKey.load(tmp_path / "key")
    assert "password" not in str(caught.value)
    with pytest.raises(InvalidInput, match="no swarm key"):
        SwarmKey.load(tmp_path)


# ---- streams ----------------------------------------------------------------------------------------------------


def host(network: SimulatedNetwork, name: str, key: SwarmKey | None) -> GuardedHost:
    return GuardedHost(network.host(name), Guard(), key)


async def serving(network: SimulatedNetwork) -> list[bytes]:
    """A peer `s` with the key; what its handler heard."""
    heard: list[bytes] = []

    async def handler(stream: Stream) -> None:
        heard.append(await stream.receive(1000))
        await stream.send(b"answer")

    await host(network, "s", KEY).serve(PROTOCOL, handler)
    return heard


def test_who_has_the_key_is_served() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        heard = await serving(network)
        stream = await host(network, "c", KEY).open_stream("s", PROTOCOL)
        await stream.send(b"question")
        assert await stream.receive(1000) == b"answer"
        assert heard == [b"question"]

    run(main())


def test_who_has_another_key_or_none_is_neither_heard_nor_answered() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        heard = await serving(network)
        with pytest.raises(WrongSwarmKey):
            await host(network, "wrong", OTHER).open_stream("s", PROTOCOL)
        for frames in ([b"question"], [b""], [b"n" * 32, b"question"], [b"n" * 32, b"p" * 32, b"question"]):
            stream = await network.host(f"none{len(network.hosts)}").open_stream("s", PROTOCOL)
            answers = []
            with pytest.raises(StreamClosed):
                for frame in frames:
                    await stream.send(frame)
                while True:
                    answers.append(await stream.receive(1000))
            assert [len(answer) for answer in answers] in ([], [64])
        assert heard == []

    run(main())


def test_a_peer_without_the_key_cannot_pass_for_one_that_has_it() -> None:
    """It passes everything between two members on, and both see that it is neither of them."""

    async def main() -> None:
        network = SimulatedNetwork()
        heard = await serving(network)
        middle = network.host("middle")

        async def relay(stream: Stream) -> None:
            onward = await middle.open_stream("s", PROTOCOL)
            await onward.send(await stream.receive(1000))
            await stream.send(await onward.receive(1000))
            await onward.send(await stream.receive(1000))

        await middle.serve(PROTOCOL, relay)
        with pytest.raises(WrongSwarmKey):
            await host(network, "c", KEY).open_stream("middle", PROTOCOL)
        assert heard == []

    run(main())


# ---- a swarm on a real network --------------------------------------------------------------------------------


async def attempts(outsider: net.Network, member: net.Network, heard: list[bytes]) -> None:
    """What a peer of another key, or of none, can do: read, open streams, store."""
    directory: Any = outsider.directory
    assert await outsider.directory.models() == []
    assert await outsider.directory.lookup(MODEL.key, MODEL.blocks) == []
    host = getattr(outsider.host, "_host")  # noqa: B009 - past its own guard
    with pytest.raises(SwarmError):
        stream = await host.open_stream(member.host.peer_id, PROTOCOL, member.host.addresses)
        await stream.send(b"question")
        await stream.receive(1000)
    assert heard == []
    # It takes part in the DHT, and sees what others have it store.
    secrets = [MODEL.key, MODEL.name, records.MODELS_KEY, member.host.peer_id]
    seen = [item for _, entry in directory._node.protocol.storage.items() for item in entry.value.items()]
    assert len(seen) >= 2
    for subkey, (value, _) in seen:
        assert not any(each.encode() in bytes(value) or each in str(subkey) for each in secrets)
    # With a record of its own that is in order, under the name that it has overheard.
    seal: Any = getattr(member.directory, "_seal")  # noqa: B009
    place = directories.DHTID.generate(seal.name(records.MODELS_KEY))
    expires = time.time() + 60
    forged = records.sign_model(outsider.identity, replace(MODEL, name="forged"), expires)
    stored = await directory._node.protocol.call_store(
        PeerID.from_base58(member.host.peer_id), [place], [directories.msgpack.packb(forged)], expires,
        subkeys=[outsider.identity.peer_id],
    )  # fmt: skip
    assert stored == [False]


@pytest.mark.processes
def test_without_the_key_there_is_nothing_to_be_had(tmp_path: Path) -> None:
    right, wrong = key_file(tmp_path, "right", "a"), key_file(tmp_path, "wrong", "b")

    async def main() -> None:
        heard: list[bytes] = []

        async def handler(stream: Stream) -> None:
            heard.append(await stream.receive(1000))
            await stream.send(b"answer")

        first = await net.open(replace(CONFIG, swarm_key=right))
        joining = replace(CONFIG, initial_peers=tuple(first.host.addresses))
        member = await net.open(replace(joining, swarm_key=right))
        await member.host.serve(PROTOCOL, handler)
        contract = Contract(MODEL.key, Span(0, 4), (bytes(8),) * 4)
        record = ServerRecord(
            member.host.peer_id, contract, addresses=tuple(member.host.addresses), expires=time.time() + 60
        )
        with pytest.raises(WrongSwarmKey):
            await net.open(replace(joining, swarm_key=wrong))
        none: Any = await net.open(joining)
        none.directory._node.protocol.record_validator.validate = lambda record: True
        announced = await member.directory.announce(record, MODEL)
        await attempts(none, member, heard)
        another = await net.open(replace(joining, swarm_key=right))
        assert await another.directory.models() == [MODEL]
        assert await another.directory.lookup(MODEL.key, MODEL.blocks) == [announced]
        stream = await another.host.open_stream(member.host.peer_id, PROTOCOL, announced.addresses)
        await stream.send(b"question")
        assert await stream.receive(1000) == b"answer"
        await member.directory.withdraw(announced)
        assert await another.directory.lookup(MODEL.key, MODEL.blocks) == []
        for network in (another, none, member, first):
            await network.close()

    asyncio.run(main())
