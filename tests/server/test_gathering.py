"""Blocks from servers that have loaded them, whatever some of these say: what is here at the end is right."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swarm.config import BLOCK_FORMAT, ServerConfig
from swarm.contract import FINGERPRINT_BYTES, Contract
from swarm.coordinates import Coordinate
from swarm.errors import MalformedFrame, ModelNotFound
from swarm.models.loading.block_cache import Damaged
from swarm.models.loading.source import Wanted
from swarm.net.base import Stream
from swarm.server.gathering import MOST_PEERS, Gathering
from swarm.server.offering import Offering
from swarm.server.pieces import Offer
from swarm.testing.clock import run
from swarm.testing.conditions import LinkConditions
from swarm.testing.network import SimulatedNetwork
from swarm.types import ModelInfo, ServerRecord, ServerState, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

MODEL, SCHEME, BLOCKS = "m" * 32, "int8-g32-v1", 3
INFO = ModelInfo(MODEL, "model", BLOCKS, 64, None)
WHOLE = Contract(MODEL, Span(0, BLOCKS), quantization=SCHEME)
RIGHT = [random.Random(block).randbytes(5 * messages.PIECE // 2) for block in range(BLOCKS)]
SAMPLE = slice(100, 200)
"""What is compared with the checkpoint."""


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def offer_of(data: bytes, fingerprint: bytes | None = None) -> Offer:
    parts = (data[at : at + messages.PIECE] for at in range(0, len(data), messages.PIECE))
    return Offer(fingerprint or digest(data), len(data), b"".join(map(digest, parts)))


def changed(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@dataclass
class Lab:
    """A joiner and servers on the simulated network."""

    folder: Path
    network: SimulatedNetwork = field(default_factory=lambda: SimulatedNetwork(seed=1))
    offerings: dict[str, Offering] = field(default_factory=dict)
    compared: list[int] = field(default_factory=list)
    coordinate: Coordinate | None = None
    """Where the joiner is; None: not known yet."""

    async def server(
        self,
        name: str,
        blocks: Mapping[int, bytes],
        *,
        offers: bool = True,
        config: ServerConfig | None = None,
        far: float = 0.0,
    ) -> Any:
        """A server that has loaded these files, so far from the joiner, in ms, as it says."""
        hosted = await self.announce(name, {block: digest(data) for block, data in blocks.items()}, far)
        for block, data in blocks.items():
            path = self.folder / name / str(block)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            if offers:
                hosted.offered[block] = path
        self.offerings[name] = Offering(lambda: [hosted], config or ServerConfig())
        await self.network.hosts[name].serve(messages.BLOCKS_PROTOCOL, self.offerings[name].serve)
        return hosted

    async def liar(self, name: str, marks: Mapping[int, bytes], answer: Callable[[Stream], Awaitable[None]]) -> None:
        """A server that announces fingerprints, and answers so."""
        await self.announce(name, marks)
        await self.network.hosts[name].serve(messages.BLOCKS_PROTOCOL, answer)

    async def announce(self, name: str, marks: Mapping[int, bytes], far: float = 0.0) -> Any:
        host, span = self.network.host(name), Span(min(marks), max(marks) + 1)
        contract = replace(WHOLE, span=span, fingerprints=tuple(marks[block] for block in span))
        record = ServerRecord(
            host.peer_id,
            contract.announced,
            ServerState.ONLINE,
            addresses=host.addresses,
            expires=1e9,
            coordinate=Coordinate((far, 0.0, 0.0)),
        )
        await self.network.directory(host).announce(record, INFO)
        return SimpleNamespace(contract=contract, offered={}, sessions={})

    def wanted(self, block: int) -> Wanted:
        def fingerprint(path: Path) -> bytes:
            return digest(path.read_bytes())

        def compare(path: Path) -> None:
            self.compared.append(block)
            if path.read_bytes()[SAMPLE] != RIGHT[block][SAMPLE]:
                raise Damaged("another model's")

        return Wanted(block, self.folder / f"block{block}", 3 * messages.PIECE, fingerprint, compare)

    async def gather(self, *, strictly: bool = True) -> set[int]:
        """Which blocks the joiner then has; all of them right."""
        joiner = self.network.host("joiner")
        how: dict[str, Any] = {"strictly": strictly, "locator": self, "rng": random.Random(0)}
        gathering = Gathering(joiner, self.network.directory(joiner), WHOLE, **how)
        try:
            await gathering.gather([self.wanted(block) for block in range(BLOCKS)])
        except ModelNotFound:
            assert strictly
        assert not [failure for host in self.network.hosts.values() for failure in host.failures]
        assert not joiner.streams
        found = {block for block in range(BLOCKS) if (self.folder / f"block{block}").exists()}
        for block in found:
            assert (self.folder / f"block{block}").read_bytes() == RIGHT[block]
        return found


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


ALL = dict(enumerate(RIGHT))
MARKS = {block: digest(data) for block, data in ALL.items()}


def answering(
    answer: Callable[[pb.BlocksRequest, int], pb.BlocksReply | None],
) -> Callable[[Stream], Awaitable[None]]:
    """A handler that says what `answer` gives for a request about a block; None: nothing, and it ends."""

    async def handle(stream: Stream) -> None:
        block = 0
        while True:
            request = messages.decode(pb.BlocksRequest, await stream.receive(1024))
            block = request.block.block if request.WhichOneof("kind") == "block" else block
            reply = answer(request, block)
            if reply is None:
                return
            await stream.send(reply.SerializeToString())

    return handle


def manifest(offer: Offer) -> pb.BlocksReply:
    return pb.BlocksReply(
        manifest=pb.BlockManifest(fingerprint=offer.fingerprint, size=offer.size, pieces=offer.pieces)
    )


def serving(files: Mapping[int, bytes], promised: Mapping[int, Offer]) -> Callable[[Stream], Awaitable[None]]:
    """One that promises files, and sends what is in others."""

    def answer(request: pb.BlocksRequest, block: int) -> pb.BlocksReply:
        if request.WhichOneof("kind") == "block":
            return manifest(promised[block])
        return pb.BlocksReply(piece=files[block][request.piece * messages.PIECE :][: messages.PIECE])

    return answering(answer)


def test_blocks_come_from_several_servers_and_fast_ones_give_more(lab: Lab) -> None:
    async def main() -> None:
        for name in ("a", "b"):
            await lab.server(name, ALL)
        await lab.server("c", {2: RIGHT[2]})
        await lab.server("silent", ALL, offers=False)
        lab.network.set_link("joiner", "a", LinkConditions(0.01, rate=20e6))
        lab.network.set_link("joiner", "b", LinkConditions(0.01, rate=2e6))
        assert await lab.gather() == {0, 1, 2}
        sent = {name: offering.sent_bytes for name, offering in lab.offerings.items()}
        assert sent["a"] > sent["b"] > 0 and not sent["silent"]
        assert sum(sent.values()) < 1.5 * sum(map(len, RIGHT))

    run(main())


def test_of_many_servers_the_nearest_are_asked_once_the_joiner_knows_where_it_is(lab: Lab) -> None:
    async def main() -> None:
        for number in range(MOST_PEERS + 2):
            await lab.server(f"s{number}", {0: RIGHT[0]}, far=100.0 * number)
        asyncio.get_running_loop().call_later(1.0, setattr, lab, "coordinate", Coordinate())
        assert await lab.gather() == {0}
        sent = [offering.sent_bytes for offering in lab.offerings.values()]
        assert sum(sent) >= len(RIGHT[0]) and not any(sent[MOST_PEERS:])

    run(main())


WRONG = {block: changed(data, len(data) - 1) for block, data in ALL.items()}
LIES: dict[str, Callable[[Stream], Awaitable[None]]] = {
    "other bytes than it promised": serving(WRONG, {block: offer_of(data) for block, data in ALL.items()}),
    "another file under the right fingerprint": serving(
        WRONG, {block: offer_of(data, MARKS[block]) for block, data in WRONG.items()}
    ),
    "the beginning of the fingerprint": serving(
        WRONG,
        {block: offer_of(data, MARKS[block][:FINGERPRINT_BYTES] + bytes(24)) for block, data in WRONG.items()},
    ),
    "too much": serving(WRONG, {block: Offer(MARKS[block], 1 << 40, bytes(32)) for block in ALL}),
    "too large": serving(WRONG, {block: Offer(MARKS[block], 100 * messages.PIECE, bytes(3200)) for block in ALL}),
    "pieces that end early": serving(
        {block: data[:100] for block, data in ALL.items()}, {block: offer_of(data) for block, data in ALL.items()}
    ),
    "nothing": answering(lambda request, block: None),
    "a manifest, and then nothing": answering(
        lambda request, block: manifest(offer_of(ALL[block])) if request.WhichOneof("kind") == "block" else None
    ),
    "a manifest for a piece": answering(lambda request, block: manifest(offer_of(ALL[block]))),
    "no room": answering(lambda request, block: pb.BlocksReply(failure=pb.Failure(code=pb.Failure.BUSY))),
}


@pytest.mark.parametrize("lie", LIES)
def test_whoever_lies_is_left_and_the_blocks_come_from_others(lab: Lab, lie: str) -> None:
    async def main() -> None:
        await lab.liar("liar", MARKS, LIES[lie])
        await lab.server("a", ALL)
        await lab.server("b", ALL, offers=False)
        assert await lab.gather() == {0, 1, 2}

    run(main())


@pytest.mark.parametrize("lie", LIES)
def test_of_one_who_lies_alone_nothing_is_taken(lab: Lab, lie: str) -> None:
    async def main() -> None:
        await lab.liar("liar", MARKS, LIES[lie])
        assert await lab.gather() == set()
        assert not [path for path in lab.folder.iterdir() if not path.name.endswith(".part")]

    run(main())


def test_where_servers_disagree_most_of_them_count_and_else_nobody(lab: Lab) -> None:
    async def main() -> None:
        other = {block: changed(data) for block, data in ALL.items()}
        await lab.server("other", other)
        await lab.server("a", ALL)
        assert await lab.gather() == set()
        await lab.server("b", {1: RIGHT[1]})
        lab.network.kill("joiner")
        assert await lab.gather() == {1}

    run(main())


def test_what_all_servers_say_is_not_believed_against_the_checkpoint(lab: Lab) -> None:
    async def main() -> None:
        for name in ("a", "b"):
            await lab.server(name, {0: changed(RIGHT[0], SAMPLE.start), 1: RIGHT[1]})
        assert await lab.gather(strictly=False) == {1}
        assert sorted(lab.compared) == [0, 1]

    run(main())


@pytest.mark.parametrize("end", ["killed", "cut", "frozen"])
def test_a_server_that_vanishes_is_replaced_by_others(lab: Lab, end: str) -> None:
    async def main() -> None:

        await lab.server("a", ALL)
        await lab.server("b", ALL)
        for name in ("a", "b"):
            lab.network.set_link("joiner", name, LinkConditions(0.01, rate=2e6))

        async def vanish() -> None:
            await asyncio.sleep(1.5)
            if end == "killed":
                lab.network.kill("a")
            elif end == "cut":
                lab.network.cut("joiner", "a")
            else:
                lab.network.freeze("a")

        found, _ = await asyncio.gather(lab.gather(), vanish())
        assert found == {0, 1, 2}

    run(main())


def test_a_joiner_that_was_killed_goes_on_with_what_has_come(lab: Lab) -> None:
    async def main() -> None:

        await lab.server("a", ALL)
        lab.network.set_link("joiner", "a", LinkConditions(0.01, rate=2e6))
        first = asyncio.ensure_future(lab.gather())
        await asyncio.sleep(2.0)
        first.cancel()
        await asyncio.wait([first])
        lab.network.kill("joiner")
        before = lab.offerings["a"].sent_bytes
        assert 0 < before < sum(map(len, RIGHT))
        assert await lab.gather() == {0, 1, 2}
        again = before + lab.offerings["a"].sent_bytes - before - sum(map(len, RIGHT))
        assert again < 4 * messages.PIECE  # what was on its way

    run(main())


def test_sessions_go_first_and_the_rate_is_kept(lab: Lab) -> None:
    async def main() -> None:

        loop = asyncio.get_running_loop()
        config = ServerConfig(offer_rate=4e6)
        hosted = await lab.server("a", ALL, config=config)
        hosted.sessions["one"] = object()
        began = loop.time()
        assert await lab.gather() == {0, 1, 2}
        assert loop.time() - began > 0.8 * (sum(map(len, RIGHT)) - 2e6) / 1e6

    run(main())


def test_a_server_gives_few_streams_and_answers_nonsense_with_an_error(lab: Lab) -> None:
    async def main() -> None:
        await lab.server("a", ALL)
        joiner = lab.network.host("joiner")
        streams = [await joiner.open_stream("a", messages.BLOCKS_PROTOCOL) for _ in range(5)]
        refused = messages.decode(pb.BlocksReply, await streams[-1].receive(1024))
        assert refused.failure.code == pb.Failure.BUSY
        block = pb.BlockWanted(model=MODEL, block=0, quantization=SCHEME, format=BLOCK_FORMAT)
        nonsense = [
            b"\xff",
            pb.BlocksRequest(piece=0).SerializeToString(),
            pb.BlocksRequest(block=pb.BlockWanted(model="other", block=0)).SerializeToString(),
            pb.BlocksRequest(block=pb.BlockWanted(block=0)).SerializeToString(),
        ]
        for stream, frame in zip(streams, nonsense, strict=False):
            await stream.send(frame)
            reply = messages.decode(pb.BlocksReply, await stream.receive(1024))
            assert reply.WhichOneof("kind") == "failure"
        stream = await joiner.open_stream("a", messages.BLOCKS_PROTOCOL)
        for request in (pb.BlocksRequest(block=block), pb.BlocksRequest(piece=3)):
            await stream.send(request.SerializeToString())
            reply = messages.decode(pb.BlocksReply, await stream.receive(1 << 21))
        assert reply.WhichOneof("kind") == "failure"
        assert not lab.network.hosts["a"].failures

    run(main())


def test_manifests_are_checked() -> None:
    for size, pieces in ((1, b""), (0, bytes(32)), (messages.PIECE + 1, bytes(32)), (1 << 60, bytes(64))):
        with pytest.raises(MalformedFrame):
            messages.check_block_manifest(pb.BlockManifest(fingerprint=bytes(32), size=size, pieces=pieces))
    with pytest.raises(MalformedFrame):
        messages.check_block_manifest(pb.BlockManifest(fingerprint=bytes(8)))
