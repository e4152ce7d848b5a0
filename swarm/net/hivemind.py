"""The real network: hivemind's libp2p daemon for streams and its Kademlia DHT for the directory, on our own loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import swarm.net.protobuf  # noqa: F401  isort: skip  (before hivemind)

from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.control import P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure, DispatchFailure
from hivemind.utils import MSGPackSerializer
from hivemind.utils.multiaddr import Multiaddr

from swarm.config import NetworkConfig
from swarm.errors import (
    FrameTooLarge,
    NetworkError,
    PeerUnreachable,
    ProtocolError,
    RecordRefused,
    StreamClosed,
    SwarmError,
)
from swarm.net import records
from swarm.net.base import StreamHandler
from swarm.net.daemon import Daemon
from swarm.net.identity import Identity
from swarm.types import ModelInfo, PeerId, ServerRecord
from swarm.wire.framing import read_frame, write_frame

log = logging.getLogger(__name__)

FOREIGN = (ControlFailure, DispatchFailure, P2PDaemonError, ConnectionError, OSError, asyncio.IncompleteReadError)
MAX_RECORDS = 4096
"""Records of one directory key that a reader looks at."""


class HivemindStream:
    """One libp2p stream through the daemon; satisfies `Stream`."""

    def __init__(self, host: HivemindHost, peer_id: PeerId, reader: asyncio.StreamReader, writer: Any) -> None:
        self._host = host
        self._peer_id = peer_id
        self._reader = reader
        self._writer = writer
        host.streams.add(self)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    async def send(self, frame: bytes) -> None:
        if self._writer.is_closing():
            raise StreamClosed(f"the stream with {self._peer_id} is closed")
        try:
            write_frame(self._writer, frame)
            await self._writer.drain()
        except (ConnectionError, OSError) as error:
            self.close()
            raise StreamClosed(f"the stream with {self._peer_id} was lost") from error

    async def receive(self, limit: int) -> bytes:
        try:
            return await read_frame(self._reader, limit)
        except StreamClosed as error:
            self.close()
            raise StreamClosed(f"the stream with {self._peer_id} ended") from error
        except ProtocolError as error:
            self.close()
            raise type(error)(f"{self._peer_id}: {error}") from error

    def close(self) -> None:
        self._host.streams.discard(self)
        self._writer.close()


class HivemindHost:
    """A peer on the real network; satisfies `Host`. `died` is set when its daemon has ended unasked."""

    def __init__(self, p2p: P2P, daemon: Daemon, identity: Identity, config: NetworkConfig) -> None:
        self.p2p = p2p
        self.identity = identity
        self.config = config
        self.streams: set[HivemindStream] = set()
        self.died = daemon.died
        self._daemon = daemon
        self._addresses: tuple[str, ...] = ()
        self._known: set[PeerId] = set()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def addresses(self) -> Sequence[str]:
        return self._addresses

    async def refresh_addresses(self) -> None:
        """Ask the daemon again where others see it."""
        visible = await self.p2p.get_visible_maddrs(latest=True)
        chosen = [str(maddr) for maddr in visible]
        self._addresses = tuple(sorted(chosen, key=lambda a: ("/127.0.0.1/" in a or "/ip6/::1/" in a, "udp" in a)))

    async def open_stream(self, peer_id: PeerId, protocol: str, addresses: Sequence[str] = ()) -> HivemindStream:
        try:
            return await asyncio.wait_for(self._open(peer_id, protocol, addresses), self.config.dial_timeout)
        except TimeoutError:
            raise PeerUnreachable(f"{peer_id} did not answer within {self.config.dial_timeout:.0f} s") from None
        except FOREIGN as error:
            self._known.discard(peer_id)
            raise PeerUnreachable(f"{peer_id} cannot be reached under {protocol}: {error}") from error

    async def _open(self, peer_id: PeerId, protocol: str, addresses: Sequence[str]) -> HivemindStream:
        peer = PeerID.from_base58(peer_id)
        if peer_id not in self._known:
            await self._connect(peer, addresses)
            self._known.add(peer_id)
        try:
            _, reader, writer = await self.p2p.call_binary_stream_handler(peer, protocol)
        except ControlFailure:
            # The connection may have ended since; the daemon forgets addresses that it was not told of lately.
            await self._connect(peer, addresses)
            _, reader, writer = await self.p2p.call_binary_stream_handler(peer, protocol)
        return HivemindStream(self, peer_id, reader, writer)

    async def _connect(self, peer: PeerID, addresses: Sequence[str]) -> None:
        dialled = [
            Multiaddr(address.split("/p2p/")[0] if "/p2p-circuit" not in address else address) for address in addresses
        ]
        await self.p2p._client.connect(peer, dialled)

    async def serve(self, protocol: str, handler: StreamHandler) -> None:
        async def handle(info: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = HivemindStream(self, info.peer_id.to_base58(), reader, writer)
            try:
                await handler(stream)
            except SwarmError as error:
                log.debug("stream of %s under %s: %s", stream.peer_id, protocol, error)
            except Exception:
                log.exception("the handler of %s failed on a stream of %s", protocol, stream.peer_id)
            finally:
                await _flush(writer)
                stream.close()

        await self.p2p.add_binary_stream_handler(protocol, handle)

    async def close(self) -> None:
        self.died = asyncio.Event()
        for stream in list(self.streams):
            stream.close()
        with contextlib.suppress(*FOREIGN):
            await self.p2p.shutdown()
        await self._daemon.close()
        if self._temporary is not None:
            self._temporary.cleanup()


async def _flush(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, OSError):
        await writer.drain()


async def create_host(config: NetworkConfig, *, binary: Path | None = None) -> HivemindHost:
    """Start a peer. Without `identity_path` it gets an identity for this run only. Raises DaemonFailed, InvalidInput."""
    temporary = None
    if config.identity_path is None:
        temporary = tempfile.TemporaryDirectory(prefix="swarm-identity-")
        file = Path(temporary.name) / "identity"
    else:
        file = Path(config.identity_path).expanduser()
    identity = Identity.load_or_create(file)
    daemon = await Daemon.start(config, file, binary)
    p2p = await P2P.replicate(Multiaddr(daemon.control))
    host = HivemindHost(p2p, daemon, identity, config)
    host._temporary = temporary
    await host.refresh_addresses()
    return host


class SignedRecords(RecordValidatorBase):  # type: ignore[misc]
    """Lets only values into the DHT that their subkey's owner signed, for that key."""

    def __init__(self, config: NetworkConfig) -> None:
        self.config = config

    def validate(self, record: DHTRecord) -> bool:
        try:
            opened = _open_dht(record.value, record.subkey, self.config)
        except RecordRefused as error:
            log.info("a directory record was refused: %s", error)
            return False
        fits = DHTID.generate(opened.key).to_bytes() == record.key
        return fits and abs(opened.expires - record.expiration_time) < 1e-3

    def merge_with(self, other: RecordValidatorBase) -> bool:
        return False


