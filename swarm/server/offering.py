"""Gives blocks that are on disk here to servers that join, so that these need not fetch and make them themselves."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarm.config import BLOCK_FORMAT, ServerConfig
from swarm.errors import ContractMismatch, MalformedFrame
from swarm.net.base import Stream
from swarm.net.quota import Bucket, Places
from swarm.server.few_at_a_time import FewAtATime
from swarm.server.hosted import Hosted
from swarm.server.pieces import Offer
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

REQUEST_LIMIT = 1024
PATIENCE = 60.0
"""Seconds within which an asker says something, and takes what it asked for."""
BUSY_SHARE = 0.25
"""Of the rate, while there are sessions."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a block as it was when it was hashed."""

    path: Path
    inode: int
    size: int


class Offering:
    """Answers `/swarm/blocks` out of what is hosted; of what is not given out it tells fingerprints alone."""

    def __init__(self, hosted: Callable[[], Sequence[Hosted]], config: ServerConfig) -> None:
        self._hosted = hosted
        self._config = config
        self._pace = Bucket(config.offer_rate)
        streams = Places(config.offer_streams_per_peer, config.offer_streams)
        self._streams = FewAtATime(streams, "others fetch blocks here", self._answer, self._fail)
        self._pieces: dict[_File, asyncio.Future[bytes]] = {}
        self.sent_bytes = 0

    async def serve(self, stream: Stream) -> None:
        """Answer a peer until it leaves."""
        await self._streams.serve(stream)

    async def _fail(self, stream: Stream, failure: pb.Failure) -> None:
        await self._send(stream, pb.BlocksReply(failure=failure))

    async def _answer(self, stream: Stream) -> None:
        file: _File | None = None
        while True:
            async with asyncio.timeout(PATIENCE):
                request = messages.decode(pb.BlocksRequest, await stream.receive(REQUEST_LIMIT))
            if request.WhichOneof("kind") == "block":
                file, offer = await self._find(messages.check_block_wanted(request.block))
                told = pb.BlockManifest(fingerprint=offer.fingerprint, size=offer.size, pieces=offer.pieces)
                reply = pb.BlocksReply(manifest=told)
            elif file is None or request.piece * messages.PIECE >= file.size:
                raise MalformedFrame("there is no such piece")
            else:
                reply = pb.BlocksReply(piece=await self._read(file, request.piece))
            await self._send(stream, reply)

    async def _send(self, stream: Stream, reply: pb.BlocksReply) -> None:
        async with asyncio.timeout(PATIENCE):
            await stream.send(reply.SerializeToString())

    async def _find(self, wanted: pb.BlockWanted) -> tuple[_File | None, Offer]:
        """A block that is asked for, as far as it is given out. Raises ContractMismatch."""
        for hosted in self._hosted():
            contract, block = hosted.contract, wanted.block
            if (contract.model, contract.quantization) == (
                wanted.model,
                wanted.quantization,
            ) and block in contract.span:
                fingerprint = contract.fingerprints[block - contract.span.first]
                file = _file(hosted.offered.get(block)) if wanted.format == BLOCK_FORMAT else None
                pieces = b"" if file is None else await self._digests(file)
                if file is None or not pieces:
                    return None, Offer(fingerprint, 0, b"")
                return file, Offer(fingerprint, file.size, pieces)
        raise ContractMismatch("this server has not loaded that block")

    async def _digests(self, file: _File) -> bytes:
        """sha256 of each piece, computed once for all that ask; empty where the file cannot be read."""
        if file not in self._pieces:
            offered = {path for hosted in self._hosted() for path in hosted.offered.values()}
            self._pieces = {known: digests for known, digests in self._pieces.items() if known.path in offered}
            self._pieces[file] = asyncio.ensure_future(asyncio.to_thread(_hash, file))
        return await asyncio.shield(self._pieces[file])

    async def _read(self, file: _File, index: int) -> bytes:
        """A piece, when it is its turn. Raises ContractMismatch where the file is no longer there."""
        sessions = any(hosted.sessions for hosted in self._hosted())
        self._pace.rate = self._config.offer_rate * (BUSY_SHARE if sessions else 1.0)
        data = await asyncio.to_thread(_piece, file, index)
        if data is None:
            raise ContractMismatch("this server no longer keeps that block")
        await asyncio.sleep(self._pace.take(len(data), asyncio.get_running_loop().time()))
        self.sent_bytes += len(data)
        return data


def _file(path: Path | None) -> _File | None:
    """What is at a path; None where that cannot be given."""
    try:
        stat = None if path is None else path.stat()
    except OSError:
        return None
    if path is None or stat is None or not 0 < stat.st_size <= messages.MAX_PIECES * messages.PIECE:
        return None
    return _File(path, stat.st_ino, stat.st_size)


def _hash(file: _File) -> bytes:
    found = bytearray()
    try:
        with file.path.open("rb") as opened:
            while data := opened.read(messages.PIECE):
                found += hashlib.sha256(data).digest()
    except OSError as error:
        log.warning("a block cannot be given out: %s", error)
        return b""
    return bytes(found) if len(found) == -(-file.size // messages.PIECE) * messages.DIGEST else b""


def _piece(file: _File, index: int) -> bytes | None:
    first = index * messages.PIECE
    wanted = min(messages.PIECE, file.size - first)
    try:
        with file.path.open("rb") as opened:
            opened.seek(first)
            data = opened.read(wanted)
    except OSError:
        return None
    return data if len(data) == wanted and _file(file.path) == file else None
