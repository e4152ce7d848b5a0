"""Large steps leave the loop free, small ones stay on it; both are the same bytes."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from swarm.errors import MalformedFrame
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import Codec, codec_of, decode_step, encode_step
from swarm.wire.transcode import INLINE_BYTES, decoded, frame_of

HIDDEN = 1024
SMALL, LARGE = INLINE_BYTES // (4 * HIDDEN), INLINE_BYTES // HIDDEN * 4


def step_of(positions: int) -> pb.Step:
    numbers = np.random.default_rng(positions).normal(size=(positions, HIDDEN)).astype("<f4")
    return pb.Step(rows=[pb.Rows(sequence=1, count=positions, want=1)], hidden=numbers.tobytes())


class Watched:
    """A codec, and the threads that it worked in."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.name, self.raw_bytes, self.row_bytes = codec.name, codec.raw_bytes, codec.row_bytes
        self.threads: list[bool] = []

    def encode(self, buffer: bytes | memoryview) -> bytes:
        self.threads.append(threading.current_thread() is not threading.main_thread())
        return self.codec.encode(buffer)

    def decode(self, buffer: bytes | memoryview) -> bytes:
        self.threads.append(threading.current_thread() is not threading.main_thread())
        return self.codec.decode(buffer)


@pytest.mark.parametrize(("positions", "elsewhere"), [(1, False), (SMALL, False), (LARGE, True)])
def test_large_steps_are_worked_on_in_a_thread(positions: int, elsewhere: bool) -> None:
    step, codec = step_of(positions), Watched(codec_of("int8", "float32", HIDDEN))

    async def main() -> pb.Step:
        data = pb.Data.FromString(await frame_of(step, codec))
        assert data.step == encode_step(step, codec.codec)
        return await decoded(data.step, codec)

    assert asyncio.run(main()) == decode_step(encode_step(step, codec.codec), codec.codec)
    assert codec.threads == [elsewhere, elsewhere]


def test_the_loop_goes_on_while_a_large_step_is_worked_on() -> None:
    released = threading.Event()

    class Waiting(Watched):
        def encode(self, buffer: bytes | memoryview) -> bytes:
            assert released.wait(30.0), "the loop stood still"
            return super().encode(buffer)

    async def main() -> None:
        work = asyncio.ensure_future(frame_of(step_of(LARGE), Waiting(codec_of("int8", "float32", HIDDEN))))
        await asyncio.sleep(0.01)
        released.set()
        await work

    asyncio.run(main())


def test_raw_steps_are_nothing_to_work_on() -> None:
    step, codec = step_of(LARGE), Watched(codec_of("raw", "float32", HIDDEN))

    async def main() -> pb.Step:
        return await decoded(pb.Data.FromString(await frame_of(step, codec)).step, codec)

    assert asyncio.run(main()) == step
    assert codec.threads == []


def test_what_is_wrong_with_a_large_step_is_said_as_of_a_small_one() -> None:
    step, codec = step_of(LARGE), codec_of("int8", "float32", HIDDEN)
    with pytest.raises(MalformedFrame):
        asyncio.run(decoded(step, codec))
