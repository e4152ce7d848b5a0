"""What is changed within hivemind and py-libp2p: that each patch works, and that the library still needs it.

Where a library is to be seen without the patches, it is in an interpreter of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

import swarm.net.patches as patches  # before hivemind

import base58  # isort: skip
import msgpack  # isort: skip
import trio  # isort: skip
from hivemind.dht.protocol import DHTProtocol  # isort: skip
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue  # isort: skip
from hivemind.p2p import PeerID  # isort: skip
from libp2p.transport.webrtc import _aiortc_helpers, connection, listener  # isort: skip
from swarm.net.edge.webrtc import FIRST_CONTACTS

AGREE = """
import tempfile
from pathlib import Path
from hivemind.p2p import P2P, PeerID
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.rsa import RSAPrivateKey
from libp2p.peer.id import ID
with tempfile.TemporaryDirectory() as folder:
    P2P.generate_identity(f"{folder}/key")
    data = Path(folder, "key").read_bytes()
private = crypto_pb2.PrivateKey.FromString(data)
assert private.key_type == crypto_pb2.KeyType.RSA
public = RSAPrivateKey.from_bytes(private.data).get_public_key()
print(PeerID.from_identity(data).to_base58() == ID.from_pubkey(public).to_base58())
"""


def run(code: str) -> list[str]:
    """The lines that `code` prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("owner", "name"), [(o, n) for o, names in patches.PRIVATE.items() for n in names])
def test_private_parts_that_are_used_are_there(owner: str, name: str) -> None:
    module, _, kind = owner.rpartition(".")
    found = getattr(importlib.import_module(module), kind)
    sources = "".join(inspect.getsource(each) for each in found.__mro__[:-1] if each.__module__ == found.__module__)
    assert hasattr(found, name) or f"self.{name}" in sources


# ---- 1 to 3: importing ------------------------------------------------------------------------------------------


def test_both_still_define_the_same_file() -> None:
    clash = """
import hivemind.proto.crypto_pb2
try:
    import libp2p.crypto.pb.crypto_pb2
except TypeError as error:
    print("duplicate" in str(error))
"""
    assert run(clash) == ["True"]


def test_importing_a_part_of_hivemind_still_imports_all() -> None:
    assert run("import sys, hivemind.p2p; print('hivemind.optim' in sys.modules)") == ["True"]


def test_hivemind_still_renames_the_level_of_warnings() -> None:
    assert run("import logging, hivemind.utils.logging; print(logging.getLevelName(30) == 'WARNING')") == ["False"]


def test_without_libp2p_hivemind_keeps_its_own() -> None:
    """As where only servers and clients were installed, which need no edge."""
    absent = """
import sys
from importlib.machinery import PathFinder
class Absent(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "libp2p" else super().find_spec(name, path, target)
sys.meta_path[:] = [Absent if each is PathFinder else each for each in sys.meta_path]
import swarm.net.hivemind.host as net
print(net.HivemindHost.__name__, "libp2p" in sys.modules)
"""
    assert run(absent) == ["HivemindHost False"]


def test_swarm_first() -> None:
    before = """
import swarm.net.patches, hivemind, logging, sys
print("libp2p" in sys.modules, "trio" in sys.modules, logging.getLevelName(logging.WARNING))
print(hasattr(hivemind, "__nothing__"), hivemind.__version__ != "", hasattr(hivemind, "nothing"), hivemind.DHT.__name__)
"""
    assert run(before + AGREE) == ["False False WARNING", "False True False DHT", "True"]


def test_libp2p_first() -> None:
    assert run("import libp2p; import swarm.net.patches" + AGREE) == ["True"]


def test_hivemind_first() -> None:
    """Then libp2p stays out, which the host over p2pd does not need."""
    assert run("import hivemind; import swarm.net.hivemind.host as net; print(net.HivemindHost.__name__)") == [
        "HivemindHost"
    ]


# ---- 4: peer ids ------------------------------------------------------------------------------------------------


