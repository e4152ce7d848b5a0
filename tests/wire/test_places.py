"""Places behind hidden states: how they are laid out, widened and bounded."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from swarm.errors import InvalidInput, MalformedFrame
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import INT8, codec_of, decode_step, encode_step
from swarm.wire.places import RowLayout, check_places, placed, places_of, planes_in


def test_places_stand_behind_each_hidden_state() -> None:
    layout = RowLayout(4, 2)
    rows = layout.join(b"aaaabbbb", struct.pack("<4i", 1, 2, 3, 4))
    assert rows == b"aaaa" + struct.pack("<2i", 1, 2) + b"bbbb" + struct.pack("<2i", 3, 4)
    assert layout.part(rows) == (b"aaaabbbb", struct.pack("<4i", 1, 2, 3, 4))
    assert layout.row_bytes == 12


def test_rows_without_places_are_what_they_were() -> None:
    layout, rows = RowLayout(4), b"aaaabbbb"
    assert layout.join(rows, b"") is rows
    assert layout.part(rows) == (rows, b"")


def test_widening_counts_what_had_no_places_and_repeats_a_single_one() -> None:
    plain, one, three = (RowLayout(4, planes) for planes in (0, 1, 3))
    single = plain.widened(b"aaaabbbb", 5, one)
    assert one.part(single)[1] == places_of(5, 2, 1) == struct.pack("<2i", 5, 6)
    assert three.part(one.widened(single, 0, three))[1] == struct.pack("<6i", 5, 5, 5, 6, 6, 6)
    with pytest.raises(InvalidInput, match="3 places a position, in a sequence whose positions have 4"):
        RowLayout(4, 4).fitted(places_of(0, 2, 3), 0, 2)


@pytest.mark.parametrize("size", [1, 6, 4 * 2 * 9])
def test_bytes_that_are_no_places(size: int) -> None:
    with pytest.raises(InvalidInput, match="are no places of 2 positions"):
        planes_in(bytes(size), 2)


@pytest.mark.parametrize("place", [-1, 1 << 24, (1 << 31) - 1])
def test_places_beyond_any_context(place: int) -> None:
    with pytest.raises(MalformedFrame, match="beyond any context"):
        check_places(struct.pack("<2i", 0, place))


def test_a_codec_leaves_places_as_they_are() -> None:
    states = np.random.default_rng(0).normal(size=(3, 256)).astype("<f4")
    inner, places = codec_of(INT8, "float32", 256), places_of(7, 3, 2)
    codec = placed(inner, 2)
    rows = RowLayout(1024, 2).join(states.tobytes(), places)
    step = pb.Step(rows=[pb.Rows(sequence=1, start=7, count=3)], hidden=bytes(rows))
    travelling = encode_step(step, codec)
    assert len(travelling.hidden) == 3 * (inner.row_bytes + 8) < len(rows)
    hidden, behind = RowLayout(1024, 2).part(decode_step(travelling, codec).hidden)
    assert behind == places
    assert hidden == inner.decode(inner.encode(states.tobytes()))
    assert placed(inner, 0) is inner
