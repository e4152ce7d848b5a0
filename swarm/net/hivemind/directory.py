"""The directory over hivemind's Kademlia DHT, where every record is signed by its owner."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import swarm.net.patches  # noqa: F401  isort: skip  (before hivemind)

import msgpack
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.p2p import PeerID

from swarm.config import NetworkConfig
from swarm.errors import NetworkError, PeerUnreachable, RecordRefused
from swarm.net import records
from swarm.net.base import DirectoryStatistics
from swarm.net.directory import SignedDirectory
from swarm.net.forwarding.reach import Reach
from swarm.net.identity import Identity
from swarm.net.patches import bound_directory, remember_peer_ids
from swarm.net.swarm_key import OVERHEAD, NoSeal, Seal
from swarm.tasks import Tasks
from swarm.types import PeerId

if TYPE_CHECKING:
    from swarm.net.hivemind.daemon import Daemon
    from swarm.net.hivemind.host import HivemindHost

log = logging.getLogger(__name__)

_OPERATION_TIMEOUT = 30.0
_REPLY_TIMEOUT = 3.0
_REPLICAS = 5
_WORKERS = 16
"""Peers that a read asks at the same time. A read of a deep model asks hundreds of questions."""
_NEVER_ENOUGH = float("nan")
"""An expiration that no answer reaches, not even one that claims to live for ever: a read asks every node it meets."""
_MOST_INITIAL = 64
"""Peers that are greeted now and then."""


remember_peer_ids()


class SignedRecords(RecordValidatorBase):  # type: ignore[misc]
    """Lets only values into the DHT that their subkey's owner signed, for that key and until that time.

    What has expired passes: the storage drops it, and it must not take living records beside it along.
    """

    def __init__(self, config: NetworkConfig, seal: Seal | None = None) -> None:
        self._config = config
        self._seal = seal or NoSeal()

    def validate(self, record: DHTRecord) -> bool:
        """Whether a record as it is in the DHT may be stored or read. Never raises."""
        try:
            self._check(record)
        except (RecordRefused, ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            log.info("a directory record was refused: %s", error)
            return False
        return True

    def _check(self, record: DHTRecord) -> None:
        if len(record.value) > self._config.record_max_bytes + OVERHEAD + 8:
            raise RecordRefused(f"a value of {len(record.value)} bytes")
        signed, subkey = msgpack.unpackb(record.value), msgpack.unpackb(record.subkey)
        if not isinstance(signed, bytes):
            raise RecordRefused("the value is not bytes")
        signed = self._seal.open(record.key, signed)
        opened = records.open_signed(signed, now=time.time(), config=self._config)
        if subkey != self._seal.name(opened.peer_id):
            raise RecordRefused(f"{opened.peer_id} signed what is stored under {subkey!r}")
        if _place(self._seal.name(opened.key)) != record.key:
            raise RecordRefused(f"what {opened.peer_id} signed for {opened.key} is stored under another key")
        if opened.expires != record.expiration_time:
            raise RecordRefused(f"the life of a record of {opened.peer_id} was changed")
        records.check_content(opened)

    def drop_invalid(self, key: bytes, entries: DictionaryDHTValue) -> bool:
        """Keep only the valid entries of an answer, and not too many. Always true: what is left may be read.

        hivemind throws an answer away for one bad entry. Then one record that only some peers refuse, because of their
        clock or their version, would hide everybody's.
        """
        with entries.freeze():
            for place, (subkey, (value, expires)) in enumerate(list(entries.items())):
                record = DHTRecord(key, msgpack.packb(subkey), value, expires)
                if place >= self._config.max_records_per_key or not self.validate(record):
                    del entries[subkey]
        return True

    def merge_with(self, other: RecordValidatorBase) -> bool:
        return False


class CappedStorage(DHTLocalStorage):  # type: ignore[misc]
    """What this node stores for others, with a bound on the keys and on the peers under one key."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self._config = config

    def store_subkey(self, key: DHTID, subkey: str, value: bytes, expiration_time: float) -> bool:
        """As in hivemind; refuses a key or a peer too many. What is there already counts as stored.

        A peer that restarted has two ids in the DHT for a while, and is given everything twice. hivemind notes the
        time of what it does not take, too: sent again and again, one record would fill the memory.
        """
        found = self.get(key)
        if found is None and len(self) >= self._config.max_keys:
            return False
        if found is not None and isinstance(found.value, DictionaryDHTValue):
            before = found.value.get(subkey)
            if before is not None and before.expiration_time >= expiration_time:
                return bool(before == (value, expiration_time))
            if before is None and len(found.value) >= self._config.max_records_per_key:
                return False
        return bool(super().store_subkey(key, subkey, value, expiration_time))


