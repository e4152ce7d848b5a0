"""Fetches blocks from servers that have loaded them, instead of making them out of the checkpoint.

Nobody is believed. A piece is compared with the digest that its sender promised; a whole block by the fingerprint that
is computed of it, with the one that most servers of the block tell; and by samples with the checkpoint itself, where
that is not ruled out. What does not agree is thrown away, and whoever offered it is not asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarm.config import BLOCK_FORMAT, BLOCKS_FRAME_LIMIT
from swarm.contract import Contract
from swarm.coordinates import Coordinate
from swarm.errors import MalformedFrame, ModelError, ModelNotFound, NetworkError, SwarmError
from swarm.models.loading.block_cache import LEFT_FREE, Damaged
from swarm.models.loading.kept import UNFINISHED
from swarm.models.loading.source import Wanted
from swarm.net.base import Directory, Host, Stream
from swarm.net.locator import Locator
from swarm.server.pieces import Offer, Schedule, announced, chosen, nearest
from swarm.tasks import until_first
from swarm.types import PeerId, ServerRecord, ServerState
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

log = logging.getLogger(__name__)

MOST_PEERS = 8
"""Servers that are asked."""
STREAMS = 3
"""To each of them, with one piece on its way on each."""
HASHING = 120.0
"""Seconds for the first answer about a block, which the other side may have to hash."""
PATIENCE = 30.0
"""Seconds for a piece."""
LOCATING = 3.0
"""Seconds in which a peer that has joined knows where it is, if it will."""
WAIT = 0.2
"""Seconds until a stream that has nothing to do looks again."""


class Gathering:
    """A `BlockSource`. `contract`: of the whole model; `locator`: knows where this peer is; `strictly`: whether blocks
    must not be made out of the checkpoint, nor compared with it, so that what more than half of the servers of a block
    say is all there is.

    Made on the event loop; `fetch` is called in another thread.
    """

    def __init__(
        self,
        host: Host,
        directory: Directory,
        contract: Contract,
        *,
        strictly: bool = False,
        locator: Locator | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._host = host
        self._directory = directory
        self._contract = contract
        self._strictly = strictly
        self._locator = locator
        self._rng = rng or random.Random()
        self._loop = asyncio.get_running_loop()

    def fetch(self, wanted: Sequence[Wanted], rest: Sequence[int]) -> None:
        """As in `BlockSource`."""
        if self._strictly and rest:
            raise ModelNotFound(f"blocks {list(rest)} have experts that are read all at once, which no server gives")
        if wanted:
            asyncio.run_coroutine_threadsafe(self.gather(wanted), self._loop).result()

    async def gather(self, wanted: Sequence[Wanted]) -> None:
        """What `fetch` does, on the event loop."""
        try:
            records = await self._directory.lookup(self._contract.model, self._contract.span.last)
        except NetworkError as error:
            log.warning("the directory does not say who has blocks: %s", error)
            records = []
        others = [record for record in records if record.peer_id != self._host.peer_id]
        marks = announced(others, self._contract.quantization, {each.block for each in wanted})
        having = _having(others, self._contract.quantization, marks)
        here = await self._here() if len(having) > MOST_PEERS else None
        asked = nearest({peer: each.coordinate for peer, each in having.items()}, here, MOST_PEERS, self._rng)
        peers = {peer: having[peer] for peer in asked}
        fetching = _Fetching(self._host, self._contract, peers, marks, {each.block: each for each in wanted})
        got = await fetching.run(compare=not self._strictly) if peers else set()
        if got:
            log.info("blocks %s came from other servers", sorted(got))
        missing = sorted({each.block for each in wanted} - got)
        if missing and self._strictly:
            raise ModelNotFound(f"blocks {missing} cannot be had from other servers; --blocks-from any makes them here")

    async def _here(self) -> Coordinate | None:
        """Where this peer is; who has just joined is about to find out."""
        until = self._loop.time() + LOCATING
        while self._locator is not None and self._locator.coordinate is None and self._loop.time() < until:
            await asyncio.sleep(WAIT)
        return None if self._locator is None else self._locator.coordinate


@dataclass(slots=True)
class _Have:
    """A server of which blocks may be had; `addresses` and `coordinate`: where it is."""

    addresses: tuple[str, ...]
    coordinate: Coordinate | None
    blocks: set[int] = field(default_factory=set)


def _having(records: Sequence[ServerRecord], quantization: str, marks: Mapping[int, bytes]) -> dict[PeerId, _Have]:
    """Who announces blocks as most do."""
    found: dict[PeerId, _Have] = {}
    for record in records:
        contract = record.contract
        if contract.quantization != quantization or record.state is ServerState.JOINING:
            continue
        pairs = zip(record.span, contract.fingerprints, strict=False)
        if blocks := {block for block, mark in pairs if block in marks and marks[block] == mark}:
            found.setdefault(record.peer_id, _Have(record.addresses, record.coordinate)).blocks |= blocks
    return found


class _Blamed(Exception):
    """A peer sent what it should not have."""


class _Fetching:
    """One time that blocks are fetched. `marks`: the beginning of each one's fingerprint."""

    def __init__(
        self,
        host: Host,
        contract: Contract,
        peers: Mapping[PeerId, _Have],
        marks: Mapping[int, bytes],
        wanted: Mapping[int, Wanted],
    ) -> None:
        self._host = host
        self._contract = contract
        self._peers = peers
        self._marks = marks
        self._wanted = wanted
        self._refused: set[PeerId] = set()
        self._got: set[int] = set()
        self._offers: dict[int, dict[PeerId, Offer]] = {block: {} for block in wanted}

    async def run(self, compare: bool) -> set[int]:
        """The blocks that are here then."""
        await asyncio.gather(*(self._ask(peer) for peer in self._peers))
        left = set(self._wanted)
        while left:
            found = {block: chosen(self._offers[block], self._refused) for block in left}
            plan = {block: each for block, each in found.items() if each is not None}
            files = {block: _File(self._wanted[block].path, each[0]) for block, each in plan.items()}
            ready = {block for block, file in files.items() if await asyncio.to_thread(file.begin)}
            plan = {block: each for block, each in plan.items() if block in ready}
            if not plan:
                break
            there = {(block, index) for block in plan for index in files[block].there}
            schedule = Schedule(
                {block: offer for block, (offer, _) in plan.items()},
                {block: peers for block, (_, peers) in plan.items()},
                there,
            )
            refused = len(self._refused)
            await self._round(schedule, files)
            for block in plan:
                if not schedule.is_left(block):
                    left -= await self._judge(block, files[block], plan[block][1], compare)
            # Where nobody was found out, nobody else is left to be asked.
            if len(self._refused) == refused:
                break
        return self._got

    # ---- who has what -----------------------------------------------------------------------------------------

    async def _ask(self, peer: PeerId) -> None:
        """What a peer says of all the blocks that it may have."""
        stream: Stream | None = None
        try:
            for block in sorted(self._peers[peer].blocks):
                async with asyncio.timeout(HASHING):
                    stream = stream or await self._open(peer)
                    self._offers[block][peer] = await self._offer(stream, block)
        except (SwarmError, TimeoutError, _Blamed) as error:
            log.info("%s gives no blocks: %s", peer, error)
        finally:
            if stream is not None:
                stream.close()

    async def _open(self, peer: PeerId) -> Stream:
        return await self._host.open_stream(peer, messages.BLOCKS_PROTOCOL, self._peers[peer].addresses)

    async def _offer(self, stream: Stream, block: int) -> Offer:
        """What a peer has of a block. Raises SwarmError; _Blamed where that is not what it announces, or too much."""
        contract = self._contract
        wanted = pb.BlockWanted(
            model=contract.model, block=block, quantization=contract.quantization, format=BLOCK_FORMAT
        )
        reply = await _said(stream, pb.BlocksRequest(block=wanted), "manifest")
        told = messages.check_block_manifest(reply.manifest)
        if not told.fingerprint.startswith(self._marks[block]):
            raise _Blamed(f"it announces another fingerprint of block {block} than it tells")
        if told.size > self._wanted[block].most:
            raise _Blamed(f"{told.size} bytes are more than block {block} can have")
        return Offer(told.fingerprint, told.size, told.pieces)

    # ---- pieces -----------------------------------------------------------------------------------------------

    async def _round(self, schedule: Schedule, files: Mapping[int, _File]) -> None:
        """Fetch until all is here, or nobody is left who could be asked."""
        peers = {peer for holders in schedule.holders.values() for peer in holders}
        changed = asyncio.Event()
        workers = [self._work(peer, schedule, files, changed) for peer in peers for _ in range(STREAMS)]

        async def whole() -> None:
            while not schedule.over:
                changed.clear()
                await changed.wait()

        # Whoever is still on a piece that came from somebody else is not waited for.
        await until_first(asyncio.gather(*workers), whole())

    async def _work(self, peer: PeerId, schedule: Schedule, files: Mapping[int, _File], changed: asyncio.Event) -> None:
        """One stream to a peer, for as long as there may be something to ask it for."""
        loop = asyncio.get_running_loop()
        stream: Stream | None = None
        at: int | None = None
        try:
            while not schedule.over and schedule.may_ask(peer):
                began = loop.time()
                if (piece := schedule.next(peer, began)) is None:
                    await asyncio.sleep(WAIT)
                    continue
                block, index = piece
                file = files[block]
                try:
                    async with asyncio.timeout(PATIENCE):
                        stream = stream or await self._open(peer)
                        if at != block and await self._offer(stream, block) != file.offer:
                            raise _Blamed(f"it has another block {block} now")
                        at = block
                        data = await self._piece(stream, file.offer, index)
                    await asyncio.to_thread(file.put, index, data)
                    schedule.done(peer, piece, loop.time() - began)
                except _Blamed as error:
                    self._blame(peer, error)
                    schedule.drop(peer)
                except (SwarmError, TimeoutError) as error:
                    log.debug("piece %d of block %d did not come from %s: %r", *reversed(piece), peer, error)
                    schedule.failed(peer, piece)
                    if stream is not None:
                        stream.close()
                    stream = at = None
                    await asyncio.sleep(WAIT)
                except OSError as error:
                    log.warning("blocks from other servers cannot be kept: %s", error)
                    schedule.drop(peer)
                changed.set()
        finally:
            if stream is not None:
                stream.close()

    async def _piece(self, stream: Stream, offer: Offer, index: int) -> bytes:
        """A piece that is what was promised. Raises SwarmError, _Blamed."""
        data = (await _said(stream, pb.BlocksRequest(piece=index), "piece")).piece
        right = await asyncio.to_thread(lambda: hashlib.sha256(data).digest() == offer.digest(index))
        if not right:
            raise _Blamed("it sends other bytes than it promised")
        return data

    def _blame(self, peer: PeerId, why: object) -> None:
        if peer not in self._refused:
            log.warning("no blocks are taken of %s: %s", peer, why)
            self._refused.add(peer)

    # ---- whole blocks -----------------------------------------------------------------------------------------

    async def _judge(self, block: int, file: _File, peers: Sequence[PeerId], compare: bool) -> set[int]:
        """Give a block its name if it is right. Returns it if nothing more is to be done about it."""
        wanted = self._wanted[block]
        try:
            found = await asyncio.to_thread(wanted.fingerprint, file.path)
            if found != file.offer.fingerprint:
                raise Damaged(f"its fingerprint is {found.hex()[:16]}, not {file.offer.fingerprint.hex()[:16]}")
        except Damaged as error:
            await asyncio.to_thread(file.forget)
            for peer in peers:
                self._blame(peer, f"block {block} is not what it says: {error}")
            return set()
        try:
            if compare:
                await asyncio.to_thread(wanted.compare, file.path)
            await asyncio.to_thread(file.finish)
        except Damaged as error:
            log.error("most servers have block %d with weights that are not the checkpoint's: %s", block, error)
            await asyncio.to_thread(file.forget)
        except (ModelError, OSError) as error:
            log.warning("block %d from other servers is not used: %s", block, error)
        else:
            self._got.add(block)
        return {block}