def test_hivemind_still_spells_each_peer_id_anew() -> None:
    counted = """
import base58
from types import SimpleNamespace
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings import datastructures
spelled = []
datastructures.base58 = SimpleNamespace(b58encode=lambda raw: spelled.append(raw) or base58.b58encode(raw))
for _ in range(3):
    PeerID(b"x" * 38).to_base58()
print(len(spelled) >= 3)
"""
    assert run(counted) == ["True"]


def test_ids_of_peers_are_remembered_and_long_ones_are_not() -> None:
    remembered: Any = patches.remember_peer_ids()
    for raw in (b"x" * 38, b"x" * 38, b"x" * 1000):
        assert PeerID(raw).to_base58() == base58.b58encode(raw).decode()
    assert (remembered.cache_info().currsize, remembered.cache_info().hits > 0) == (1, True)
    assert PeerID.from_base58(PeerID(b"y" * 38).to_base58()) == PeerID(b"y" * 38)


# ---- 5: the directory -------------------------------------------------------------------------------------------


def test_hivemind_still_stores_without_bounds() -> None:
    storage, key, until = DHTLocalStorage(), b"key", time.time() + 60.0
    assert all(storage.store_subkey(key, f"peer{n}", b"x", until) for n in range(2000))


def test_one_bad_entry_still_hides_all_others() -> None:
    entries = DictionaryDHTValue()
    for peer, value in (("good", b"good"), ("bad", b"bad")):
        entries.store(peer, value, time.time() + 60.0)
    validator = SimpleNamespace(validate=lambda record: record.value == b"good")
    protocol = SimpleNamespace(record_validator=validator, serializer=SimpleNamespace(dumps=msgpack.dumps))
    assert not DHTProtocol._validate_dictionary(protocol, b"key", entries)


def test_a_node_gets_what_is_bounded() -> None:
    node = SimpleNamespace(protocol=SimpleNamespace())
    patches.bound_directory(node, "storage", "cache", lambda key, entries: True)
    assert (node.protocol.storage, node.protocol.cache) == ("storage", "cache")
    assert node.protocol._validate_dictionary(b"key", {})


# ---- 6 to 8: WebRTC ---------------------------------------------------------------------------------------------


def test_first_contacts_are_still_let_in_faster_than_we_can_bear() -> None:
    assert listener.STUN_FIRST_CONTACT_RATE > FIRST_CONTACTS
    listening = SimpleNamespace(_first_contact_limiter=listener._FirstContactLimiter())
    patches.limit_first_contacts(listening, FIRST_CONTACTS)
    limiter: Any = listening._first_contact_limiter
    while limiter.allow("192.0.2.1", 0.0):
        pass
    assert [limiter.allow("192.0.2.1", 1.0) for _ in range(3)] == [True, True, False]


def test_writers_still_do_not_wait_by_themselves_and_do_when_they_are_made_to() -> None:
    assert "bufferedAmount" not in inspect.getsource(_aiortc_helpers)
    done: list[str] = []

    async def send(number: int, data: bytes) -> None:
        done.append(f"sent {number} {data!r}")

    async def room() -> None:
        done.append("waited")

    patched = SimpleNamespace(_send_on_channel_cb=send)
    patches.make_writers_wait(patched, room)
    asyncio.run(patched._send_on_channel_cb(1, b"x"))  # type: ignore[call-arg, arg-type, func-returns-value]
    assert done == ["sent 1 b'x'", "waited"]


def test_a_lost_connection_still_ends_no_streams_and_does_when_told() -> None:
    assert "connectionState" not in inspect.getsource(connection)
    ended = "_accept_send, self._accept_recv = trio.open_memory_channel"
    assert ended in inspect.getsource(connection.WebRTCConnection)

    async def main() -> None:
        sending, receiving = trio.open_memory_channel[None](1)
        patches.end_streams(SimpleNamespace(_accept_send=sending))
        with pytest.raises(trio.EndOfChannel):
            await receiving.receive()

    trio.run(main)