class NoCache(DHTLocalStorage):  # type: ignore[misc]
    """Takes nothing. Any peer may write another's cache, and what is in it hides what is stored under the same key."""

    def store(self, *entry: object) -> bool:
        return False

    def store_subkey(self, *entry: object) -> bool:
        return False


class HivemindDirectory(SignedDirectory):
    """The directory in the DHT; satisfies `Directory`."""

    def __init__(
        self,
        node: DHTNode,
        daemon: Daemon,
        identity: Identity,
        initial: Sequence[PeerID],
        config: NetworkConfig,
        seal: Seal,
    ) -> None:
        super().__init__(identity, config)
        self._seal = seal
        self._node = node
        self._daemon = daemon
        self._initial = list(initial)
        self._background = Tasks(log)
        self._background.spawn(self._stay_known(), name="directory")

    def statistics(self) -> DirectoryStatistics:
        """What this node keeps and knows, as of now."""
        protocol = self._node.protocol
        return DirectoryStatistics(len(protocol.storage), len(protocol.routing_table.uid_to_peer_id))

    async def _store(self, values: Mapping[str, tuple[bytes, float]]) -> None:
        self._latest |= {key: expires for key, (_, expires) in values.items()}
        await self.keep(self._identity.peer_id, values)

    async def keep(self, owner: PeerId, values: Mapping[str, tuple[bytes, float]]) -> None:
        """Store values that `owner` signed, each with its expiration.

        Raises NetworkError when nobody took what is not under `models`.
        """
        self._check_daemon()
        signed, expires = zip(*values.values(), strict=True)
        try:
            async with asyncio.timeout(_OPERATION_TIMEOUT):
                names = [self._seal.name(key) for key in values]
                sealed = [self._seal.close(_place(name), each) for name, each in zip(names, signed, strict=True)]
                subkeys = [self._seal.name(owner)] * len(names)
                stored = await self._node.store_many(names, sealed, list(expires), subkeys=subkeys)
        except Exception as error:
            self._check_daemon()
            raise NetworkError(f"the directory cannot be written: {_words(error)}") from error
        if all(stored.values()):
            return
        # hivemind says what the last node said that answered; one that refuses must not speak for all.
        there = set(await self.read(list(values)))
        refused = {key for key, (value, _) in values.items() if value not in there}
        if refused - {records.MODELS_KEY}:
            raise NetworkError("nobody in the directory took this record; is this machine's clock right?")
        if refused:
            log.info("enough peers name a model already")

    async def _read(self, keys: Sequence[str]) -> list[bytes]:
        return await self.read(keys)

    async def read(self, keys: Sequence[str]) -> list[bytes]:
        """Every value under these keys, in one traversal that stops at nothing but the last node.

        Raises NetworkError.
        """
        self._check_daemon()
        try:
            async with asyncio.timeout(_OPERATION_TIMEOUT):
                found = await self._get([self._seal.name(key) for key in keys])
        except Exception as error:
            self._check_daemon()
            raise NetworkError(f"the directory cannot be read: {_words(error)}") from error
        values = []
        for name, entry in found.items():
            if entry is None or not isinstance(entry.value, dict):
                continue
            for item in entry.value.values():
                if isinstance(item.value, bytes):
                    with contextlib.suppress(RecordRefused):
                        values.append(self._seal.open(_place(name), item.value))
        return values

    async def _get(self, keys: Sequence[str]) -> Mapping[str, Any]:
        """What is stored under keys, None where nothing is. Raises NetworkError when there is nobody to ask."""
        found = await self._find(keys)
        if any(found.values()) or not self._initial:
            return found
        # Nothing may be there, or nobody may have answered: hivemind does not tell, and strikes off later who did not.
        if not await self._greet():
            raise NetworkError("none of its peers answers")
        return await self._find(keys)

    async def _find(self, keys: Sequence[str]) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._node.get_many(keys, sufficient_expiration_time=_NEVER_ENOUGH)
        return found

    def _check_daemon(self) -> None:
        """hivemind would wait for answers, or find nothing. Raises DaemonFailed when p2pd is dead."""
        if self._daemon.died.is_set():
            raise self._daemon.failure()

    def neighbours(self) -> list[PeerId]:
        """Peers that take part in the directory, as far as this one knows them."""
        return [peer.to_base58() for peer in self._node.protocol.routing_table.uid_to_peer_id.values()]

    async def meet(self, peer_id: PeerId) -> None:
        """Take part in the directory together with a peer that this one is connected to; from now on it is greeted as
        the initial peers are."""
        peer = PeerID.from_base58(peer_id)
        if peer not in self._initial and len(self._initial) < _MOST_INITIAL:
            self._initial.append(peer)
            await self._node.protocol.call_ping(peer)

    async def _stay_known(self) -> None:
        while True:
            await asyncio.sleep(self._config.rejoin)
            await self._greet()

    async def _greet(self) -> bool:
        """Tell the initial peers that we are here, and be told so by those that answer. Whether any does."""
        pings = (self._node.protocol.call_ping(peer) for peer in self._initial)
        answers = await asyncio.gather(*pings, return_exceptions=True)
        return any(isinstance(answer, DHTID) for answer in answers)

    async def close(self) -> None:
        """Take no more part in the directory. May be called twice."""
        self._node.is_alive = False
        await self._background.close()


