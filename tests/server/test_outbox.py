"""What is handed on goes in order, whether it takes the codec long or not, and the sender has an owner."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from swarm.errors import StreamClosed
from swarm.net.flight import Flight
from swarm.server.outbox import Outbox
from swarm.testing import Peer, World, run
from swarm.types import Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import codec_of
from swarm.wire.transcode import INLINE_BYTES

HIDDEN = 1024
LARGE = INLINE_BYTES // HIDDEN * 2


class Collected:
    """A stream that keeps what it is sent, and ends after `count` frames."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.frames: list[pb.Data] = []

    async def send(self, frame: bytes) -> None:
        self.frames.append(messages.decode(pb.Data, frame))
        if len(self.frames) == self.count:
            raise StreamClosed("that is all")


def test_a_small_step_does_not_overtake_a_large_one() -> None:
    counts, sent = [LARGE, 1, LARGE, 1, 1], list[pb.Step]()

    async def main() -> Collected:
        outbox = Outbox(
            codec_of("int8", "float32", HIDDEN),
            1 << 30,
            flight=Flight(1 << 30, 1 << 30),
            client="c",
            wanted_only=False,
            on_sent=sent.append,
        )
        stream: Any = Collected(len(counts))
        for number, count in enumerate(counts):
            rows = np.full((count, HIDDEN), number, "<f4").tobytes()
            outbox.accept(len(rows))
            outbox.put((), [pb.Rows(sequence=number, count=count)], rows, len(rows))
        try:
            await outbox.drain(stream, 60.0)
        except StreamClosed:
            return stream
        raise AssertionError("it ended")

    frames = asyncio.run(main()).frames
    assert [(data.step.rows[0].sequence, data.step.rows[0].count) for data in frames] == list(enumerate(counts))
    assert [step.rows[0].sequence for step in sent] == [0, 1, 2, 3], "the last was never over"


def test_a_sender_that_is_cancelled_is_awaited_by_its_owner() -> None:
    async def main() -> None:
        world = World(blocks=3)
        server, peer = await world.add("s", Span(0, 3)), Peer(world, "client")
        control = await peer.control("s", peer.opening("s", b"M" * 16))
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=1)))
        await control.say(pb.ControlRequest(resume=pb.Resume(epoch=1)))
        await peer.data("s", b"M" * 16, 1, pb.Hello.RESULTS)
        await asyncio.sleep(0.1)
        assert [task.get_name() for task in asyncio.all_tasks() if "sender" in task.get_name()]
        server.hosted.end(server.hosted.sessions[b"M" * 16])
        await server.hosted.close()
        assert not [task.get_name() for task in asyncio.all_tasks() if "sender" in task.get_name()]
        control.close()
        await world.close()

    run(main())
