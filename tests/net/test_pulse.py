"""Dead connections are found by asking for signs of life, and dropped unless this machine itself has no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import PeerUnreachable
from swarm.net.pulse import IN_FLIGHT, PATIENCE, QUIET_KEPT, SLOWEST, Heard, Pulse, dead, patience
from swarm.testing.clock import run
from swarm.types import PeerId

SERVER, OTHER, FORWARDER, BOOT = "server", "other", "forwarder", "boot"
KNOWN = [f"/ip4/11.0.0.2/tcp/1/p2p/{BOOT}"]


@dataclass(eq=False)
class Stream:
    peer_id: PeerId
    heard: float = -1.0
    spoke: float = -1.0
    sent: int = 0


@dataclass
class Line:
    """Peers answer at once, or never where they are `mute`; `gone`: not connected."""

    mute: set[PeerId] = field(default_factory=set)
    gone: set[PeerId] = field(default_factory=set)
    network: bool = True
    asked: list[PeerId] = field(default_factory=list)
    dropped: list[tuple[PeerId, float]] = field(default_factory=list)

    async def sign_of_life(self, peer_id: PeerId) -> None:
        self.asked.append(peer_id)
        if peer_id in self.gone:
            raise PeerUnreachable("not connected")
        if peer_id in self.mute:
            await asyncio.sleep(1e6)

    async def online(self, addresses: Sequence[str]) -> bool:
        if not self.network:
            await asyncio.sleep(1e6)
        return bool(addresses)

    async def drop(self, peer_id: PeerId) -> None:
        self.dropped.append((peer_id, now()))
        self.mute.discard(peer_id)
        self.gone.add(peer_id)


def now() -> float:
    return asyncio.get_running_loop().time()


def watch(
    test: Callable[[Pulse[Stream], Line, list[Stream]], Coroutine[Any, Any, None]], *, kept: Sequence[PeerId] = ()
) -> None:
    async def main() -> None:
        line, streams = Line(), list[Stream]()
        pulse = Pulse(line, streams, lambda: kept, lambda: KNOWN)
        await test(pulse, line, streams)
        await pulse.close()

    run(main())


def opened(pulse: Pulse[Stream], streams: list[Stream], peer_id: PeerId, *, asks: bool = False) -> Stream:
    stream = Stream(peer_id)
    streams.append(stream)
    pulse.opened(stream)
    if asks:
        stream.spoke = now()
    return stream


def test_who_does_not_answer_while_another_does_is_dropped_within_seven_seconds() -> None:
    async def test(pulse: Pulse[Stream], line: Line, streams: list[Stream]) -> None:
        began = now()
        opened(pulse, streams, SERVER, asks=True)
        line.mute.add(SERVER)
        line.network = False
        await asyncio.sleep(20)
        ((peer_id, at),) = line.dropped
        assert peer_id == SERVER
        assert at - began < 7

    watch(test)


def test_without_a_network_connections_are_kept_until_it_is_back() -> None:
    async def test(pulse: Pulse[Stream], line: Line, streams: list[Stream]) -> None:
        opened(pulse, streams, SERVER, asks=True)
        line.mute |= {SERVER, BOOT}
        line.network = False
        await asyncio.sleep(60)
        assert line.dropped == []
        line.network = True
        back = now()
        await asyncio.sleep(20)
        assert {peer_id for peer_id, _ in line.dropped} == {SERVER, BOOT}
        assert all(at - back < 2 * PATIENCE + 2 for _, at in line.dropped)

    watch(test)


def test_who_is_not_connected_is_no_sign_of_a_network() -> None:
    async def test(pulse: Pulse[Stream], line: Line, streams: list[Stream]) -> None:
        opened(pulse, streams, SERVER, asks=True)
        line.mute.add(SERVER)
        line.gone.add(BOOT)
        line.network = False
        await asyncio.sleep(60)
        assert BOOT in line.asked
        assert line.dropped == []

    watch(test)


def test_who_was_sent_nothing_or_says_something_is_not_asked() -> None:
    async def test(pulse: Pulse[Stream], line: Line, streams: list[Stream]) -> None:
        idle, busy = opened(pulse, streams, SERVER), opened(pulse, streams, OTHER)
        line.mute |= {SERVER, OTHER}
        for _ in range(60):
            await asyncio.sleep(0.5)
            busy.heard = busy.spoke = now()
        assert line.asked == []
        idle.spoke = now()
        await asyncio.sleep(10)
        assert SERVER in line.asked

    watch(test)


def test_what_comes_while_it_is_asked_counts_as_an_answer() -> None:
    async def test(pulse: Pulse[Stream], line: Line, streams: list[Stream]) -> None:
        stream = opened(pulse, streams, SERVER)
        line.mute.add(SERVER)
        for _ in range(20):
            stream.spoke = now() + 0.1
            await asyncio.sleep(2.6)  # every time after the asking has begun
            stream.heard = now()
        assert SERVER in line.asked
        assert line.dropped == []

    watch(test)


def test_a_connection_that_others_use_is_looked_at_without_streams() -> None:
    async def test(pulse: Pulse[Stream], line: Line, streams: list[Stream]) -> None:
        pulse.look()
        await asyncio.sleep(20)
        assert 3 <= line.asked.count(FORWARDER) <= 5
        line.mute.add(FORWARDER)
        silent = now()
        await asyncio.sleep(20)
        assert [peer_id for peer_id, _ in line.dropped] == [FORWARDER]
        assert line.dropped[0][1] - silent <= QUIET_KEPT + 1 + PATIENCE

    watch(test, kept=[FORWARDER])


def test_nobody_looks_when_there_is_nothing_to_look_at() -> None:
    async def test(pulse: Pulse[Stream], line: Line, streams: list[Stream]) -> None:
        opened(pulse, streams, SERVER, asks=True)
        await asyncio.sleep(10)
        streams.clear()
        await asyncio.sleep(2)
        before = len(line.asked)
        await asyncio.sleep(60)
        assert len(line.asked) == before > 0
        assert pulse._looking is not None
        assert pulse._looking.done()

    watch(test)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1 << 30)), max_size=20))
def test_patience_grows_with_what_may_be_under_way_and_is_bounded(said: list[tuple[float, int]]) -> None:
    heard = Heard(0.0, 0.0)
    for at, sent in said:
        heard.note(at, at, sent)
        assert PATIENCE <= patience([heard, heard]) <= PATIENCE + IN_FLIGHT / SLOWEST
    heard.note(1000.0, 0.0, heard.sent)
    assert patience([heard]) == PATIENCE


@given(st.sets(st.text(max_size=3)), st.sets(st.text(max_size=3)), st.booleans())
def test_who_answers_is_never_dropped(silent: set[str], answered: set[str], online: bool) -> None:
    dropped = dead(silent - answered, answered, online=online)
    assert not dropped & answered
    assert dropped == (silent - answered if answered or online else set())
