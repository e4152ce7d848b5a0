"""A swarm of real processes on this machine: a bootstrap peer and servers, started, killed, frozen and cleaned up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO

from swarm.errors import ProcessFailed

BIN = Path(sys.executable).parent
"""Where the commands of this Python are."""
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PATIENCE = 120.0
"""Seconds for a process to come up, on a machine that may be busy."""
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LocalSwarm:
    """Processes on loopback, each with an identity of its own in a temporary folder. A context manager.

    Raises ProcessFailed when one does not come up.
    """

    def __init__(
        self, model: str | Path, *, threads: int = 1, dtype: str = "float32", patience: float = PATIENCE
    ) -> None:
        self.model = str(model)
        self.threads = threads
        self.dtype = dtype
        self.patience = patience
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="local-swarm-")
        self.folder = Path(self._folder.name)
        self.peer = ""

    def __enter__(self) -> LocalSwarm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_bootstrap(self, *options: str) -> str:
        """Start the bootstrap peer; returns its address."""
        file = self.folder / "addresses"
        self._start("bootstrap", "swarm.cli.bootstrap", "--address-file", str(file), *options)
        self._wait_for(file.exists, "bootstrap")
        self.peer = file.read_text().splitlines()[0]
        return self.peer

    def start_server(self, name: str, blocks: str, *options: str) -> None:
        """Start a server of `blocks`; does not wait until it is up."""
        serve = ["swarm.cli.serve", self.model, "--blocks", blocks, "--dtype", self.dtype, "--public-name", name]
        self._start(name, *serve, "--initial-peers", self.peer, "--threads", str(self.threads), *options)

    def start_gateway(self, name: str, *options: str, model: str | Path | None = None) -> None:
        """Start a query node, perhaps with another copy of the model; does not wait until it is up."""
        gateway = ["swarm.cli.gateway", str(model or self.model), "--dtype", self.dtype, "--public-name", name]
        gateway += ["--http", "127.0.0.1:0", "--initial-peers", self.peer, "--threads", str(self.threads)]
        self._start(name, *gateway, *options)

    def _start(self, name: str, module: str, *arguments: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        own = ["--host-maddrs", LOOPBACK, "--identity-path", str(self.folder / f"{name}.key")]
        # A process that was started is known here, whenever somebody presses Ctrl-C.
        with self.log(name).open("wb") as log, uninterrupted():
            self.processes[name] = launch(module, [*arguments, *own], log, environment)

    def log(self, name: str) -> Path:
        """What the process printed."""
        return self.folder / f"{name}.log"

    def status(self) -> dict[str, object]:
        """What swarm-status --json says of the model."""
        out = subprocess.run([*self._status, "--json"], capture_output=True, check=True)
        return dict(json.loads(out.stdout))

    def wait_until_served(self) -> None:
        """Until every block of the model has a server."""
        wait = [*self._status, "--wait", "--timeout", str(self.patience)]
        if subprocess.run(wait, stdout=subprocess.DEVNULL, check=False).returncode:
            raise ProcessFailed(f"after {self.patience:.0f} s some blocks have no server")

    @property
    def _status(self) -> list[str]:
        return [*_run("swarm.cli.status"), self.model, "--initial-peers", self.peer]

    def wait_until_online(self, *names: str) -> None:
        """Until each of these servers has said that it serves."""
        for name in names:
            self._wait_for(partial(self.is_online, name), name)

    def is_online(self, name: str) -> bool:
        """Whether a server has said that it serves, since it was started."""
        return "serving" in self.log(name).read_text()

    def wait_until_ready(self, *names: str) -> None:
        """Until each of these query nodes has said that it is ready."""
        for name in names:
            self._wait_until_said(name, "is ready")

    def url(self, name: str) -> str:
        """Where a query node serves OpenAI's API."""
        self._wait_until_said(name, "\nhttp ")
        return next(line.split()[1] for line in self.log(name).read_text().splitlines() if line.startswith("http "))

    def _wait_until_said(self, name: str, words: str) -> None:
        self._wait_for(lambda: words in "\n" + self.log(name).read_text(), name)

    def _wait_for(self, ready: Callable[[], bool], name: str) -> None:
        deadline = time.monotonic() + self.patience
        while not ready():
            if self.processes[name].poll() is not None or time.monotonic() > deadline:
                raise ProcessFailed(f"{name} did not come up:\n{self.log(name).read_text()}")
            time.sleep(0.05)

    def name_of(self, peer_id: str) -> str:
        """The process whose identity this is."""
        from swarm.net.identity import Identity

        return next(n for n in self.processes if Identity.load_or_create(self.folder / f"{n}.key").peer_id == peer_id)

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process."""
        self.processes[name].send_signal(number)

    def interrupt(self, name: str) -> None:
        """What Ctrl-C in its terminal does: SIGINT to the process and whatever shares its group."""
        os.killpg(self.processes[name].pid, signal.SIGINT)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        """End everything."""
        with uninterrupted():
            for process in self.processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                    process.kill()
            for process in self.processes.values():
                process.wait()
            self._folder.cleanup()


def launch(
    module: str, arguments: Sequence[str], output: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Run a command in a session of its own; what it prints goes to `output`."""
    return subprocess.Popen(
        [*_run(module), *arguments],
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def _run(module: str) -> list[str]:
    """A module run by this Python, wherever scripts were put; ours is not looked for in the working folder."""
    return [sys.executable, *(["-P"] if module.startswith("swarm.") else []), "-m", module]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C, and whatever else asks this process to end, waits until the block is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = {number: signal.signal(number, lambda pressed, _: asked.append(pressed)) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for pressed in asked:
        signal.raise_signal(pressed)
