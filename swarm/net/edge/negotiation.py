"""Multistream-select: how two peers agree on a protocol by its name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from swarm.errors import MalformedFrame, StreamClosed
from swarm.wire.framing import Length, encode_length

MULTISTREAM = "/multistream/1.0.0"
LONGEST = 1024
ATTEMPTS = 16


async def negotiate(stream: Any, protocols: Collection[str]) -> str:
    """The first of `protocols` that the peer asks for on a libp2p stream or connection.

    Raises MalformedFrame for a peer that speaks something else or asks for nothing that there is, StreamClosed, and
    what libp2p raises.
    """
    if await _read_line(stream) != MULTISTREAM:
        raise MalformedFrame("the peer does not speak multistream-select")
    # Not sooner: some dialers lose what comes before they have said something.
    await stream.write(_line(MULTISTREAM))
    for _ in range(ATTEMPTS):
        asked = await _read_line(stream)
        if asked in protocols:
            await stream.write(_line(asked))
            return asked
        await stream.write(_line("na"))
    raise MalformedFrame(f"the peer asked for {ATTEMPTS} protocols, none of which is served")


async def select(stream: Any, protocol: str) -> bool:
    """Ask for a protocol on a libp2p stream or connection. Whether the peer speaks it.

    Raises MalformedFrame for a peer that does not speak multistream-select, StreamClosed, and what libp2p raises.
    """
    await stream.write(_line(MULTISTREAM) + _line(protocol))
    if await _read_line(stream) != MULTISTREAM:
        raise MalformedFrame("the peer does not speak multistream-select")
    return await _read_line(stream) == protocol


def _line(text: str) -> bytes:
    return encode_length(len(text) + 1) + text.encode() + b"\n"


async def _read_line(stream: Any) -> str:
    length = Length(most=2)
    while not length.take((await read_exactly(stream, 1))[0]):
        pass
    if not 0 < length.value <= LONGEST:
        raise MalformedFrame(f"a protocol of {length.value} bytes")
    line = await read_exactly(stream, length.value)
    if not line.endswith(b"\n"):
        raise MalformedFrame("a protocol without an end of line")
    return line[:-1].decode("utf-8", "replace")


async def read_exactly(stream: Any, count: int) -> bytes:
    """So many bytes. Raises StreamClosed, and what libp2p raises."""
    data = b""
    while len(data) < count:
        part = await stream.read(count - len(data))
        if not part:
            raise StreamClosed("the stream ended")
        data += part
    return data
