"""The commands as real processes on this machine's loopback."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from tests.net.browsers import Browser
from tests.processes.warm import Warm

pytestmark = pytest.mark.processes

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
LOOPBACK = ("--host-maddrs", "/ip4/127.0.0.1/tcp/0")
Launch = Callable[[str, Sequence[str], IO[bytes], Mapping[str, str]], subprocess.Popen[bytes]]
PATIENCE = 120.0
"""Seconds until something that should happen is taken not to happen."""


class Command:
    """A running swarm command whose output is read from a file. `launch`: how it is started."""

    def __init__(self, launch: Launch, folder: Path, name: str, *arguments: str) -> None:
        self.output = folder / f"{name}-{time.monotonic_ns()}.log"
        environment = dict(os.environ, XDG_STATE_HOME=str(folder / "state"), OMP_NUM_THREADS="1")
        with self.output.open("wb") as log:
            self.process = launch(f"swarm.cli.{name}", arguments, log, environment)

    def text(self) -> str:
        return self.output.read_text()

    def wait_for(self, words: str) -> None:
        """Until the output holds `words`; fails when the process ends first."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.text():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text()}"
            assert time.monotonic() < deadline, f"never said {words!r}:\n{self.text()}"
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """For the end of a test, whatever happened."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Commands:
    """Starts commands, and ends what a test left running."""

    def __init__(self, folder: Path, warm: Warm) -> None:
        self.folder = folder
        self.warm = warm
        self.running: list[Command] = []

    def start(self, name: str, *arguments: str) -> Command:
        """As a server that has long been imported."""
        return self._start(self.warm.start, name, *arguments)

    def _start(self, launch: Launch, name: str, *arguments: str) -> Command:
        self.running.append(Command(launch, self.folder, name, *arguments))
        return self.running[-1]

    def result(self, name: str, *arguments: str) -> tuple[int, str]:
        """Run a command to its end, as users do."""
        command = self._start(cold, name, *arguments)
        return command.process.wait(PATIENCE), command.text()

    def bootstrap(self, *arguments: str) -> tuple[Command, str]:
        """A bootstrap peer and its first address."""
        file = self.folder / f"addresses-{len(self.running)}"
        command = self.start("bootstrap", *LOOPBACK, "--address-file", str(file), *arguments)
        command.wait_for("to contribute a machine")
        deadline = time.monotonic() + PATIENCE
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return command, file.read_text().splitlines()[0]


def cold(
    module: str, arguments: Sequence[str], output: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """As somebody at a terminal starts it."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


@pytest.fixture
def commands(tmp_path: Path, warm: Warm) -> Iterator[Commands]:
    running = Commands(tmp_path, warm)
    yield running
    for command in running.running:
        command.kill()