async def _said(stream: Stream, request: pb.BlocksRequest, kind: str) -> pb.BlocksReply:
    """The answer to a request. Raises SwarmError where it is none of this kind."""
    await stream.send(request.SerializeToString())
    reply = messages.decode(pb.BlocksReply, await stream.receive(BLOCKS_FRAME_LIMIT))
    if reply.WhichOneof("kind") == "failure":
        raise messages.error_of(reply.failure, stream.peer_id)
    if reply.WhichOneof("kind") != kind:
        raise MalformedFrame(f"an answer with no {kind}")
    return reply


class _File:
    """A block that comes piece by piece, in a file beside where it is to be. What a killed process has left is gone on
    with. Its methods are for threads; they raise OSError where nothing can be kept."""

    def __init__(self, target: Path, offer: Offer) -> None:
        self.offer = offer
        self.there: set[int] = set()
        digest = hashlib.sha256(offer.pieces).hexdigest()[:16]
        self._target = target
        self.path = target.with_name(f"{target.name}.{digest}{UNFINISHED}")

    def begin(self) -> bool:
        """Make room, and see what is there. False where there is none."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            usage = shutil.disk_usage(self.path.parent)
            if usage.free - self.offer.size < LEFT_FREE * usage.total:
                log.info("there is little room in %s for blocks of other servers", self.path.parent)
                return False
            kept = self.path.exists() and self.path.stat().st_size == self.offer.size
            with self.path.open("r+b" if kept else "wb") as file:
                file.truncate(self.offer.size)
                for index in range(self.offer.count if kept else 0):
                    data = file.read(self.offer.length(index))
                    if hashlib.sha256(data).digest() == self.offer.digest(index):
                        self.there.add(index)
        except OSError as error:
            log.warning("blocks of other servers cannot be kept: %s", error)
            return False
        return True

    def put(self, index: int, data: bytes) -> None:
        """Keep a piece that is right."""
        with self.path.open("r+b") as file:
            file.seek(index * messages.PIECE)
            file.write(data)

    def finish(self) -> None:
        """Give it its name."""
        self.path.replace(self._target)

    def forget(self) -> None:
        """Keep nothing of it."""
        self.path.unlink(missing_ok=True)
