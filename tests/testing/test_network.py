"""The simulated network: its clock, its links, and what its failures look like."""

from __future__ import annotations

import asyncio
import time

import pytest

from swarm.contract import Contract
from swarm.errors import FrameTooLarge, PeerUnreachable, RecordRefused, StreamClosed
from swarm.testing import Deadlock, LinkConditions, MemoryHost, MemoryStream, SimulatedNetwork, run
from swarm.testing.network import WINDOW
from swarm.types import ModelInfo, ServerRecord, Span

LIMIT = 1 << 30


def now() -> float:
    return asyncio.get_running_loop().time()


async def pair(network: SimulatedNetwork) -> tuple[MemoryStream, MemoryStream]:
    """A stream between two fresh hosts `a` and `b`, seen from both ends."""
    a, b = network.host("a"), network.host("b")
    accepted: asyncio.Future[MemoryStream] = asyncio.get_running_loop().create_future()

    async def handler(stream: MemoryStream) -> None:
        accepted.set_result(stream)
        await asyncio.Event().wait()

    await b.serve("/p", handler)  # type: ignore[arg-type]
    return await a.open_stream("b", "/p"), await accepted


def test_a_day_takes_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(86_400.0)
        return now()

    began = time.monotonic()
    assert run(main()) == pytest.approx(86_400.0)
    assert time.monotonic() - began < 60.0


def test_waiting_for_what_cannot_happen_is_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(main())


def test_a_frame_takes_the_delay_of_the_link() -> None:
    async def main() -> None:
        near, far = await pair(SimulatedNetwork(conditions=LinkConditions(delay=0.25)))
        began = now()
        await near.send(b"there")
        assert await far.receive(LIMIT) == b"there"
        assert now() - began == pytest.approx(0.25)
        await far.send(b"and back")
        assert await near.receive(LIMIT) == b"and back"
        assert now() - began == pytest.approx(0.5)

    run(main())


def test_opening_a_stream_takes_a_round_trip() -> None:
    async def main() -> None:
        await pair(SimulatedNetwork(conditions=LinkConditions(delay=0.25)))
        assert now() == pytest.approx(0.5)

    run(main())


def test_frames_queue_behind_each_other_at_the_rate_of_the_link() -> None:
    async def main() -> None:
        near, far = await pair(SimulatedNetwork(conditions=LinkConditions(delay=1.0, rate=1000.0)))
        began = now()
        for _ in range(3):
            await near.send(bytes(500))
        arrivals = []
        for _ in range(3):
            await far.receive(LIMIT)
            arrivals.append(now() - began)
        assert arrivals == pytest.approx([1.5, 2.0, 2.5])

    run(main())


def test_jitter_and_loss_delay_frames_but_never_swap_or_lose_them() -> None:
    async def main() -> list[float]:
        conditions = LinkConditions(delay=0.01, jitter=0.05, loss=0.2, retransmit=0.5)
        near, far = await pair(SimulatedNetwork(7, conditions))
        for i in range(100):
            await near.send(b"%d" % i)
        arrivals = []
        for i in range(100):
            assert await far.receive(LIMIT) == b"%d" % i
            arrivals.append(now())
        assert max(arrivals) > 0.5
        return arrivals

    assert run(main()) == run(main()), "one seed, one history"


def test_what_was_sent_before_closing_arrives_and_then_the_end() -> None:
    async def main() -> None:
        near, far = await pair(SimulatedNetwork())
        for word in (b"last", b"words"):
            await near.send(word)
        near.close()
        near.close()
        assert [await far.receive(LIMIT), await far.receive(LIMIT)] == [b"last", b"words"]
        with pytest.raises(StreamClosed):
            await far.receive(LIMIT)
        for stream in (near, far):
            with pytest.raises(StreamClosed):
                await stream.send(b"more")

    run(main())


def test_whoever_closes_hears_nothing_more() -> None:
    async def main() -> None:
        near, far = await pair(SimulatedNetwork())
        await far.send(b"too late")
        await asyncio.sleep(1.0)
        near.close()
        with pytest.raises(StreamClosed):
            await near.receive(LIMIT)

    run(main())


def test_a_reader_and_a_writer_that_wait_are_woken_by_the_end() -> None:
    async def main() -> None:
        near, far = await pair(SimulatedNetwork())

        async def fill() -> None:
            while True:
                await near.send(bytes(WINDOW))

        filling, reading = asyncio.ensure_future(fill()), asyncio.ensure_future(near.receive(LIMIT))
        await asyncio.sleep(1.0)
        assert not filling.done()
        far.close()
        for task in (filling, reading):
            with pytest.raises(StreamClosed):
                await task

    run(main())


def test_a_sender_waits_until_the_receiver_reads() -> None:
    async def main() -> None:
        near, far = await pair(SimulatedNetwork())
        await near.send(bytes(WINDOW))
        blocked = asyncio.ensure_future(near.send(b"x"))
        await asyncio.sleep(60.0)
        assert not blocked.done()
        await far.receive(LIMIT)
        await blocked

    run(main())


