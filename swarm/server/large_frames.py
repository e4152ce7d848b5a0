"""Encoding and decoding of large frames beside the event loop, where everybody's heartbeats are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import RAW, Codec

LARGE = 256 * 1024
"""Bytes of hidden states of which encoding takes longer than going to a thread: about a millisecond."""


async def off_the_loop(work: Callable[[pb.Step, Codec], pb.Step], step: pb.Step, codec: Codec) -> pb.Step:
    """`work(step, codec)`: at once where it takes no time, else in a thread; who awaits it keeps the order."""
    if codec.name == RAW or len(step.hidden) < LARGE:
        return work(step, codec)
    return await asyncio.to_thread(work, step, codec)
