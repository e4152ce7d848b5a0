"""What every host, stream and directory keeps to, whichever network is below."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

import swarm.net
from swarm.config import NetworkConfig
from swarm.contract import Contract
from swarm.errors import FrameTooLarge, PeerUnreachable, RecordRefused, StreamClosed
from swarm.net.base import Directory, Host, Stream
from swarm.testing import DelayedHost, LinkConditions, SimulatedNetwork, run
from swarm.types import ModelInfo, ServerRecord, ServerState, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

LIMIT = 1 << 22
STRANGER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
numbers = itertools.count()


class Memory:
    """Two hosts on the simulated network, new for each scenario."""

    hosts: Sequence[Host]
    directories: Sequence[Directory]
    flood = 100
    """Megabytes that are more than any transport holds."""

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            network = SimulatedNetwork()
            hosts = [network.host("one"), network.host("two")]
            self.hosts, self.directories = hosts, [network.directory(host) for host in hosts]
            await scenario()

        run(main())

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def close(self) -> None:
        pass


class Wide(Memory):
    """The same behind lines that delay."""

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            network = SimulatedNetwork(conditions=LinkConditions(delay=0))
            inner = [network.host("one"), network.host("two")]
            link = LinkConditions(delay=0.02, jitter=0.01, rate=1e7, loss=0.05)
            self.hosts = [DelayedHost(host, link) for host in inner]
            self.directories = [network.directory(host) for host in inner]
            await scenario()

        run(main())


class Real:
    """Two hosts with real daemons, shared by all scenarios."""

    flood = 100

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.networks: list[swarm.net.Network] = []
        self.runner.run(self._start())
        self.hosts = [network.host for network in self.networks[:2]]
        self.directories = [network.directory for network in self.networks[:2]]

    async def _start(self) -> None:
        config = NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",), dial_timeout=5.0)
        self.first = await swarm.net.open(config)
        self.networks.append(self.first)
        config = replace(config, initial_peers=tuple(self.networks[0].host.addresses))
        self.networks.append(await swarm.net.open(config))

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(30):
                await scenario()

        self.runner.run(main())

    def now(self) -> float:
        return time.time()

    def close(self) -> None:
        for network in sorted(self.networks, key=lambda network: network is self.first):
            self.runner.run(network.close())
        self.runner.close()


class Pure(Real):
    """Two hosts without daemons, whose directory is that of a third."""

    flood = 20

    async def _start(self) -> None:
        config = NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",), dial_timeout=5.0)
        self.first = await swarm.net.open(replace(config, public=True))
        self.networks.append(self.first)
        config = replace(config, initial_peers=tuple(self.networks[0].host.addresses), p2pd=False, dialled=True)
        for _ in range(2):
            self.networks.insert(0, await swarm.net.open(config))


class Mixed(Pure):
    """The second of them with a daemon."""

    async def _start(self) -> None:
        await super()._start()
        self.networks.insert(1, self.networks.pop())


class MixedOther(Pure):
    """The first of them with a daemon."""

    async def _start(self) -> None:
        await super()._start()
        self.networks.insert(0, self.networks.pop())


Net = Memory | Real
REAL = (Real, Pure, Mixed, MixedOther)


@pytest.fixture(
    scope="module",
    params=[Memory, Wide, *(pytest.param(each, marks=pytest.mark.processes) for each in REAL)],
    ids=["memory", "wide", "hivemind", "pure", "dialled by hivemind", "dials hivemind"],
)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    network = request.param()
    yield network
    network.close()


def protocol() -> str:
    return f"/swarm/test/{next(numbers)}"


async def opened(net: Net, handler: Callable[[Stream], Awaitable[None]]) -> Stream:
    """A stream from the second host to the first, which serves it with `handler`."""
    name = protocol()
    await net.hosts[0].serve(name, handler)
    return await net.hosts[1].open_stream(net.hosts[0].peer_id, name, net.hosts[0].addresses)


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(LIMIT))


async def wait_for_end(stream: Stream) -> None:
    with pytest.raises(StreamClosed):
        while True:
            await stream.receive(LIMIT)


def test_frames_arrive_whole_and_in_order(net: Net) -> None:
    async def scenario() -> None:
        stream = await opened(net, echo)
        frames = [b"", b"a", bytes(127), bytes(128), bytes(16_383), bytes(16_384), bytes(range(256)) * 8000]
        for frame in frames:
            await stream.send(frame)
        assert [await stream.receive(LIMIT) for _ in frames] == frames
        stream.close()

    net.run(scenario)


def test_each_side_knows_the_other(net: Net) -> None:
    async def scenario() -> None:
        seen = asyncio.get_running_loop().create_future()

        async def handler(stream: Stream) -> None:
            seen.set_result(stream.peer_id)

        stream = await opened(net, handler)
        assert stream.peer_id == net.hosts[0].peer_id
        assert await seen == net.hosts[1].peer_id
        stream.close()

    net.run(scenario)


def test_what_was_sent_before_closing_arrives_even_if_the_closer_has_not_read_everything(net: Net) -> None:
    async def scenario() -> None:
        got: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

        async def handler(stream: Stream) -> None:
            await stream.send(b"never read")
            await stream.send(bytes(600_000))
            frames = [await stream.receive(LIMIT) for _ in range(3)]
            await wait_for_end(stream)
            got.set_result(frames)

        stream = await opened(net, handler)
        await asyncio.sleep(0.2)
        for frame in (b"first", bytes(400_000), b"last"):
            await stream.send(frame)
        stream.close()
        assert await got == [b"first", bytes(400_000), b"last"]

    net.run(scenario)


def test_a_closed_stream_sends_and_receives_nothing(net: Net) -> None:
    async def scenario() -> None:
        stream = await opened(net, echo)
        await stream.send(b"x")
        stream.close()
        stream.close()
        with pytest.raises(StreamClosed):
            await stream.send(b"y")
        with pytest.raises(StreamClosed):
            await stream.receive(LIMIT)

    net.run(scenario)


def test_closing_wakes_who_receives(net: Net) -> None:
    async def scenario() -> None:
        stream = await opened(net, echo)
        waiting = asyncio.ensure_future(stream.receive(LIMIT))
        await asyncio.sleep(0.05)
        stream.close()
        with pytest.raises(StreamClosed):
            await waiting

    net.run(scenario)


def test_the_end_of_the_handler_ends_the_stream(net: Net) -> None:
    async def scenario() -> None:
        async def handler(stream: Stream) -> None:
            await stream.send(b"bye")

        stream = await opened(net, handler)
        assert await stream.receive(LIMIT) == b"bye"
        with pytest.raises(StreamClosed):
            await stream.receive(LIMIT)
        with pytest.raises(StreamClosed):
            for _ in range(100):
                await stream.send(bytes(1000))
                await asyncio.sleep(0.02)
        stream.close()

    net.run(scenario)


def test_an_error_in_a_handler_ends_only_its_stream(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async def handler(stream: Stream) -> None:
            if await stream.receive(LIMIT) == b"fail":
                raise ZeroDivisionError("on purpose")
            await echo(stream)

        name = protocol()
        await net.hosts[0].serve(name, handler)
        there = (net.hosts[0].peer_id, name, net.hosts[0].addresses)
        good, bad = await net.hosts[1].open_stream(*there), await net.hosts[1].open_stream(*there)
        await bad.send(b"fail")
        await wait_for_end(bad)
        await good.send(b"go on")
        await good.send(b"still here")
        assert await good.receive(LIMIT) == b"still here"
        good.close()
        bad.close()

    with caplog.at_level(logging.CRITICAL, "asyncio"):
        net.run(scenario)


def test_a_frame_above_the_limit_is_refused_and_the_stream_reset(net: Net) -> None:
    async def scenario() -> None:
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def handler(stream: Stream) -> None:
            assert len(await stream.receive(1000)) == 1000
            try:
                await stream.receive(1000)
            except FrameTooLarge as error:
                result.set_result(error)
                raise

        stream = await opened(net, handler)
        await stream.send(bytes(1000))
        await stream.send(bytes(1001))
        assert isinstance(await result, FrameTooLarge)
        await wait_for_end(stream)
        stream.close()

    net.run(scenario)


def test_a_sender_waits_for_a_receiver_that_does_not_read(net: Net) -> None:
    async def scenario() -> None:
        read = asyncio.Event()
        done = asyncio.Event()

        async def handler(stream: Stream) -> None:
            await read.wait()
            for _ in range(net.flood):
                await stream.receive(LIMIT)
            done.set()
            await wait_for_end(stream)

        stream = await opened(net, handler)
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(net.flood):
                await stream.send(bytes(1 << 20))
                sent += 1

        sending = asyncio.ensure_future(send())
        await asyncio.sleep(1.0)
        assert sent < net.flood / 2
        read.set()
        await sending
        await done.wait()
        stream.close()

    net.run(scenario)


def test_an_unknown_peer_or_protocol_is_unreachable(net: Net) -> None:
    async def scenario() -> None:
        with pytest.raises(PeerUnreachable):
            await net.hosts[1].open_stream(net.hosts[0].peer_id, protocol(), net.hosts[0].addresses)
        with pytest.raises(PeerUnreachable):
            await net.hosts[1].open_stream(STRANGER, protocol(), ["/ip4/127.0.0.1/tcp/9"])

    net.run(scenario)


# ---- directory ------------------------------------------------------------------------------------------------


def model() -> ModelInfo:
    return ModelInfo(f"model{next(numbers)}", "tiny", blocks=12, hidden_size=64, context_length=2048)


def record(net: Net, which: int, info: ModelInfo, span: Span) -> ServerRecord:
    host = net.hosts[which]
    return ServerRecord(
        peer_id=host.peer_id,
        contract=Contract(info.key, span, tuple(bytes([block]) * 8 for block in span)),
        addresses=tuple(host.addresses),
        name="a friend",
        expires=net.now() + 60,
    )


def test_everybody_sees_what_is_announced_and_whatever_changes(net: Net) -> None:
    async def scenario() -> None:
        info = model()
        one, two = net.directories
        first = await one.announce(record(net, 0, info, Span(0, 5)), info)
        second = await two.announce(record(net, 1, info, Span(5, 12)), info)
        for directory in net.directories:
            assert sorted(await directory.lookup(info.key, 12), key=lambda r: r.span) == [first, second]
            assert info in await directory.models()
        changed = replace(second, state=ServerState.DRAINING, expires=second.expires + 1)
        await two.announce(changed, info)
        states = {found.peer_id: found.state for found in await one.lookup(info.key, 12)}
        assert states == {first.peer_id: ServerState.ONLINE, second.peer_id: ServerState.DRAINING}

    net.run(scenario)


def test_a_withdrawn_record_is_gone_and_can_come_again(net: Net) -> None:
    async def scenario() -> None:
        info = model()
        one, two = net.directories
        announced = await one.announce(record(net, 0, info, Span(0, 12)), info)
        await one.withdraw(announced)
        assert [await directory.lookup(info.key, 12) for directory in (one, two)] == [[], []]
        again = await one.announce(record(net, 0, info, Span(0, 12)), info)
        assert await two.lookup(info.key, 12) == [again]

    net.run(scenario)


def test_query_nodes_are_found_by_their_model_until_they_leave(net: Net) -> None:
    async def scenario() -> None:
        info = model()
        one, two = net.directories
        contract = messages.contract_message(info.contract("float32"))
        node = pb.QueryNode(contract=contract, name="n", edges=["/ip4/1.2.3.4/udp/5/webrtc-direct"], running=1)
        await one.announce_node(node, net.now() + 60.0)
        node.running = 2
        await one.announce_node(node, net.now() + 60.0)
        await two.announce_node(pb.QueryNode(contract=contract, name="other"), net.now() + 60.0)
        found = {each.peer_id: each for each in await two.query_nodes(info.key)}
        assert found.keys() == {host.peer_id for host in net.hosts}
        mine = found[net.hosts[0].peer_id]
        assert (mine.name, mine.running, list(mine.edges)) == ("n", 2, list(node.edges))
        await one.withdraw_node(node)
        assert [each.name for each in await two.query_nodes(info.key)] == ["other"]
        assert await one.query_nodes("another") == []

    net.run(scenario)


def test_a_record_ends_at_its_time(net: Net) -> None:
    async def scenario() -> None:
        info = model()
        one, two = net.directories
        await one.announce(replace(record(net, 0, info, Span(0, 12)), expires=net.now() + 1.0), info)
        assert len(await two.lookup(info.key, 12)) == 1
        await asyncio.sleep(1.1)
        assert await two.lookup(info.key, 12) == []

    net.run(scenario)


def test_other_models_and_other_blocks_are_not_shown(net: Net) -> None:
    async def scenario() -> None:
        info = model()
        one, two = net.directories
        await one.announce(record(net, 0, info, Span(4, 12)), info)
        assert await two.lookup(info.key, 11) == []
        assert await two.lookup(model().key, 12) == []

    net.run(scenario)


def test_who_is_shown_a_record_can_verify_it(net: Net) -> None:
    async def scenario() -> None:
        info = model()
        one, two = net.directories
        announced = await one.announce(record(net, 0, info, Span(0, 12)), info)
        assert two.verify(announced.signed) == announced
        with pytest.raises(RecordRefused):
            two.verify(announced.signed[:-1] + bytes([announced.signed[-1] ^ 1]))

    net.run(scenario)


def test_nobody_announces_in_the_name_of_another(net: Net) -> None:
    async def scenario() -> None:
        info = model()
        with pytest.raises(RecordRefused):
            await net.directories[1].announce(record(net, 0, info, Span(0, 12)), info)

    net.run(scenario)