def test_a_frame_above_the_limit_ends_the_stream() -> None:
    async def main() -> None:
        near, far = await pair(SimulatedNetwork())
        await near.send(bytes(11))
        with pytest.raises(FrameTooLarge):
            await far.receive(10)
        with pytest.raises(StreamClosed):
            await near.receive(LIMIT)

    run(main())


@pytest.mark.parametrize("who", ["a", "b"])
def test_whoever_is_frozen_gets_and_says_nothing_until_it_thaws(who: str) -> None:
    async def main() -> None:
        network = SimulatedNetwork(conditions=LinkConditions(delay=0.1))
        near, far = await pair(network)
        network.freeze(who)
        began = now()
        await near.send(b"x")
        asyncio.get_running_loop().call_later(50.0, network.thaw, who)
        assert await far.receive(LIMIT) == b"x"
        assert now() - began == pytest.approx(50.0)
        await near.send(b"y")
        await far.receive(LIMIT)
        assert now() - began == pytest.approx(50.1)

    run(main())


def test_a_frame_under_way_does_not_reach_whoever_freezes_meanwhile() -> None:
    async def main() -> None:
        network = SimulatedNetwork(conditions=LinkConditions(delay=1.0))
        near, far = await pair(network)
        await near.send(b"x")
        await asyncio.sleep(0.5)
        network.freeze("b")
        reading = asyncio.ensure_future(far.receive(LIMIT))
        await asyncio.sleep(10.0)
        assert not reading.done()
        network.thaw("b")
        assert await reading == b"x"

    run(main())


def test_a_silent_cut_holds_frames_back_and_a_noticed_one_breaks_streams() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        near, far = await pair(network)
        network.cut("a", "b")
        await near.send(b"x")
        reading = asyncio.ensure_future(far.receive(LIMIT))
        await asyncio.sleep(100.0)
        assert not reading.done()
        network.mend("b", "a")
        assert await reading == b"x"
        network.cut("a", "b", silent=False)
        for stream in (near, far):
            with pytest.raises(StreamClosed):
                await stream.receive(LIMIT)
            with pytest.raises(StreamClosed):
                await stream.send(b"x")

    run(main())


def test_a_cut_between_two_leaves_a_third_alone() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        near, far = await pair(network)
        network.host("c")
        network.cut("a", "c")
        network.freeze("c")
        await near.send(b"x")
        assert await far.receive(LIMIT) == b"x"

    run(main())


def test_nobody_answers_for_the_dead_the_unknown_the_cut_off_or_another_protocol() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        a, b = network.host("a"), network.host("b")

        async def handler(stream: object) -> None: ...

        await b.serve("/p", handler)
        for peer, protocol in (("b", "/q"), ("nobody", "/p")):
            with pytest.raises(PeerUnreachable):
                await a.open_stream(peer, protocol)
        network.cut("a", "b")
        began = now()
        with pytest.raises(PeerUnreachable):
            await a.open_stream("b", "/p")
        assert now() - began == pytest.approx(10.0)
        network.mend("a", "b")
        network.kill("b")
        with pytest.raises(PeerUnreachable):
            await a.open_stream("b", "/p")

    run(main())


def test_the_death_of_a_process_ends_its_streams_and_its_handlers() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        near, _ = await pair(network)
        network.kill("b")
        with pytest.raises(StreamClosed):
            await near.receive(LIMIT)
        await asyncio.sleep(1.0)
        assert network.hosts["b"].statistics().served == 0
        assert isinstance(network.host("b"), MemoryHost), "its name may be used again"
        with pytest.raises(ValueError, match="is alive"):
            network.host("a")

    run(main())


def test_what_escapes_from_a_handler_closes_its_stream_and_is_remembered() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        a, b = network.host("a"), network.host("b")
        errors = [ValueError("bug"), StreamClosed("no bug")]

        async def handler(stream: object) -> None:
            raise errors.pop(0)

        await b.serve("/p", handler)
        for _ in range(2):
            stream = await a.open_stream("b", "/p")
            with pytest.raises(StreamClosed):
                await stream.receive(LIMIT)
        assert [str(error) for error in b.failures] == ["bug"]
        assert not network.pipes or all(pipe.sealed for pipe in network.pipes)

    run(main())


def test_a_record_is_written_by_its_owner_and_read_until_it_expires() -> None:
    async def main() -> None:
        network = SimulatedNetwork()
        directory, other = (network.directory(network.host(name)) for name in "ab")
        model = ModelInfo("m", "m", 4, 8)
        record = ServerRecord("a", Contract("m", Span(0, 2), (b"x" * 8,) * 2), expires=now() + 60.0)
        with pytest.raises(RecordRefused):
            await other.announce(record, model)
        signed = await directory.announce(record, model)
        assert await other.lookup("m", 4) == [signed]
        assert await other.lookup("m", 1) == []
        assert other.verify(signed.signed) == signed
        with pytest.raises(RecordRefused):
            other.verify(b"forged")
        await asyncio.sleep(61.0)
        assert await other.lookup("m", 4) == []
        with pytest.raises(RecordRefused):
            other.verify(signed.signed)

    run(main())
