"""What is asked of whom: everything comes once there is somebody to ask, the rarest first, and no word counts alone."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.contract import Contract
from swarm.coordinates import Coordinate
from swarm.server.pieces import FAULTS, Offer, Schedule, announced, chosen, majority, nearest
from swarm.types import ServerRecord, ServerState, Span
from swarm.wire.messages import DIGEST, PIECE


def offer(pieces: int, fingerprint: bytes = b"f" * 32, mark: bytes = b"d") -> Offer:
    return Offer(fingerprint, pieces * PIECE - 5, mark * DIGEST * pieces)


def test_the_rarest_block_comes_first_and_a_piece_is_asked_of_one() -> None:
    schedule = Schedule({0: offer(2), 1: offer(1)}, {0: ["a", "b"], 1: ["a"]}, {(0, 1)})
    assert schedule.next("a", 0.0) == (1, 0)
    assert schedule.next("a", 0.0) == (0, 0)
    assert schedule.next("b", 0.0) is None
    schedule.failed("a", (0, 0))
    assert schedule.next("b", 1.0) == (0, 0)
    schedule.done("b", (0, 0), 1.0)
    assert not schedule.is_left(0) and schedule.is_left(1) and not schedule.over


def test_what_a_slow_peer_is_on_is_also_asked_of_a_fast_one() -> None:
    schedule = Schedule({0: offer(4)}, {0: ["slow", "fast"]})
    for peer, seconds in (("slow", 10.0), ("fast", 1.0)):
        piece = schedule.next(peer, 0.0)
        assert piece is not None
        schedule.done(peer, piece, seconds)
    late, last = schedule.next("slow", 10.0), schedule.next("fast", 10.0)
    assert late is not None and last is not None
    schedule.done("fast", last, 1.0)
    assert schedule.next("fast", 11.0) == late
    assert schedule.next("fast", 11.0) is None
    schedule.done("fast", late, 1.0)
    schedule.done("slow", late, 11.0)
    assert schedule.over


def test_who_fails_again_and_again_or_lies_is_asked_for_nothing_more() -> None:
    schedule = Schedule({0: offer(9)}, {0: ["a", "b"]})
    for _ in range(FAULTS):
        piece = schedule.next("a", 0.0)
        assert piece is not None
        schedule.failed("a", piece)
    assert not schedule.may_ask("a") and schedule.next("a", 0.0) is None
    taken = schedule.next("b", 0.0)
    schedule.drop("b")
    assert taken is not None and not schedule.may_ask("b") and not schedule.over


@given(st.data())
@settings(max_examples=30)
def test_whatever_happens_each_piece_comes_while_somebody_can_be_asked(data: st.DataObject) -> None:
    peers = ["a", "b", "c"]
    blocks = range(data.draw(st.integers(1, 3)))
    offers = {block: offer(data.draw(st.integers(1, 4))) for block in blocks}
    holders = {block: {*data.draw(st.sets(st.sampled_from(peers[1:]))), "a"} for block in blocks}
    schedule = Schedule(offers, holders)
    came: set[tuple[int, int]] = set()
    under_way: list[tuple[str, tuple[int, int], float]] = []
    now = 0.0
    for _ in range(60):
        now += 1.0
        peer = data.draw(st.sampled_from([peer for peer in peers if any(peer in them for them in holders.values())]))
        piece = schedule.next(peer, now)
        if piece is not None:
            assert piece not in came and peer in holders[piece[0]]
            under_way.append((peer, piece, now))
        if under_way and data.draw(st.booleans()):
            who, what, since = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            if who == "a" or data.draw(st.booleans()):
                schedule.done(who, what, now - since)
                came.add(what)
            else:
                schedule.failed(who, what)
        if schedule.over:
            break
    for who, what, since in under_way:
        schedule.done(who, what, now - since)
        came.add(what)
    while (piece := schedule.next("a", now)) is not None:
        schedule.done("a", piece, 1.0)
        came.add(piece)
    assert schedule.over
    assert came == {(block, index) for block in blocks for index in range(offers[block].count)}


def test_the_nearest_are_asked_and_where_nobody_knows_any() -> None:
    here = Coordinate()
    peers = {f"p{way}": Coordinate((float(way), 0.0, 0.0)) for way in range(10)} | {"nowhere": None}
    assert nearest(peers, here, 3, random.Random(0)) == ["p0", "p1", "p2"]
    assert nearest(peers, here, 20, random.Random(0))[-1] == "nowhere"
    drawn = {tuple(nearest(peers, None, 3, random.Random(seed))) for seed in range(9)}
    assert len(drawn) > 1 and all(len(set(each)) == 3 for each in drawn)


def test_most_servers_of_a_scheme_decide() -> None:
    def record(peer: str, *marks: bytes, state: ServerState = ServerState.ONLINE, scheme: str = "int8") -> ServerRecord:
        contract = Contract("model", Span(0, len(marks)), marks, quantization=scheme)
        return ServerRecord(peer, contract, state)

    one, two = b"1" * 8, b"2" * 8
    records = [record("a", one, one), record("b", one, two), record("c", two), record("d", bytes(8))]
    records += [record("e", two, two, scheme="int4"), record("f", two, two, state=ServerState.JOINING)]
    assert announced(records, "int8", [0, 1, 2]) == {0: one}
    assert announced([record("a", one), record("a", one), record("b", two)], "int8", [0]) == {}
    assert majority([]) is None


def test_the_file_that_most_have_under_the_fingerprint_that_most_tell() -> None:
    right, wrong, other = offer(1), offer(1, mark=b"w"), offer(1, b"g" * 32)
    offers = {"a": right, "b": right, "c": wrong, "d": other, "e": Offer(b"f" * 32, 0, b"")}
    assert chosen(offers, ()) == (right, ["a", "b"])
    assert chosen(offers, {"a", "b"}) == (wrong, ["c"])
    assert chosen({"a": right, "d": other}, ()) is None
    assert chosen({"e": offers["e"]}, ()) is None
