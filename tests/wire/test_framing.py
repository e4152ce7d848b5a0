"""Frames: whole, in order, bounded."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import FrameTooLarge, MalformedFrame, StreamClosed
from swarm.wire.framing import JOIN_BELOW, encode_length, read_frame, write_frame


class Pipe:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.content = bytearray()

    def write(self, data: bytes) -> None:
        self.content += data


def written(*frames: bytes) -> bytes:
    pipe = Pipe()
    for frame in frames:
        write_frame(pipe, frame)  # type: ignore[arg-type]
    return bytes(pipe.content)


def read(content: bytes, limit: int = 1 << 30, count: int = 1) -> list[bytes]:
    async def main() -> list[bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(content)
        reader.feed_eof()
        return [await read_frame(reader, limit) for _ in range(count)]

    return asyncio.run(main())


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=8))
def test_what_is_written_is_read(frames: list[bytes]) -> None:
    assert read(written(*frames), count=len(frames)) == frames


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_383, 16_384, JOIN_BELOW - 1, JOIN_BELOW, 2_097_152])
def test_every_length_of_length(size: int) -> None:
    assert [len(frame) for frame in read(written(bytes(size)), limit=size)] == [size]


@pytest.mark.parametrize(
    ("length", "encoded"),
    [(0, b"\x00"), (127, b"\x7f"), (128, b"\x80\x01"), (300, b"\xac\x02"), (1 << 28, b"\x80\x80\x80\x80\x01")],
)
def test_lengths_are_those_of_protobuf(length: int, encoded: bytes) -> None:
    assert encode_length(length) == encoded


def test_a_frame_too_large_is_refused_before_its_body_is_there() -> None:
    with pytest.raises(FrameTooLarge, match="1001 bytes, above the limit of 1000"):
        read(encode_length(1001), limit=1000)


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x05abcd", encode_length(1 << 20)])
def test_the_end_of_the_stream_is_said_to_be_one(content: bytes) -> None:
    with pytest.raises(StreamClosed):
        read(content)


@pytest.mark.parametrize("content", [b"\xff" * 20, b"\x80\x80\x80\x80\x80\x01", b"\x80\x00", b"\xff\x80\x00"])
def test_a_broken_length_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedFrame):
        read(content)


@given(st.binary(max_size=64))
def test_any_bytes_give_a_frame_or_an_error_of_ours(content: bytes) -> None:
    try:
        frame = read(content, limit=50)[0]
    except (StreamClosed, FrameTooLarge, MalformedFrame):
        return
    assert content.startswith(written(frame))
