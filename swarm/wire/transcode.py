"""Steps to frames and back, beside an event loop that has others to serve.

A large step takes a codec tenths of a second, in which nobody's heartbeat would be answered: it is worked on in a
thread. A small one costs less than the way there and back. Whoever awaits one step before the next keeps their order.
"""

from __future__ import annotations

import asyncio

from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import RAW, Codec, decode_step, encode_step

INLINE_BYTES = 256 * 1024
"""Of hidden states as they travel; so much is encoded or decoded at once, in about a millisecond."""


async def frame_of(step: pb.Step, codec: Codec) -> bytes:
    """The frame of a data stream that carries this step."""
    if _is_small(len(step.hidden), codec):
        return _frame(step, codec)
    return await asyncio.to_thread(_frame, step, codec)


async def decoded(step: pb.Step, codec: Codec) -> pb.Step:
    """A stranger's step, checked, with its positions as they are computed with. Raises MalformedFrame."""
    if _is_small(len(step.hidden), codec):
        return decode_step(step, codec)
    return await asyncio.to_thread(decode_step, step, codec)


def _is_small(size: int, codec: Codec) -> bool:
    return codec.name == RAW or size <= INLINE_BYTES


def _frame(step: pb.Step, codec: Codec) -> bytes:
    return pb.Data(step=encode_step(step, codec)).SerializeToString()
