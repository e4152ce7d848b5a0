"""A server for benchmarks, as a process: behind long lines, and with compute of a stated duration.

`python -m benchmarks.peer MODEL --blocks 0:4 --initial-peers …`; started by benchmarks/wide.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click
import numpy as np

from benchmarks.wide import link_of
from swarm import net
from swarm.config import NetworkConfig, ServerConfig
from swarm.jobs import compute
from swarm.server.hosting import Hosting
from swarm.server.options import ServeOptions
from swarm.server.plan import Loaded, Plan
from swarm.server.runner import Runner
from swarm.server.server import Server
from swarm.server.throughput import Throughput
from swarm.testing import ByteRunner, DelayedHost
from swarm.types import Segment, SequenceKey, ServerState, Span
from swarm.wire.rows import Buffer


@dataclasses.dataclass(frozen=True)
class Compute:
    """Stated seconds of a pass: `base`, and `per_position`."""

    base: float
    per_position: float

    def seconds(self, positions: int) -> float:
        return self.base + self.per_position * positions

    def announced(self, blocks: int) -> Throughput:
        """What a server measures of itself."""
        return Throughput(self.seconds(1) * 1000.0 / blocks, 128 * blocks / max(self.seconds(128), 1e-9))


def turned(segments: Sequence[Segment], hidden: Buffer) -> memoryview:
    """Outputs that nobody takes for a copy of an input or of each other: each row, turned by its position."""
    counts = [segment.count for segment in segments]
    rows = np.frombuffer(hidden, dtype=np.float32).reshape(sum(counts), -1)
    places = [position for segment in segments for position in range(segment.start, segment.start + segment.count)]
    shifted = [np.roll(row, place + 1) for row, place in zip(rows, places, strict=True)]
    return memoryview(np.concatenate(shifted).tobytes())


class Stated(ByteRunner):
    """A runner whose passes take as long as stated. `inner` computes within that time; None: nothing does."""

    def __init__(self, inner: Runner | None, compute: Compute) -> None:
        self.inner = inner
        self.compute = compute
        self.on_block: Callable[[], None] | None = None
        self.can_rollback = inner is None or inner.can_rollback
        self.rollback = 0 if inner is None else inner.rollback

    def forward(self, span: Span, segments: Sequence[Segment], hidden: Buffer) -> memoryview:
        end = time.perf_counter() + self.compute.seconds(sum(segment.count for segment in segments))
        output = turned(segments, hidden) if self.inner is None else compute(self.inner, span, segments, hidden)
        time.sleep(max(end - time.perf_counter(), 0.0))
        return output

    def fork(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        if self.inner is not None:
            self.inner.fork(source, target, length)

    def move(self, source: SequenceKey, target: SequenceKey, length: int) -> None:
        if self.inner is not None:
            self.inner.move(source, target, length)

    def truncate(self, sequence: SequenceKey, length: int) -> None:
        if self.inner is not None:
            self.inner.truncate(sequence, length)

    def free(self, sequence: SequenceKey) -> None:
        if self.inner is not None:
            self.inner.free(sequence)

    def reach(self, sequence: SequenceKey) -> int:
        return 0 if self.inner is None else self.inner.reach(sequence)

    def snapshot_bytes(self, span: Span) -> int:
        return 0 if self.inner is None else self.inner.snapshot_bytes(span)

    def bytes_held(self) -> int:
        return 0 if self.inner is None else self.inner.bytes_held()

    def reserved_bytes(self, span: Span, length: int) -> int:
        return length if self.inner is None else self.inner.reserved_bytes(span, length)


def loader(hosting: Hosting, compute: Compute | None, simulated: bool) -> Callable[[Span], Awaitable[Loaded]]:
    """How the span is loaded: really, with stated durations, or not at all."""

    async def load(span: Span) -> Loaded:
        if simulated and compute is not None:
            prints = tuple(hashlib.sha256(bytes([block])).digest() for block in span)
            contract = hosting.info.contract("float32", hosting.info.hidden_size * 4).on(span)
            contract = dataclasses.replace(contract, fingerprints=prints)
            return Loaded(Stated(None, compute), contract, compute.announced(len(span)))
        loaded = await hosting.load(span)
        if compute is None:
            return loaded
        stated = Stated(loaded.runner, compute)
        return dataclasses.replace(loaded, runner=stated, throughput=compute.announced(len(span)))

    return load


async def serve(hosting: Hosting, host: Any, directory: Any, load: Any, name: str) -> None:
    """Serve until the process is killed."""
    server = Server(
        host=host,
        directory=directory,
        plans=[Plan(hosting.info, hosting.choose, load, hosting.contract, settle=False)],
        name=name,
        on_state=lambda life: print("serving" if life.state is ServerState.ONLINE else life.state.value, flush=True),
    )
    await server.run()


@click.command()
@click.argument("model")
@click.option("--blocks", required=True)
@click.option("--initial-peers", "peer", required=True)
@click.option("--host-maddrs", required=True)
@click.option("--identity-path", required=True)
@click.option("--name", default="")
@click.option("--quantization")
@click.option("--rtt-ms", default=0.0, help="Round trip to every other peer.")
@click.option("--rate-mbit", default=0.0, help="Rate of every link; 0 for no limit.")
@click.option("--jitter-ms", default=0.0)
@click.option("--loss", default=0.0)
@click.option("--pass-ms", default=0.0, help="Stated duration of a pass…")
@click.option("--position-ms", default=0.0, help="… and of each position in it.")
@click.option("--simulated", is_flag=True, help="Nothing is computed: outputs are the inputs, turned.")
def main(
    model: str,
    blocks: str,
    peer: str,
    host_maddrs: str,
    identity_path: str,
    name: str,
    quantization: str | None,
    rtt_ms: float,
    rate_mbit: float,
    jitter_ms: float,
    loss: float,
    pass_ms: float,
    position_ms: float,
    simulated: bool,
) -> None:
    """Serve blocks of MODEL."""
    network = NetworkConfig(initial_peers=(peer,), host_maddrs=(host_maddrs,), identity_path=identity_path)
    options = ServeOptions(model, Span.parse(blocks), "cpu", "float32", threads=1, quantization=quantization)
    hosting = Hosting(options, ServerConfig(), progress=False)
    compute = Compute(pass_ms / 1000, position_ms / 1000) if pass_ms or position_ms else None
    link = link_of(rtt_ms, rate_mbit, jitter_ms, loss)

    async def run() -> None:
        async with await net.open(network) as joined:
            host = DelayedHost(joined.host, link)
            await serve(hosting, host, joined.directory, loader(hosting, compute, simulated), name)

    asyncio.run(run())


if __name__ == "__main__":
    main()
