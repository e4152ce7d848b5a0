"""A swarm whose peers are far from each other: processes on this machine behind long lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.demo.local_swarm import LocalSwarm
from swarm.testing import LinkConditions

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm


def link_of(rtt_ms: float, rate_mbit: float = 0.0, jitter_ms: float = 0.0, loss: float = 0.0) -> LinkConditions:
    """One direction of a link with this round trip."""
    rate = rate_mbit * 1e6 / 8 or None
    return LinkConditions(rtt_ms / 2000, jitter_ms / 1000, rate, loss)


class WideSwarm(LocalSwarm):
    """A bootstrap peer, and servers behind lines of one kind."""

    def start_peer(self, name: str, blocks: str, *options: str) -> None:
        """Start `benchmarks.peer`; does not wait until it is up."""
        peer = ["benchmarks.peer", self.model, "--blocks", blocks, "--initial-peers", self.peer]
        self._start(name, *peer, "--name", name, *options)


@contextmanager
def wide_swarm(model: Path, spans: Sequence[str], rtt_ms: float, rate_mbit: float, *options: str) -> Iterator[Swarm]:
    """Servers of these spans, and a client as far away; `options` are those of `benchmarks.peer`."""
    from swarm import net
    from swarm.client.swarm import Swarm
    from swarm.config import NetworkConfig
    from swarm.net.loop import shared_loop
    from swarm.testing import DelayedHost

    line = ["--rtt-ms", str(rtt_ms), "--rate-mbit", str(rate_mbit)]
    with WideSwarm(model) as processes:
        processes.start_bootstrap()
        names = [f"peer{index}" for index in range(len(spans))]
        for name, blocks in zip(names, spans, strict=True):
            processes.start_peer(name, blocks, *line, *options)
        processes.wait_until_online(*names)
        network = NetworkConfig(initial_peers=(processes.peer,), host_maddrs=("/ip4/127.0.0.1/tcp/0",))

        async def join() -> Swarm:
            joined = await net.open(network)
            return Swarm(replace(joined, host=DelayedHost(joined.host, link_of(rtt_ms, rate_mbit))), shared_loop())

        with shared_loop().run(join()) as swarm:
            yield swarm
