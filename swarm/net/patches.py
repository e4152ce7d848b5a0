"""All that is changed within other libraries, each with its reason; nothing is anywhere else.

A test for each (tests/net/test_patches.py) fails when the library has it no longer, or needs it no longer. The first
three happen when this is imported, which has to be before anything of hivemind or libp2p; the others when called.

hivemind
1. `crypto.pb`: hivemind and libp2p both define that protobuf file, and protobuf takes a symbol only once. libp2p's is
   the larger of the two, so hivemind gets libp2p's, loaded without the rest of libp2p.
2. Its `__init__` imports the training parts, which takes seconds: it runs when somebody asks for what it exports.
3. Its logging: only errors, through the program's own; and the level of warnings gets its name back.
4. `PeerID.to_base58`: every answer of the directory spells the same ids again, once half of the time of a read.
5. The directory's storage, without a bound on what strangers store, its cache, which strangers write, and the check of
   an answer, of which one bad entry hides all others.

py-libp2p
6. New WebRTC connections from one ip in a second: as many as take all places for handshakes.
7. Writers on a WebRTC data channel never wait for a peer that does not read.
8. Nothing ends the streams of a WebRTC connection when the connection is lost without a word.

What is used of their private parts besides is in `PRIVATE`.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PRIVATE: Mapping[str, tuple[str, ...]] = {
    "libp2p.transport.webrtc._udp_mux.UdpMux": ("_by_addr", "_transport"),
    "libp2p.transport.webrtc.connection.WebRTCConnection": ("_accept_send", "_send_on_channel_cb"),
    "libp2p.transport.webrtc.listener.WebRTCDirectListener": (
        "_bind_listener_sockets", "_finish_inbound", "_first_contact_limiter", "_mux",
    ),
    "libp2p.transport.webtransport.connection.WebTransportConnection": (
        "_closed", "_handle_quic_event", "_on_wt_stream_data", "_process_events", "_quic", "_remote_addr",
        "_send_stream_data", "_session_id", "_streams", "_timer_loop",
    ),
    "libp2p.transport.webtransport.listener.WebTransportListener": (
        "_accept_new_connection", "_bound_port", "_config", "_connections", "_handle_inbound", "_local_peer_id",
        "_nursery", "_recv_loop", "_socket",
    ),
    "hivemind.dht.protocol.DHTProtocol": ("_validate_dictionary",),
}  # fmt: skip
"""Classes of other libraries, and those of their private attributes that `swarm.net` reads or overrides."""

_LIBP2P = "libp2p.crypto.pb.crypto_pb2"
_HIVEMIND = "hivemind.proto.crypto_pb2"


def folder_of(package: str) -> Path:
    """Where an installed package lies, without importing it. Raises ImportError."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed; it comes with swarm's dependencies: pip install swarm-llm")
    return Path(spec.submodule_search_locations[0])


def _share_definitions() -> None:
    """Where the program imported hivemind before us, hivemind keeps its own; libp2p can then not be imported.

    So it does where libp2p is not installed: it comes with the extra for browsers.
    """
    if _HIVEMIND in sys.modules or importlib.util.find_spec("libp2p") is None:
        return
    if _LIBP2P not in sys.modules:
        path = folder_of("libp2p") / "crypto" / "pb" / "crypto_pb2.py"
        _load(importlib.util.spec_from_file_location(_LIBP2P, path), execute=True)
    sys.modules[_HIVEMIND] = sys.modules[_LIBP2P]


def _postpone_hivemind() -> None:
    """Make `hivemind` a package whose own `__init__` runs when something that it exports is asked for."""
    if "hivemind" in sys.modules or importlib.util.find_spec("hivemind") is None:
        return
    spec = importlib.util.find_spec("hivemind")
    module = _load(spec, execute=False)

    def load(name: str) -> Any:
        # `import hivemind.p2p.x as x` asks for `p2p` before it is whole: that is no reason to import all the rest.
        if submodule := sys.modules.get(f"hivemind.{name}"):
            return submodule
        if name.startswith("__") and name not in ("__version__", "__all__"):
            raise AttributeError(f"module 'hivemind' has no attribute {name!r}")
        del module.__dict__["__getattr__"]
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = load


def _load(spec: ModuleSpec | None, *, execute: bool) -> ModuleType:
    if spec is None or spec.loader is None:
        raise ImportError("hivemind or libp2p is installed in parts: pip install --force-reinstall swarm-llm")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    if execute:
        spec.loader.exec_module(module)
    return module


def _quieten_hivemind() -> None:
    """Only errors, through the program's own logging; and give back the name of the level of warnings.

    multiaddr writes a line for each part of each address that it reads.
    """
    logging.getLogger("multiaddr").setLevel(logging.WARNING)
    if importlib.util.find_spec("hivemind") is None:
        return
    from hivemind.utils.logging import use_hivemind_log_handler

    use_hivemind_log_handler("nowhere")
    logging.addLevelName(logging.WARNING, "WARNING")
    logging.getLogger("hivemind").setLevel(logging.ERROR)


_LONGEST_PEER_ID = 64
_REMEMBERED = 16_384


def remember_peer_ids() -> Callable[[bytes], bytes]:
    """Make hivemind spell a peer id once. Returns what remembers them."""
    import base58
    from hivemind.p2p.p2p_daemon_bindings import datastructures

    remembered = functools.lru_cache(_REMEMBERED)(base58.b58encode)

    def encode(raw: bytes) -> bytes:
        return remembered(raw) if len(raw) <= _LONGEST_PEER_ID else base58.b58encode(raw)

    datastructures.base58 = SimpleNamespace(b58encode=encode, b58decode=base58.b58decode)
    return remembered


def bound_directory(node: Any, storage: Any, cache: Any, check_answer: Callable[[bytes, Any], bool]) -> None:
    """Give a node of hivemind's DHT another storage and cache, and another check of what others answer."""
    node.protocol.storage, node.protocol.cache = storage, cache
    node.protocol._validate_dictionary = check_answer


def limit_first_contacts(listener: Any, rate: float) -> None:
    """Let so many new WebRTC connections a second come from one ip, after a few at once."""
    listener._first_contact_limiter = type(listener._first_contact_limiter)(rate=rate)


def make_writers_wait(connection: Any, room: Callable[[], Awaitable[None]]) -> None:
    """Make writers of a WebRTC connection wait for `room`, on its own loop, after each piece."""
    send = connection._send_on_channel_cb

    async def patiently(number: int, data: bytes) -> None:
        await send(number, data)
        await room()

    connection._send_on_channel_cb = patiently


def end_streams(connection: Any) -> None:
    """Let a WebRTC connection accept no more streams: who waits for one hears that it has ended."""
    connection._accept_send.close()


_share_definitions()
_postpone_hivemind()
_quieten_hivemind()
