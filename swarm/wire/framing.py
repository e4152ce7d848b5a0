"""Frames on a byte stream: an unsigned varint length (as in libp2p and protobuf), then as many bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext

from swarm.errors import FrameTooLarge, MalformedFrame, StreamClosed

MAX_LENGTH_BYTES = 5
"""Enough for any frame below 32 GiB; a longer length is no length."""

JOIN_BELOW = 16 * 1024
"""Below this size copying a frame behind its length costs less than a second system call."""


def encode_length(length: int) -> bytes:
    """`length` as an unsigned varint."""
    encoded = bytearray()
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)


class Length:
    """A length that comes byte by byte, as an unsigned varint; `value` once `take` has said that it is whole."""

    def __init__(self, most: int = MAX_LENGTH_BYTES) -> None:
        self.value = 0
        self.begun = False
        """Whether a part of it has come."""
        self._shift = 0
        self._most = most

    def take(self, byte: int) -> bool:
        """Whether `byte` was the last. Raises MalformedFrame for a length that is too long, or longer than need be."""
        self.value |= (byte & 0x7F) << self._shift
        if byte < 0x80 and self.begun and not byte:
            raise MalformedFrame("a length is not written in its shortest form")
        self.begun = True
        self._shift += 7
        if byte >= 0x80 and self._shift >= 7 * self._most:
            raise MalformedFrame("a length has no end")
        return byte < 0x80


BODY_TIME, SLOWEST = 30.0, 50_000.0
"""A frame that has begun must come within so many seconds, and as many more as it takes at so many bytes a second."""

Reading = Callable[[int], AbstractAsyncContextManager[object]]


def _at_once(size: int) -> AbstractAsyncContextManager[object]:
    return nullcontext()


async def read_frame(reader: asyncio.StreamReader, limit: int, reading: Reading = _at_once) -> bytes:
    """The next frame. The limit is checked before the body is read, which `reading` is entered for with its size.

    Raises StreamClosed at the end of the stream, and where a body comes too slowly; FrameTooLarge, MalformedFrame for a
    broken length.
    """
    try:
        length = await _read_length(reader)
        if length > limit:
            raise FrameTooLarge(f"a frame of {length} bytes, above the limit of {limit}")
        if length < JOIN_BELOW:
            return await reader.readexactly(length)
        async with reading(length), asyncio.timeout(BODY_TIME + length / SLOWEST):
            return await reader.readexactly(length)
    except TimeoutError as error:
        raise StreamClosed("a frame that had begun did not come to its end in time") from error
    except (asyncio.IncompleteReadError, OSError) as error:
        raise StreamClosed("the stream ended") from error


async def _read_length(reader: asyncio.StreamReader) -> int:
    length = Length()
    while not length.take((await reader.readexactly(1))[0]):
        pass
    return length.value


def write_frame(writer: asyncio.StreamWriter, frame: bytes) -> None:
    """Put a frame into the writer's buffer; draining is the caller's."""
    length = encode_length(len(frame))
    if len(frame) < JOIN_BELOW:
        writer.write(length + frame)
    else:
        writer.write(length)
        writer.write(frame)
