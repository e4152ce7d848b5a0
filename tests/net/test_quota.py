"""What one peer may have: never more than its limits, never less than what is free, whatever it does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import InvalidInput
from swarm.net.flight import SMALL, Flight
from swarm.net.identity import Identity
from swarm.net.lists import Lists
from swarm.net.quota import REMEMBERED, Bucket, Buckets, Places

TIMES = st.lists(st.floats(0.0, 3.0), min_size=1, max_size=60)


@given(TIMES, st.sampled_from([0.5, 7.0, 100.0]), st.sampled_from([1.0, 5.0, 40.0]))
def test_a_bucket_gives_what_a_bucket_of_tokens_gives(pauses: list[float], rate: float, burst: float) -> None:
    bucket, tokens, now = Bucket(rate, burst), burst, 100.0
    for pause in pauses:
        now += pause
        tokens = min(burst, tokens + pause * rate)
        wait = bucket.ask(1.0, now)
        if tokens >= 1.0 + 1e-4:
            assert wait == 0.0
        elif tokens < 1.0 - 1e-4:
            assert wait == pytest.approx((1.0 - tokens) / rate, abs=1e-5)
        if wait == 0.0:
            tokens -= 1.0
        elif burst >= 1.0:
            assert Bucket.ask(bucket, 1.0, now + wait + 1e-5) == 0.0, "and then it is there"
            tokens, now = min(burst, tokens + (wait + 1e-5) * rate) - 1.0, now + wait + 1e-5


@given(TIMES, st.integers(1, 50))
def test_in_no_stretch_of_time_is_more_given_than_rate_and_burst_allow(pauses: list[float], burst: int) -> None:
    bucket, now, given_at = Bucket(10.0, burst), 0.0, []
    for pause in pauses:
        now += pause
        given_at += [now] * sum(bucket.ask(1, now) == 0.0 for _ in range(20))
    for place, begin in enumerate(given_at):
        for count, end in enumerate(given_at[place:], 1):
            assert count <= burst + 10.0 * (end - begin) + 1e-6


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans()), max_size=60))
def test_places_are_neither_lost_nor_taken_twice(calls: list[tuple[str, int, bool]]) -> None:
    places, held = Places(10, 20), []
    for peer, count, leave in calls:
        if leave and held:
            places.give(*held.pop())
        elif places.allows(peer, count):
            places.take(peer, count)
            held.append((peer, count))
        assert places.held == sum(count for _, count in held) <= 20
        for each in "abc":
            assert places.of(each) == sum(count for other, count in held if other == each) <= 10
    for one in held:
        places.give(*one)
    assert places.held == 0


def test_many_peers_are_not_remembered_for_ever() -> None:
    buckets = Buckets(1.0, 5.0)
    for number in range(3 * REMEMBERED):
        buckets.of(str(number), float(number)).take(5, float(number))
    assert len(buckets._of) <= REMEMBERED
    last = str(3 * REMEMBERED - 1)
    assert buckets.of(last, 3.0 * REMEMBERED - 1.0).ask(1, 3.0 * REMEMBERED - 1.0) > 0.0


def test_a_large_frame_waits_for_room_and_a_small_one_does_not() -> None:
    async def main() -> None:
        flight, order = Flight(per_peer=10 * SMALL, total=15 * SMALL), []

        async def read(peer: str, size: int, name: str) -> None:
            async with flight.reading(peer, size):
                order.append(name)
                await asyncio.sleep(0)

        flight.count("greedy", 9 * SMALL)
        waiting = asyncio.create_task(read("greedy", 4 * SMALL, "large"))
        await asyncio.sleep(0)
        await read("greedy", SMALL, "small")
        await read("other", 5 * SMALL, "another's")
        assert order == ["small", "another's"]
        flight.count("greedy", -9 * SMALL)
        await waiting
        assert order[-1] == "large"
        assert flight.places.held == 0

    asyncio.run(main())


def test_lists_are_read_anew_when_they_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = (Identity.generate().peer_id for _ in range(2))
    allow, block = tmp_path / "allow", tmp_path / "block"
    allow.write_text(f"# friends\n{one}  # Ann\n\n{two}\n")
    block.write_text("")
    lists = Lists(str(allow), str(block))
    assert lists.admits(one, 10.0)
    assert not lists.admits(Identity.generate().peer_id, 10.0)
    block.write_text(one)
    assert not lists.admits(one, 12.0)
    assert lists.admits(two, 12.0)
    block.write_text("nonsense")
    assert not lists.admits(one, 14.0), "what was said before holds"
    assert "is no peer id" in caplog.text
    block.unlink()
    assert not lists.admits(one, 16.0)
    block.write_text("# nobody")
    assert lists.admits(one, 18.0)


@pytest.mark.parametrize("content", [b"nonsense", b"\xff\xfe", b"/ip4/1.2.3.4/tcp/1"])
def test_a_list_that_is_none_is_refused_at_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list").write_bytes(content)
    with pytest.raises(InvalidInput):
        Lists(None, str(tmp_path / "list"))
    with pytest.raises(InvalidInput, match="cannot be read"):
        Lists(str(tmp_path / "nowhere"), None)