async def open_directory(host: HivemindHost, seal: Seal | None = None) -> HivemindDirectory:
    """Take part in the DHT, through the initial peers that `host` reached; `seal`: how all stands in it.

    Raises NetworkError, PeerUnreachable.
    """
    config, initial_peers = host.config, host.joined
    initial = sorted({PeerID.from_base58(_last_peer(address)) for address in initial_peers})
    seal = seal or NoSeal()
    validator = SignedRecords(config, seal)
    try:
        node = await DHTNode.create(
            p2p=await host.p2p(),
            # Whoever starts anew has its old place; and of two machines with one key, which answer each other's pings,
            # the second would be told that nobody can reach it, and never learn why.
            node_id=DHTID.generate(host.peer_id),
            initial_peers=initial_peers,
            record_validator=validator,
            num_replicas=_REPLICAS,
            num_workers=_WORKERS,
            wait_timeout=_REPLY_TIMEOUT,
            # Nobody could ask it, and whoever tried would wait in vain: it only asks.
            client_mode=host.reachability.found.reach is Reach.NAT,
            # A view must show what is there now; caches would show what was there some time ago.
            cache_locally=False,
            cache_nearest=0,
            cache_on_store=False,
            cache_refresh_before_expiry=0,
            reuse_get_requests=False,
        )
    except Exception as error:
        raise _not_joined(error, initial_peers) from error
    bound_directory(node, CappedStorage(config), NoCache(), validator.drop_invalid)
    return HivemindDirectory(node, host.daemon, host.identity, initial, config, seal)


def _not_joined(error: Exception, initial_peers: Sequence[str]) -> NetworkError:
    peers = "\n  ".join(initial_peers)
    if "local time must be within" in str(error):
        return NetworkError(
            "this machine's clock differs from the swarm's by more than 3 seconds: set it right, for instance by "
            f"turning network time on ({error})"
        )
    reason = "they do not answer there" if "bootstrap failed" in str(error) else _words(error)
    return PeerUnreachable(f"the directory cannot be joined through any of these peers: {reason}\n  {peers}")


@lru_cache(16_384)
def _place(name: str) -> bytes:
    """Where a name stands in the DHT."""
    return bytes(DHTID.generate(name).to_bytes())


def _last_peer(address: str) -> PeerId:
    return address.rpartition("/p2p/")[2]


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {_OPERATION_TIMEOUT:.0f} s"
    return str(error) or type(error).__name__