def children(pid: int) -> Sequence[int]:
    """Processes that were started by `pid` (Linux)."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def test_a_bootstrap_peer_keeps_its_address_and_leaves_nothing_behind(commands: Commands) -> None:
    key = str(commands.folder / "bootstrap.key")
    first, address = commands.bootstrap("--identity-path", key)
    assert address.startswith("/ip4/127.0.0.1/tcp/")
    assert Path(key).stat().st_mode & 0o077 == 0
    daemons = children(first.process.pid)
    assert first.stop() == 0, first.text()
    assert "Traceback" not in first.text()
    assert not [pid for pid in daemons if Path(f"/proc/{pid}").exists()]

    port = address.split("/")[4]
    again = commands.start("bootstrap", "--host-maddrs", f"/ip4/127.0.0.1/tcp/{port}", "--identity-path", key)
    again.wait_for(address)
    assert again.stop(signal.SIGINT) == 0, again.text()


def test_a_browser_sees_the_map_that_a_bootstrap_peer_serves(commands: Commands) -> None:
    file = commands.folder / "edge"
    command, address = commands.bootstrap("--edge-address-file", str(file))
    command.wait_for("browsers can dial")
    there = file.read_text().splitlines()
    assert [kind for kind in ("/webrtc-direct/", "/webtransport/", "/ws/") for a in there if kind in a] and len(
        there
    ) == 3
    assert all(a.endswith(address[address.index("/p2p/") :]) for a in there)
    assert asyncio.run(fetch_map(there[2])).time > 0
    assert command.stop() == 0, command.text()
    assert "Traceback" not in command.text()


async def fetch_map(address: str) -> pb.SwarmMap:
    browser = Browser()
    try:
        stream = await browser.open(await browser.dial(address), messages.MAP_PROTOCOL)
        await stream.send(pb.MapRequest().SerializeToString())
        frame = await stream.receive()
        assert frame is not None
        return pb.SwarmMap.FromString(frame)
    finally:
        await asyncio.to_thread(browser.close)


def test_an_empty_swarm_says_so(commands: Commands) -> None:
    _, address = commands.bootstrap()
    assert commands.result("status", *LOOPBACK, "-p", address) == (
        0,
        "this swarm serves no model yet: swarm-serve MODEL begins\n",
    )
    code, text = commands.result("status", *LOOPBACK, "-p", address, "--json")
    assert (code, json.loads(text)) == (0, [])


def test_nobody_at_the_address_is_one_clear_line(commands: Commands) -> None:
    bootstrap, address = commands.bootstrap()
    bootstrap.stop()
    code, text = commands.result("status", *LOOPBACK, "-p", address)
    assert code == 1, text
    assert text.startswith("error: ")
    assert "Traceback" not in text


def status(commands: Commands, address: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    code, text = commands.result("status", str(MODEL), *LOOPBACK, "-p", address, "--json", *arguments)
    return code, json.loads(text)


def test_servers_come_serve_and_go(commands: Commands) -> None:
    _, address = commands.bootstrap()
    chosen = ("--blocks", "0:4", "--cache-tokens", "5000", "--public-name", "one")
    one = commands.start("serve", str(MODEL), "-p", address, *LOOPBACK, "--threads", "1", *chosen)
    one.wait_for("online: serving blocks 0:4")
    assert f"swarm-serve {MODEL} --initial-peers {address}" in one.text()

    # The second server of the same user gets a key of its own, and, with room for four blocks, what is missing.
    room = ("--memory", "8MB", "--cache-tokens", "300", "--dtype", "float32")
    two = commands.start("serve", str(MODEL), "-p", address, *LOOPBACK, "--threads", "1", *room)
    code, report = status(commands, address, "--wait", "--timeout", str(PATIENCE))
    assert (code, report["whole"]) == (0, True)
    first, second = report["servers"]
    assert (first["first"], first["last"], first["name"]) == (0, 4, "one")
    # A sequence of 5000 positions has some room beyond them.
    assert 5000 <= first["free_tokens"] < 5000 * 1.25
    assert (second["first"], second["last"], second["state"]) == (4, 8, "online")
    assert 300 <= second["free_tokens"] < 300 * 1.25
    assert "this one has a temporary identity" in two.text()

    assert one.stop() == 0, one.text()
    code, report = status(commands, address, "--wait", "--timeout", "2")
    assert (code, report["missing"]) == (3, [[0, 4]])

    (daemon,) = children(two.process.pid)
    os.kill(daemon, signal.SIGKILL)
    assert two.process.wait(PATIENCE) == 1, two.text()
    assert "error: " in two.text()
    assert "Traceback" not in two.text()


def test_a_dry_run_needs_no_network(commands: Commands) -> None:
    code, text = commands.result(
        "serve", str(MODEL), "--dry-run", "--memory", "8MB", "--cache-tokens", "300", "--dtype", "float32"
    )
    assert code == 0
    assert re.search(r"^span +(0:4|4:8)  6 MiB of weights \(2 MiB a block\) as float32$", text, re.MULTILINE), text
    assert re.search(r"^cache +300 tokens in 600 KiB \(2 KiB a token\)$", text, re.MULTILINE), text


def test_a_server_can_leave_while_it_joins(commands: Commands) -> None:
    _, address = commands.bootstrap()
    server = commands.start("serve", str(MODEL), "-p", address, *LOOPBACK, "--threads", "1", "--blocks", "0:8")
    server.wait_for("to add a machine")
    assert server.stop() == 0, server.text()
    assert "Traceback" not in server.text()
    code, text = commands.result("status", str(MODEL), *LOOPBACK, "-p", address)
    assert (code, "nobody serves 0:8" in text) == (0, True), text


def test_a_second_signal_ends_a_command_that_takes_its_time(commands: Commands) -> None:
    code = """
import asyncio
from swarm.cli.signals import on_signals
async def main():
    on_signals(lambda: print("leaving", flush=True))
    print("ready", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "leaving\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_server_without_a_model_takes_the_one_that_is_needed(commands: Commands) -> None:
    _, address = commands.bootstrap()
    join = ("--initial-peers", address, *LOOPBACK)
    first = commands.start("serve", str(MODEL), "--blocks", "0:5", "--dtype", "float32", *join)
    first.wait_for("online: serving blocks 0:5")

    code, text = commands.result("serve", "--models", "tiny*", *join)
    assert code == 1 and "--models allows none" in text
    # Three blocks fit, and in the swarm's numbers, not in the checkpoint's bfloat16.
    second = commands.start("serve", "--models", str(MODEL), "--memory", "6MiB", "--cache-tokens", "64", *join)
    second.wait_for("online: serving blocks 5:8")
    assert "as float32" in second.text()
    assert second.stop() == 0