def _open_dht(value: bytes, subkey: bytes, config: NetworkConfig) -> records.Opened:
    """A DHT value whose subkey is its signer. Raises RecordRefused."""
    try:
        signed, owner = MSGPackSerializer.loads(value), MSGPackSerializer.loads(subkey)
    except Exception as error:
        raise RecordRefused("the value or the subkey is no msgpack") from error
    if not isinstance(signed, bytes) or not isinstance(owner, str):
        raise RecordRefused("the value or the subkey is of the wrong type")
    opened = records.open_signed(signed, now=time.time(), config=config)
    if opened.peer_id != owner.split("/")[0]:
        raise RecordRefused(f"{opened.peer_id} signed what is stored under {owner}")
    return opened


class HivemindDirectory:
    """The directory in the DHT; satisfies `Directory`."""

    def __init__(self, host: HivemindHost, node: DHTNode, config: NetworkConfig) -> None:
        self._host = host
        self._node = node
        self._config = config

    async def announce(self, record: ServerRecord, model: ModelInfo) -> ServerRecord:
        identity = self._host.identity
        signed = records.sign_record(identity, record)
        if len(signed) > self._config.record_max_bytes:
            raise RecordRefused(f"this record takes {len(signed)} bytes, above {self._config.record_max_bytes}")
        entry = records.sign_model(identity, model, record.expires)
        stored = await self._store(
            [records.span_key(record.model, record.span.first), records.MODELS_KEY],
            [signed, entry],
            [identity.peer_id, f"{identity.peer_id}/{model.key}"],
            record.expires,
        )
        if not stored:
            raise NetworkError("nobody in the directory took this record; is the clock of this machine right?")
        return records.verify_record(signed, now=time.time(), config=self._config)

    async def withdraw(self, record: ServerRecord) -> None:
        expires = max(record.expires, time.time()) + 1.0
        key = records.span_key(record.model, record.span.first)
        tombstone = records.sign(self._host.identity, key, b"", expires)
        await self._store([key], [tombstone], [self._host.peer_id], expires)

    async def _store(self, keys: list[str], values: list[bytes], subkeys: list[str], expires: float) -> bool:
        try:
            stored = await self._node.store_many(keys, values, expires, subkeys=subkeys)
        except FOREIGN as error:
            raise NetworkError(f"the directory cannot be reached: {error}") from error
        return all(stored.values())

    async def lookup(self, model: str, blocks: int) -> list[ServerRecord]:
        keys = [records.span_key(model, first) for first in range(blocks)]
        found = [record for signed in await self._read(keys) for record in self._records(signed)]
        return [record for record in found if record.model == model and record.span.last <= blocks]

    def _records(self, signed: bytes) -> Iterator[ServerRecord]:
        try:
            if records.open_signed(signed, now=time.time(), config=self._config).value:
                yield self.verify(signed)
        except RecordRefused as error:
            log.info("a record was passed over: %s", error)

    async def models(self) -> list[ModelInfo]:
        found: dict[str, ModelInfo] = {}
        for signed in await self._read([records.MODELS_KEY]):
            with contextlib.suppress(RecordRefused):
                model = records.verify_model(signed, now=time.time(), config=self._config)
                found.setdefault(model.key, model)
        return list(found.values())

    async def _read(self, keys: Sequence[str]) -> list[bytes]:
        """Every signed value under these keys, the latest of each subkey."""
        try:
            found = await self._node.get_many(keys, sufficient_expiration_time=float("inf"))
        except FOREIGN as error:
            raise NetworkError(f"the directory cannot be read: {error}") from error
        entries = [entry.value for entry in found.values() if entry is not None and isinstance(entry.value, dict)]
        values = [item.value for entry in entries for item in list(entry.values())[:MAX_RECORDS]]
        return [value for value in values if isinstance(value, bytes)]

    def verify(self, signed: bytes) -> ServerRecord:
        return records.verify_record(signed, now=time.time(), config=self._config)

    async def close(self) -> None:
        """Leave the DHT; the host stays."""
        await self._node.shutdown()


async def open_directory(host: HivemindHost, config: NetworkConfig) -> HivemindDirectory:
    """Join the DHT. Raises PeerUnreachable, naming them, when none of the initial peers answers."""
    for name in ("hivemind", "hivemind.dht"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        node = await DHTNode.create(
            p2p=host.p2p,
            initial_peers=[Multiaddr(peer) for peer in config.initial_peers],
            record_validator=SignedRecords(config),
            cache_locally=False,
            cache_on_store=False,
            cache_nearest=0,
            num_replicas=5,
            wait_timeout=5.0,
            bootstrap_timeout=config.dial_timeout,
            ensure_bootstrap_success=bool(config.initial_peers),
            strict=True,
        )
    except Exception as error:
        peers = "\n".join(f"  {peer}" for peer in config.initial_peers)
        raise PeerUnreachable(
            f"no initial peer could be joined:\n{peers}\nreason: {error}\n"
            "Check the addresses, that one of them runs, and that this machine's clock is right to 3 seconds."
        ) from error
    return HivemindDirectory(host, node, config)


__all__ = ["FrameTooLarge", "HivemindDirectory", "HivemindHost", "create_host", "open_directory"]
