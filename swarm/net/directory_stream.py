"""The directory for peers that take no part in it: they ask one that does, over a stream. Records are signed by whom
they are of, so that nobody is believed who passes them on; one who answers can leave records out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from swarm.config import NetworkConfig
from swarm.errors import MalformedFrame, NetworkError, RecordRefused, SwarmError
from swarm.net import records
from swarm.net.base import DirectoryStatistics, Host, Stream
from swarm.net.directory import SignedDirectory
from swarm.net.identity import Identity
from swarm.types import PeerId
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds for a question to be answered."""
READINGS = 16
"""Questions that are answered at a time; whoever has another asks somebody else."""
MOST_KEYS = records.MAX_BLOCKS
LONGEST_KEY = 512
MOST_STORED = 8
"""Records that one question stores."""
REQUEST = 256 * 1024
FRAME = 256 * 1024
MOST_READ = 65_536
"""Records in one answer."""


class Shelf(Protocol):
    """Where records are kept for all, as the DHT."""

    async def read(self, keys: Sequence[str]) -> list[bytes]:
        """Every value under these keys. Raises NetworkError."""

    async def keep(self, owner: PeerId, values: Mapping[str, tuple[bytes, float]]) -> None:
        """Store values that `owner` signed, each until a time. Raises NetworkError."""


class DirectoryDesk:
    """Asks the shelf for those who cannot."""

    def __init__(self, shelf: Shelf, config: NetworkConfig) -> None:
        self._shelf = shelf
        self._config = config
        self._busy = 0

    async def serve(self, host: Host) -> None:
        """Answer what comes in over `host`."""
        await host.serve(messages.DIRECTORY_PROTOCOL, self.answer)

    async def answer(self, stream: Stream) -> None:
        """One question, and its answer in as many frames as it takes."""
        if self._busy >= READINGS:
            await stream.send(pb.DirectoryReply(refused="too many ask").SerializeToString())
            return
        self._busy += 1
        try:
            async with asyncio.timeout(PATIENCE):
                request = messages.decode(pb.DirectoryRequest, await stream.receive(REQUEST))
                try:
                    found = await self._do(stream.peer_id, request)
                except (NetworkError, RecordRefused) as error:
                    await stream.send(pb.DirectoryReply(refused=error.message[:500]).SerializeToString())
                else:
                    await _send(stream, found)
        except TimeoutError:
            log.debug("%s asked the directory, and was not answered in time", stream.peer_id)
        finally:
            self._busy -= 1

    async def _do(self, asker: PeerId, request: pb.DirectoryRequest) -> Sequence[bytes]:
        messages.require(len(request.keys) <= MOST_KEYS, "these are too many keys")
        messages.require(all(0 < len(key) <= LONGEST_KEY for key in request.keys), "this is no key")
        messages.require(len(request.records) <= MOST_STORED, "these are too many records")
        values = dict(self._checked(asker, signed) for signed in request.records)
        if values:
            await self._shelf.keep(asker, values)
        return await self._shelf.read(list(request.keys)) if request.keys else ()

    def _checked(self, asker: PeerId, signed: bytes) -> tuple[str, tuple[bytes, float]]:
        opened = records.open_signed(signed, now=time.time(), config=self._config)
        if opened.peer_id != asker:
            raise RecordRefused(f"{asker} cannot store what {opened.peer_id} signed")
        records.check_content(opened)
        return opened.key, (signed, opened.expires)


async def _send(stream: Stream, found: Iterable[bytes]) -> None:
    reply, size = pb.DirectoryReply(), 0
    for record in found:
        if size + len(record) > FRAME:
            reply.more = True
            await stream.send(reply.SerializeToString())
            reply, size = pb.DirectoryReply(), 0
        reply.records.append(record)
        size += len(record) + 8
    await stream.send(reply.SerializeToString())


class RemoteDirectory(SignedDirectory):
    """The directory as `peers` tell of it, the first of them that answers; satisfies `Directory`."""

    def __init__(self, host: Host, peers: Sequence[PeerId], identity: Identity, config: NetworkConfig) -> None:
        super().__init__(identity, config)
        self._host = host
        self._peers = list(peers)

    async def _read(self, keys: Sequence[str]) -> list[bytes]:
        found = list[bytes]()
        for begin in range(0, len(keys), MOST_KEYS):
            found += await self._ask(pb.DirectoryRequest(keys=keys[begin : begin + MOST_KEYS]))
        return found

    async def _store(self, values: Mapping[str, tuple[bytes, float]]) -> None:
        self._latest |= {key: expires for key, (_, expires) in values.items()}
        await self._ask(pb.DirectoryRequest(records=[signed for signed, _ in values.values()]))

    async def _ask(self, request: pb.DirectoryRequest) -> list[bytes]:
        missed: SwarmError | None = None
        for peer_id in list(self._peers):
            try:
                async with asyncio.timeout(PATIENCE):
                    return await self._ask_one(peer_id, request)
            except TimeoutError:
                missed = NetworkError(f"{peer_id} does not answer for {PATIENCE:.0f} s")
            except SwarmError as error:
                missed = error
            log.info("%s does not tell of the directory: %s", peer_id, missed)
            # Who failed is asked last from now on.
            self._peers.remove(peer_id)
            self._peers.append(peer_id)
        if missed is None:
            raise NetworkError("there is nobody to ask for the directory")
        raise NetworkError(f"the directory cannot be asked: {missed.message}") from missed

    async def _ask_one(self, peer_id: PeerId, request: pb.DirectoryRequest) -> list[bytes]:
        """Raises NetworkError, RecordRefused, MalformedFrame."""
        stream, found = await self._host.open_stream(peer_id, messages.DIRECTORY_PROTOCOL), list[bytes]()
        try:
            await stream.send(request.SerializeToString())
            while True:
                reply = messages.decode(pb.DirectoryReply, await stream.receive(2 * FRAME))
                if reply.refused:
                    raise NetworkError(f"{peer_id} says: {reply.refused[:500]}")
                found += reply.records
                if len(found) > MOST_READ:
                    raise MalformedFrame(f"{peer_id} tells of more records than a directory has")
                if not reply.more:
                    return found
        finally:
            stream.close()

    def neighbours(self) -> list[PeerId]:
        """The peers that are asked."""
        return list(self._peers)

    def statistics(self) -> DirectoryStatistics:
        """It keeps nothing."""
        return DirectoryStatistics(0, len(self._peers))

    async def close(self) -> None:
        """As in `Directory`."""
        self._peers = []
