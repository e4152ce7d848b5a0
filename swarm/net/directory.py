"""What every directory does with signed records, wherever they are kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from swarm.config import NetworkConfig
from swarm.errors import NetworkError, RecordRefused
from swarm.net import records
from swarm.net.forwarding import forwarding_pb2 as fwd
from swarm.net.identity import Identity
from swarm.net.twins import Twins
from swarm.types import ModelInfo, PeerId, ServerRecord
from swarm.wire import swarm_pb2 as pb

_LOOK_TIMEOUT = 5.0
"""Seconds by which looking for twins may put off an announcement."""
_LATER = 0.001
"""By so many seconds an expiration must exceed the one that it replaces."""


class SignedDirectory(ABC):
    """Signs what this peer announces, and checks what it reads. Of a `Directory` it lacks how long it lives."""

    def __init__(self, identity: Identity, config: NetworkConfig) -> None:
        self._identity = identity
        self._config = config
        self._latest: dict[str, float] = {}
        """Under each key, until when the last value is kept that this peer stored there."""
        self._twins = Twins(identity.peer_id, identity.instance, config.identity_path)

    @abstractmethod
    async def _read(self, keys: Sequence[str]) -> list[bytes]:
        """Every value that is kept under these keys. Raises NetworkError."""

    @abstractmethod
    async def _store(self, values: Mapping[str, tuple[bytes, float]]) -> None:
        """Keep values of this peer, each with its expiration. Raises NetworkError when nobody took what is not under
        `models`."""

    async def announce(self, record: ServerRecord, model: ModelInfo) -> ServerRecord:
        """As in `Directory`; `expires` of the record returned may be a moment later, to replace what was withdrawn.

        Only so many peers can name a model. Where they do already it needs no more of them, and nothing is raised.
        Raises RecordRefused for a record that others would refuse, NetworkError when nobody took it.
        """
        firsts = range(model.blocks) if self._twins.is_due() else [record.span.first]
        await self._look_for_twins(lambda: self._servers(model.key, firsts))
        key = records.span_key(record.model, record.span.first)
        record = replace(record, expires=self._later(key, record.expires))
        signed = records.sign_record(self._identity, record)
        self.verify(signed)
        until = self._later(records.MODELS_KEY, record.expires)
        entry = records.sign_model(self._identity, model, until)
        await self._store({key: (signed, record.expires), records.MODELS_KEY: (entry, until)})
        self._twins.announced(record.expires)
        return replace(record, instance=self._identity.instance, signed=signed)

    async def withdraw(self, record: ServerRecord) -> None:
        """As in `Directory`. Raises NetworkError when nobody took the tombstone of the record."""
        tombstones = {}
        for key in (records.span_key(record.model, record.span.first), records.MODELS_KEY):
            expires = self._later(key, max(record.expires, time.time() + 1.0) + _LATER)
            tombstones[key] = (records.sign(self._identity, key, b"", expires), expires)
        await self._store(tombstones)

    async def announce_node(self, node: pb.QueryNode, expires: float) -> None:
        """As in `Directory`. Raises RecordRefused for what others would refuse, NetworkError when nobody took it."""
        key = records.node_key(node.contract.model)
        await self._look_for_twins(lambda: self.query_nodes(node.contract.model))
        expires = self._later(key, expires)
        signed = records.sign_node(self._identity, node, expires)
        records.verify_node(signed, now=time.time(), config=self._config)
        await self._store({key: (signed, expires)})
        self._twins.announced(expires)

    async def withdraw_node(self, node: pb.QueryNode) -> None:
        """As in `Directory`. Raises NetworkError when nobody took the tombstone."""
        key = records.node_key(node.contract.model)
        expires = self._later(key, time.time() + self._config.record_lifetime)
        await self._store({key: (records.sign(self._identity, key, b"", expires), expires)})

    async def query_nodes(self, model: str) -> list[pb.QueryNode]:
        """As in `Directory`. Raises NetworkError when the directory cannot be read."""
        nodes = []
        for signed in await self._read([records.node_key(model)]):
            with contextlib.suppress(RecordRefused):
                node = records.verify_node(signed, now=time.time(), config=self._config)
                nodes.append(node)
                expires = records.open_signed(signed, now=time.time(), config=self._config).expires
                self._twins.look(node.peer_id, node.instance, expires, node.addresses)
        return nodes

    async def announce_forwarder(self, forwarder: fwd.Forwarder) -> None:
        """Publish (or renew) that this peer carries for others. Raises RecordRefused, NetworkError."""
        expires = self._later(records.FORWARDERS_KEY, time.time() + self._config.record_lifetime)
        signed = records.sign_forwarder(self._identity, forwarder, expires)
        records.verify_forwarder(signed, now=time.time(), config=self._config)
        await self._store({records.FORWARDERS_KEY: (signed, expires)})

    async def forwarders(self) -> dict[PeerId, fwd.Forwarder]:
        """The peers that carry for others. Raises NetworkError when the directory cannot be read."""
        found = {}
        for signed in await self._read([records.FORWARDERS_KEY]):
            with contextlib.suppress(RecordRefused):
                peer_id, forwarder = records.verify_forwarder(signed, now=time.time(), config=self._config)
                found[peer_id] = forwarder
        return found

    async def _look_for_twins(self, read: Callable[[], Awaitable[object]]) -> None:
        """Who reads what stands under its own keys finds another that announces under them, if it has the same id."""
        if self._latest:
            with contextlib.suppress(NetworkError, TimeoutError):
                async with asyncio.timeout(_LOOK_TIMEOUT):
                    await read()

    def _later(self, key: str, expires: float) -> float:
        """`expires`, or a little later: the DHT takes only what outlives what it replaces."""
        return max(expires, self._latest.get(key, 0.0) + _LATER)

    async def lookup(self, model: str, blocks: int) -> list[ServerRecord]:
        """As in `Directory`. Raises NetworkError when the directory cannot be read."""
        return [record for record in await self._servers(model, range(blocks)) if record.span.last <= blocks]

    async def _servers(self, model: str, firsts: Iterable[int]) -> list[ServerRecord]:
        """The living records of a model's servers whose spans begin with one of these blocks. Raises NetworkError."""
        opened = await self._read([records.span_key(model, first) for first in firsts])
        found = [record for record in self._living(opened) if record.model == model]
        for record in found:
            self._twins.look(record.peer_id, record.instance, record.expires, record.addresses)
        return found

    def _living(self, values: Sequence[bytes]) -> Iterator[ServerRecord]:
        for signed in values:
            with contextlib.suppress(RecordRefused):
                yield self.verify(signed)

    async def models(self) -> list[ModelInfo]:
        """As in `Directory`; where peers differ on a model, what most of them say. Raises NetworkError."""
        votes: Counter[ModelInfo] = Counter()
        for signed in await self._read([records.MODELS_KEY]):
            with contextlib.suppress(RecordRefused):
                votes[records.verify_model(signed, now=time.time(), config=self._config)] += 1
        first: dict[str, ModelInfo] = {}
        for info, _ in votes.most_common():
            first.setdefault(info.key, info)
        return list(first.values())

    def verify(self, signed: bytes) -> ServerRecord:
        return records.verify_record(signed, now=time.time(), config=self._config)
