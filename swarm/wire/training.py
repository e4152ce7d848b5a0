"""Training on the wire: messages that announce bytes, and the bytes in frames behind them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from swarm.config import MIB
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import DIGEST, MAX_POSITION, MAX_SEQUENCES, MAX_TEXT, SESSION_BYTES, require

TRAINING_PROTOCOL = "/swarm/training/1.0.0"
PIECE = MIB
"""Bytes in a frame of data, at most."""
PASS_POSITIONS = 512
"""Of all sequences of a pass together, where there are several."""
BEAT = 1.0
"""Seconds between two signs of life."""


def check_pass(message: pb.Pass) -> pb.Pass:
    """Bounds of a Pass. Raises MalformedFrame."""
    counts = message.counts
    require(len(message.id) == SESSION_BYTES, f"the id of a pass has {SESSION_BYTES} bytes")
    require(0 < len(counts) <= MAX_SEQUENCES and all(0 < c <= MAX_POSITION for c in counts), "no or too many positions")
    require(len(counts) == 1 or sum(counts) <= PASS_POSITIONS, f"more than {PASS_POSITIONS} positions of sequences")
    sent = message.inputs or message.gradients
    require(sent != message.again, "a pass of nothing, or of what is there and sent, too")
    require(len(message.upstream) <= MAX_TEXT and (sent or not message.upstream), "nothing to be handed")
    onward = message.onward
    require(not message.HasField("onward") or len(onward.id) == SESSION_BYTES, "it is to be handed on to no pass")
    require(len(message.adapter) in (0, DIGEST), f"the digest of an adapter has {DIGEST} bytes")
    require(not message.fixed or bool(message.adapter), "a pass of which no gradients will be wanted")
    require(not message.unwanted or bool(message.gradients and message.adapter), "a pass that wants nothing")
    return message


def check_handed(message: pb.Handed) -> pb.Handed:
    """Bounds of a Handed. Raises MalformedFrame."""
    require(len(message.id) == SESSION_BYTES, f"the id of a pass has {SESSION_BYTES} bytes")
    return message


def check_adapter(message: pb.Adapter) -> pb.Adapter:
    """Bounds of an Adapter. Raises MalformedFrame."""
    require(len(message.digest) == DIGEST, "this announces no adapter")
    return message


def pieces(*parts: bytes | memoryview) -> Iterator[bytes]:
    """What to send in frames of data."""
    for part in parts:
        for first in range(0, len(part), PIECE):
            yield bytes(part[first : first + PIECE])


async def collect(size: int, receive: Callable[[], Awaitable[bytes]]) -> bytearray:
    """`size` bytes, out of frames of data. Raises MalformedFrame, and what `receive` raises."""
    data = bytearray()
    while len(data) < size:
        piece = await receive()
        require(0 < len(piece) <= min(PIECE, size - len(data)), "data that was not announced")
        data += piece
    return data
