"""The commands as real processes on this machine's loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

LOOPBACK = ("--host-maddrs", "/ip4/127.0.0.1/tcp/0")
PATIENCE = 60.0
"""Seconds until something that should happen is taken not to happen."""


class Command:
    """A running swarm command whose output is read from a file."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.output = folder / f"{name}-{time.monotonic_ns()}.log"
        with self.output.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"swarm.cli.{name}", *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(os.environ, XDG_STATE_HOME=str(folder / "state"), OMP_NUM_THREADS="1"),
            )

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

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: list[Command] = []

    def start(self, name: str, *arguments: str) -> Command:
        self.running.append(Command(self.folder, name, *arguments))
        return self.running[-1]

    def result(self, name: str, *arguments: str) -> tuple[int, str]:
        """Run a command to its end."""
        command = self.start(name, *arguments)
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


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    running = Commands(tmp_path)
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
