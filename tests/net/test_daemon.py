"""p2pd and this process: it starts or says why not, its death is noticed, and it never outlives its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import base58
import pytest

from swarm.config import ForwardConfig, NetworkConfig
from swarm.contract import Contract
from swarm.errors import DaemonFailed, InvalidInput, NetworkError, PeerUnreachable, StreamClosed
from swarm.net import pulse
from swarm.net.base import Stream
from swarm.net.hivemind import daemon as module
from swarm.net.hivemind.directory import HivemindDirectory, open_directory
from swarm.net.hivemind.host import HivemindHost, create_host
from swarm.net.hivemind.knock import knock
from swarm.net.hivemind.signs import Signs
from swarm.net.identity import Identity
from swarm.types import ModelInfo, ServerRecord, Span

pytestmark = pytest.mark.processes

CONFIG = NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",), dial_timeout=3.0)
PROTOCOL = "/swarm/test/1"


def running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def pid_of(host: HivemindHost) -> int:
    process = host.daemon._process
    assert process is not None
    return process.pid


class Hosts:
    """Makes hosts, and closes them whatever happens."""

    def __init__(self) -> None:
        self.made: list[HivemindHost | HivemindDirectory] = []

    async def __aenter__(self) -> Hosts:
        return self

    async def __aexit__(self, *error: object) -> None:
        async with asyncio.timeout(10):
            for made in reversed(self.made):
                await made.close()

    async def new(self, config: NetworkConfig = CONFIG) -> HivemindHost:
        host = await create_host(config)
        self.made.append(host)
        return host

    async def open_directory(self, host: HivemindHost) -> HivemindDirectory:
        directory = await open_directory(host)
        self.made.append(directory)
        return directory

    async def pair(self) -> tuple[HivemindHost, HivemindHost]:
        one = await self.new()
        return one, await self.new(replace(CONFIG, initial_peers=tuple(one.addresses)))


def scenario(main: Callable[[Hosts], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Hosts() as hosts:
            await main(hosts)

    asyncio.run(run())


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive(100_000))


def test_it_starts_with_our_identity_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        path = str(tmp_path / "key")
        host = await hosts.new(replace(CONFIG, identity_path=path))
        assert host.peer_id == Identity.load_or_create(path).peer_id
        assert all(address.endswith(f"/p2p/{host.peer_id}") for address in host.addresses)
        assert len(host.addresses) == 1
        pid, folder = pid_of(host), host.daemon.folder
        assert not any(file.name.endswith(".key") for file in folder.iterdir())
        await host.close()
        assert not host.daemon.died.is_set()
        assert not running(pid)
        assert not folder.exists()

    scenario(main)


def test_a_connection_over_which_nothing_comes_is_dropped_and_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK_EVERY", 0.1), ("QUIET", 0.2), ("PATIENCE", 1.0)):
        monkeypatch.setattr(pulse, name, seconds)

    async def main(hosts: Hosts) -> None:
        one, two = await hosts.pair()
        await one.serve(PROTOCOL, echo)
        signs = Signs(two.daemon)
        await signs.sign_of_life(one.peer_id)
        with pytest.raises(PeerUnreachable, match="not connected"):
            await signs.sign_of_life(Identity.load_or_create(None).peer_id)
        stream = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
        os.kill(pid_of(one), signal.SIGSTOP)
        try:
            await stream.send(b"is anybody there?")
            with pytest.raises(StreamClosed):
                async with asyncio.timeout(15):
                    await stream.receive(100)
        finally:
            os.kill(pid_of(one), signal.SIGCONT)
        again = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
        await again.send(b"now")
        assert await again.receive(100) == b"now"

    scenario(main)


def test_addresses_to_announce_replace_those_that_are_seen() -> None:
    async def main(hosts: Hosts) -> None:
        host = await hosts.new(replace(CONFIG, announce_maddrs=("/ip4/192.0.2.7/tcp/4001",)))
        assert list(host.addresses) == [f"/ip4/192.0.2.7/tcp/4001/p2p/{host.peer_id}"]
        await host.close()

    scenario(main)


def test_a_port_in_use_is_said_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        with pytest.raises(DaemonFailed, match=r"(?s)address already in use.*--host-maddrs"):
            asyncio.run(create_host(replace(CONFIG, host_maddrs=(address,))))


def test_a_public_peer_joins_through_others_and_needs_no_forwarder() -> None:
    async def main(hosts: Hosts) -> None:
        first = await hosts.new()
        second = await hosts.new(replace(CONFIG, public=True, initial_peers=tuple(first.addresses)))
        assert second.peer_id != first.peer_id

    scenario(main)


def test_a_broken_address_is_said() -> None:
    with pytest.raises(InvalidInput, match=r"cannot listen at /nonsense/1"):
        asyncio.run(create_host(replace(CONFIG, host_maddrs=("/nonsense/1",))))


def test_what_p2pd_refuses_is_said_with_its_words() -> None:
    with pytest.raises(DaemonFailed, match=r"(?s)exit code.*192\.0\.2\.3.*started as"):
        asyncio.run(create_host(replace(CONFIG, host_maddrs=("/ip4/192.0.2.3/tcp/0",))))


def test_a_missing_binary_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "folder_of", lambda package: tmp_path)
    with pytest.raises(DaemonFailed, match="install hivemind"):
        asyncio.run(create_host(CONFIG))


def test_one_that_never_gets_ready_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper = tmp_path / "hivemind_cli" / "p2pd"
    sleeper.parent.mkdir()
    sleeper.write_text("#!/bin/sh\necho about to sleep\nexec sleep 1000\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(module, "folder_of", lambda package: tmp_path)
    with pytest.raises(DaemonFailed, match=r"(?s)not ready within 1 s.*about to sleep"):
        asyncio.run(create_host(replace(CONFIG, daemon_startup=1.0)))


def fake_binary(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> None:
    file = folder / "hivemind_cli" / "p2pd"
    file.parent.mkdir()
    file.write_bytes(content)
    file.chmod(0o755)
    monkeypatch.setattr(module, "folder_of", lambda package: folder)


def test_a_binary_for_another_machine_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_binary(monkeypatch, tmp_path, b"\x7fELF of something else")
    with pytest.raises(DaemonFailed, match=r"(?s)another kind of machine.*started as: .*p2pd -listen"):
        asyncio.run(create_host(CONFIG))


def test_no_place_for_sockets_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(DaemonFailed, match="TMPDIR"):
        asyncio.run(create_host(CONFIG))


def test_a_flood_of_output_does_not_stop_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flood = b"#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' x\necho\necho the end\nexit 3\n"
    fake_binary(monkeypatch, tmp_path, flood)
    with pytest.raises(DaemonFailed, match=r"(?s)exit code 3.*the end"):
        asyncio.run(create_host(CONFIG))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty folder. The paths of sockets must be short, and `tmp_path` is not always."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_what_a_killed_process_left_behind_is_removed(monkeypatch: pytest.MonkeyPatch, short_path: Path) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(short_path))
    abandoned, living = module._private_folder(), module._private_folder()
    module._claim(abandoned).close()  # as the system does at the end of a process
    with module._claim(living):
        (abandoned / "control.sock").touch()
        unlocked, begun = (short_path / f"{module._FOLDER_PREFIX}{name}" for name in ("unlocked", "begun"))
        for folder in (unlocked, begun):
            folder.mkdir()
        os.utime(unlocked, (0.0, 0.0))
        fresh = module._private_folder()
        assert set(short_path.iterdir()) == {living, begun, fresh}


def test_what_was_left_where_paths_are_short_is_removed_too(
    monkeypatch: pytest.MonkeyPatch, short_path: Path, tmp_path: Path
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(module, "_SHORT_PLACE", short_path)
    monkeypatch.setattr(module.tempfile, "tempdir", str(deep))
    abandoned = module._private_folder()
    assert abandoned.parent == short_path
    module._claim(abandoned).close()
    fresh = module._private_folder()
    assert (set(short_path.iterdir()), list(deep.iterdir())) == ({fresh}, [])


def test_its_death_is_noticed_and_ends_everything() -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.pair()
        await one.serve(PROTOCOL, echo)
        await hosts.open_directory(one)
        directory = await hosts.open_directory(two)
        stream = await two.open_stream(one.peer_id, PROTOCOL)
        os.kill(pid_of(two), signal.SIGKILL)
        async with asyncio.timeout(5):
            with pytest.raises(DaemonFailed, match="signal 9"):
                await two.lost()
            with pytest.raises(StreamClosed):
                await stream.receive(1000)
        with pytest.raises(DaemonFailed, match="signal 9"):
            await two.open_stream(one.peer_id, PROTOCOL)
        with pytest.raises(DaemonFailed):
            await two.serve("/another", echo)
        with pytest.raises(NetworkError):
            await directory.announce(
                ServerRecord(two.peer_id, Contract("m", Span(0, 1), (bytes(8),)), expires=time.time() + 60),
                ModelInfo("m", "m", 1, 1),
            )

    scenario(main)


def test_the_other_side_notices_a_death() -> None:
    async def main(hosts: Hosts) -> None:
        one, two = await hosts.pair()
        ended = asyncio.Event()

        async def handler(stream: Stream) -> None:
            try:
                await echo(stream)
            finally:
                ended.set()

        await one.serve(PROTOCOL, handler)
        stream = await two.open_stream(one.peer_id, PROTOCOL)
        await stream.send(b"x")
        await stream.receive(10)
        os.kill(pid_of(two), signal.SIGKILL)
        async with asyncio.timeout(5):
            await ended.wait()
        with pytest.raises(PeerUnreachable):
            await one.open_stream(two.peer_id, PROTOCOL, two.addresses)

    scenario(main)


CHILD = """
import asyncio, os, sys
from swarm.config import NetworkConfig
from swarm.net.hivemind.host import create_host
async def main():
    host = await create_host(NetworkConfig(host_maddrs=("/ip4/127.0.0.1/tcp/0",)))
    print(host.daemon._process.pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a child with its parent")
def test_it_does_not_outlive_a_killed_python() -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert running(pid)
        child.kill()
        deadline = time.monotonic() + 5
        while running(pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not running(pid)


def test_it_works_on_a_loop_in_a_thread() -> None:
    def work() -> None:
        async def main(hosts: Hosts) -> None:
            one, two = await hosts.pair()
            await one.serve(PROTOCOL, echo)
            stream = await two.open_stream(one.peer_id, PROTOCOL, one.addresses)
            await stream.send(b"x")
            done.append(await stream.receive(10))

        scenario(main)

    done: list[bytes] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert done == [b"x"]


# ---- joining --------------------------------------------------------------------------------------------------


def dead_peer() -> str:
    return f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.generate().peer_id}"


def test_initial_peers_that_do_not_answer_are_named() -> None:
    peers = (dead_peer(), dead_peer())
    with pytest.raises(PeerUnreachable, match=r"(?s)none of the initial peers answered.*refused") as caught:
        asyncio.run(create_host(replace(CONFIG, initial_peers=peers)))
    assert all(peer in str(caught.value) for peer in peers)


def test_one_that_answers_is_enough() -> None:
    async def main(hosts: Hosts) -> None:
        one = await hosts.new()
        await hosts.open_directory(one)
        two = await hosts.new(replace(CONFIG, initial_peers=(dead_peer(), *one.addresses)))
        directory = await hosts.open_directory(two)
        assert await directory.models() == []

    scenario(main)


def test_a_peer_that_is_its_own_initial_peer_begins_a_swarm(tmp_path: Path) -> None:
    async def main(hosts: Hosts) -> None:
        path = str(tmp_path / "key")
        me = f"/ip4/127.0.0.1/tcp/9/p2p/{Identity.load_or_create(path).peer_id}"
        host = await hosts.new(replace(CONFIG, identity_path=path, initial_peers=(me,)))
        await hosts.open_directory(host)
        await host.close()

    scenario(main)


def test_an_initial_peer_without_an_identity_is_refused() -> None:
    with pytest.raises(InvalidInput, match="peer id"):
        asyncio.run(create_host(replace(CONFIG, initial_peers=("/ip4/127.0.0.1/tcp/9",))))


def test_an_initial_peer_that_listens_but_has_no_directory_is_named() -> None:
    async def main(hosts: Hosts) -> None:
        one = await hosts.new()
        two = await hosts.new(replace(CONFIG, initial_peers=tuple(one.addresses)))
        with pytest.raises(PeerUnreachable, match=one.peer_id):
            await hosts.open_directory(two)

    scenario(main)


def test_who_cannot_be_dialled_is_reached_through_a_bootstrap_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = module._arguments

    def behind_nat(*given: Any) -> list[str]:
        open_to_all = [flag for flag in arguments(*given) if "hostAddrs" not in flag]
        return [*open_to_all, "-noListenAddrs=1", "-forceReachabilityPrivate=1"]

    async def main(hosts: Hosts) -> None:
        port = free_port()
        there = {"host_maddrs": (f"/ip4/127.0.0.1/tcp/{port}",), "announce_maddrs": (f"/dns4/localhost/tcp/{port}",)}
        bootstrap = await hosts.new(NetworkConfig(public=True, forward=ForwardConfig(), **there))  # type: ignore[arg-type]
        config = replace(CONFIG, initial_peers=tuple(bootstrap.addresses))
        with monkeypatch.context() as patch:
            patch.setattr(module, "_arguments", behind_nat)
            hidden = await hosts.new(config)
        async with asyncio.timeout(15):
            while not hidden.addresses:
                await asyncio.sleep(0.1)
                await hidden.refresh_addresses()
        assert all("/p2p-circuit/" in address for address in hidden.addresses)
        await hidden.serve(PROTOCOL, echo)
        client = await hosts.new(config)
        stream = await client.open_stream(hidden.peer_id, PROTOCOL, hidden.addresses)
        for _ in range(10):
            await stream.send(bytes(100_000))
            assert await stream.receive(100_000) == bytes(100_000), "more than go-libp2p's relay lets through"

        knocking = asyncio.create_task(knock(client.open_raw, client.identity, bootstrap.peer_id, hidden.peer_id))
        me, most = base58.b58decode(client.peer_id), 0
        while not knocking.done():
            links = await hidden.daemon.connections()
            most = max(most, sum(peer == me and "/p2p-circuit" in address for peer, address in links))
            await asyncio.sleep(0.02)
        await knocking
        assert most == 2, "p2pd took it for another connection of this peer"
        await stream.send(b"still here")
        assert await stream.receive(100) == b"still here"
        stranger = Identity.generate().peer_id
        with pytest.raises(PeerUnreachable, match="CONNECTION_FAILED"):
            await knock(client.open_raw, client.identity, bootstrap.peer_id, stranger)

    scenario(main)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
