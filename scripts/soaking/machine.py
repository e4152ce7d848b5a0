"""A soak on this machine alone: servers of the tiny model on loopback, each block twice."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.soaking.faults import PAUSE, Kind, Members, Servers
from swarm.demo.local_swarm import LocalSwarm

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
SPANS = {"a1": "0:3", "a2": "0:3", "b1": "3:6", "b2": "3:6", "c1": "6:8", "c2": "6:8"}


@dataclass(frozen=True)
class Scene:
    """What a soak happens to. `swarms`: what each client has joined; `pause`: seconds between two faults."""

    members: Members
    servers: Servers
    model: Path
    swarms: Sequence[Any]
    kinds: dict[str, Kind]
    pause: tuple[float, float] = PAUSE


@contextlib.contextmanager
def machine(clients: int) -> Iterator[Scene]:
    """A swarm that `clients` use through one peer."""
    from swarm import connect

    with LocalSwarm(MODEL) as processes:
        processes.start_bootstrap()
        for name, blocks in SPANS.items():
            processes.start_server(name, blocks)
        processes.wait_until_online(*SPANS)

        def restarted(name: str) -> None:
            processes.kill(name)
            port = processes.peer.split("/")[4]
            (processes.folder / "addresses").unlink(missing_ok=True)
            processes.start_bootstrap("--host-maddrs", f"/ip4/127.0.0.1/tcp/{port}")

        servers = Servers(processes, [*SPANS], lambda name: processes.start_server(name, SPANS[name]))
        kinds = {**servers.kinds(), "bootstrap restarted": Kind(1, ["bootstrap"], restarted)}
        with connect([processes.peer]) as swarm:
            yield Scene(processes, servers, MODEL, [swarm] * clients, kinds)


def sweep() -> None:
    """Start a peer and let it leave: who starts removes what those left who were killed."""
    with LocalSwarm(MODEL) as processes:
        processes.start_bootstrap()
        processes.signal("bootstrap", signal.SIGTERM)
        processes.processes["bootstrap"].wait(60)
