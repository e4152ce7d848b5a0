"""Homes behind NATs and public machines, with real peers in them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from swarm.config import NetworkConfig
from tests.field import lab, line
from tests.field.lab import Lab, Line

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "models" / "tiny-llama"
LINE = Line(delay=0.02, up=50e6, down=50e6)
"""Of a home, each way: two homes are 80 ms apart, there and back."""
PATIENCE = 60.0


def impossible() -> str | None:
    """Why homes cannot be made here, or None."""
    return lab.possible() or line.possible()


class Homes:
    """A public machine for each of `public`, each with a bootstrap peer, and homes. A context manager.

    `homes`: for each home's name the kinds of its NATs, from the inside out: several are a carrier's behind a home's.
    """

    def __init__(self, homes: dict[str, Sequence[str]], public: Sequence[str] = ("boot",), line: Line = LINE) -> None:
        self._kinds, self._public, self._line = homes, public, line
        self.lab = Lab(f"swarm{os.getpid()}")
        self._folder = tempfile.TemporaryDirectory(prefix="homes-")
        self.folder = Path(self._folder.name)
        self.peers: dict[str, str] = {}
        """The TCP address of each bootstrap peer."""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Homes:
        self.lab.__enter__()
        try:
            for name in self._public:
                self.lab.host(name)
            for place, (name, kinds) in enumerate(self._kinds.items()):
                upper = None
                for level, nat in reversed(list(enumerate(kinds))):
                    lan = f"100.64.{place}.0/24" if level else f"192.168.{place + 10}.0/24"
                    line = self._line if upper is None else None
                    self.lab.router(f"r{place}{level}", nat=nat, behind=upper, lan=lan, line=line)
                    upper = f"r{place}{level}"
                self.lab.host(name, behind=upper, line=None if kinds else self._line)
            for name in self._public:
                self.start_bootstrap(name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything."""
        self.lab.close()
        self._folder.cleanup()

    def router(self, home: str) -> str:
        """The outermost router of a home."""
        place = list(self._kinds).index(home)
        return f"r{place}{len(self._kinds[home]) - 1}"

    def start(self, name: str, at: str, *command: object) -> None:
        """Start a Python program at a machine; what it writes is in `log(name)`, or `out(name)`."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parents[1])}
        with self.log(name).open("ab") as log, self.out(name).open("wb") as out:
            self.processes[name] = self.lab.popen(
                at, [sys.executable, *command], stdout=out, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )

    def start_bootstrap(self, name: str, *options: str) -> None:
        """A bootstrap peer, with the same address as before, and wait until it is ready."""
        file, ip = self.folder / f"{name}.addresses", self.lab.address(name)
        file.unlink(missing_ok=True)
        joining = [word for peer in list(self.peers.values())[:1] for word in ("--initial-peers", peer)]
        joining = [] if name == next(iter(self.peers), None) else joining
        listen = [f"/ip4/{ip}/tcp/31337", f"/ip4/{ip}/udp/31337/quic-v1"]
        self.start(
            name, name, "-m", "swarm.cli.bootstrap", "--address-file", file, "--no-edge",
            "--identity-path", self.folder / f"{name}.key", *joining, *options,
            *(word for address in listen for word in ("--host-maddrs", address)),
        )  # fmt: skip
        self.wait(file.exists, name)
        self.peers[name] = next(line for line in file.read_text().splitlines() if "/tcp/" in line)

    @property
    def model(self) -> Path:
        """A small model that takes 4,096 positions."""
        folder = self.folder / "tiny-llama"
        if not folder.exists():
            shutil.copytree(MODEL, folder)
            config = json.loads((MODEL / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
        return folder

    def start_server(self, name: str, at: str, blocks: str, *options: str) -> None:
        """A server of blocks of the model; does not wait until it is up."""
        self.start(
            name, at, "-m", "swarm.cli.serve", self.model, "--blocks", blocks, "--dtype", "float32",
            "--public-name", name, "--threads", "1", "--identity-path", self.folder / f"{name}.key",
            *(word for peer in self.peers.values() for word in ("--initial-peers", peer)), *options,
        )  # fmt: skip

    def wait_until_online(self, name: str) -> None:
        """Until a server has said that it serves."""
        self.wait(lambda: self.is_online(name), name, 2 * PATIENCE)

    def is_online(self, name: str) -> bool:
        """Whether a server has said that it serves, since it was started."""
        return "online: serving" in self.out(name).read_text()

    def kill(self, name: str) -> None:
        """SIGKILL for a program and all that it started."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].wait()

    def config(self, **fields: Any) -> str:
        """What joins this swarm, as the scripts take it. Keeps to what NetworkConfig knows."""
        NetworkConfig(**fields)
        return json.dumps({"initial_peers": list(self.peers.values()), **fields})

    def start_peer(self, name: str, at: str, **fields: Any) -> None:
        """A peer that echoes; does not wait."""
        self.start(name, at, HERE / "peer.py", "listen", self.config(**fields))

    def start_call(self, name: str, at: str, peer: dict[str, Any], *works: str) -> None:
        """Call such a peer, by what it said of itself; does not wait."""
        addresses = json.dumps(peer["addresses"])
        self.start(name, at, HERE / "peer.py", "call", self.config(), peer["peer"], addresses, *works)

    def start_writer(self, name: str, at: str, prompt: int, tokens: int, pause: float = 0.0) -> None:
        """Generate a text at a machine; does not wait."""
        self.start(name, at, HERE / "writer.py", self.model, ",".join(self.peers.values()), prompt, tokens, pause)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What a program has said so far, a line of JSON each."""
        text = self.out(name).read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def said(self, name: str, what: Callable[[dict[str, Any]], bool], patience: float = PATIENCE) -> dict[str, Any]:
        """The last line that a program has said of those for which `what` is true, once there is one."""
        self.wait(lambda: any(map(what, self.lines(name))), name, patience)
        return [line for line in self.lines(name) if what(line)][-1]

    def finished(self, name: str, patience: float = PATIENCE) -> list[dict[str, Any]]:
        """All that a program said, once it has ended."""
        self.processes[name].wait(timeout=patience)
        return self.lines(name)

    def wait(self, ready: Callable[[], bool], name: str, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while not ready():
            ended = self.processes[name].poll() is not None
            if (ended and not ready()) or time.monotonic() > deadline:
                said = self.out(name).read_text() + self.log(name).read_text()
                raise TimeoutError(f"{name} {'ended' if ended else 'waited in vain'}:\n{said[-6000:]}")
            time.sleep(0.05)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def out(self, name: str) -> Path:
        return self.folder / f"{name}.out"


def circuit(line: dict[str, Any]) -> bool:
    """Whether a peer says that it is reached through another."""
    return any("/p2p-circuit" in address for address in line.get("addresses", ()))
