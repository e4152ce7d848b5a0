"""Where the time of one token goes: microseconds per stage of a decode step through two servers."""

from __future__ import annotations

import asyncio
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.decode import generate
from benchmarks.models import llama_250m
from benchmarks.results import Result, output_options, report

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
STAGES = (
    ("client: from the outputs to the next step (norm, head, choice, embedding)", "returned", "issued"),
    ("client: step to frame", "issued", "sent"),
    ("client → server 1: two p2pd, sockets, parsing", "sent", "accepted one"),
    ("server 1: until the engine begins (queue, waking its thread)", "accepted one", "begun one"),
    ("server 1: compute", "begun one", "ended one"),
    ("server 1: from the engine to the frame (waking the loop, history)", "ended one", "passed on one"),
    ("server 1 → server 2: two p2pd, sockets, parsing", "passed on one", "accepted two"),
    ("server 2: until the engine begins (queue, waking its thread)", "accepted two", "begun two"),
    ("server 2: compute", "begun two", "ended two"),
    ("server 2: from the engine to the frame (waking the loop, history)", "ended two", "passed on two"),
    ("server 2 → client: two p2pd, sockets, parsing", "passed on two", "result"),
    ("client: from the result to the caller's thread", "result", "returned"),
)


class Marks:
    """When what happened, last; and for each stage all that it took, in microseconds."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.took: dict[str, list[float]] = {name: [] for name, _, _ in STAGES}

    def mark(self, what: str) -> None:
        """It happens now; if a stage ends with it, note what that took."""
        now = self.at[what] = time.perf_counter()
        for name, begin, end in STAGES:
            if end == what and begin in self.at:
                self.took[name].append((now - self.at[begin]) * 1e6)


def before(owner: type, method: str, tell: Callable[[Any], None]) -> None:
    """Call `tell(self)` before each call of a method."""
    plain = getattr(owner, method)

    @functools.wraps(plain)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        tell(self)
        return plain(self, *args, **kwargs)

    setattr(owner, method, wrapped)


def watch(marks: Marks) -> None:
    """Mark the moments of a step; in this process only."""
    from swarm.client.remote_blocks import BlockingSession
    from swarm.client.session import Session as ClientSession
    from swarm.client.streams import EpochStreams
    from swarm.models.span.model import SpanModel
    from swarm.server.outbox import Outbox
    from swarm.server.session import Session

    names = {0: "one", 8: "two"}
    before(BlockingSession, "begin", lambda self: marks.mark("issued"))
    before(EpochStreams, "put", lambda self: marks.mark("sent"))
    before(Session, "_accept", lambda self: marks.mark(f"accepted {names[self.span.first]}"))
    before(Outbox, "_sendable", lambda self: marks.mark(f"passed on {'two' if self.wanted_only else 'one'}"))
    before(ClientSession, "_on_result", lambda self: marks.mark("result"))
    run, wait = SpanModel.run, BlockingSession.begin

    def timed_run(self: Any, *args: Any) -> Any:
        marks.mark(f"begun {names[self.span.first]}")
        output = run(self, *args)
        marks.mark(f"ended {names[self.span.first]}")
        return output

    def timed_begin(self: Any, *args: Any) -> Callable[[], Any]:
        outputs = wait(self, *args)

        def returned() -> Any:
            result = outputs()
            marks.mark("returned")
            return result

        return returned

    SpanModel.run = timed_run  # type: ignore[method-assign]
    BlockingSession.begin = timed_begin  # type: ignore[method-assign]


async def serve(path: Path, blocks: str, peers: tuple[str, ...]) -> Any:
    """A server of these blocks, with its own p2pd, in this process's network thread. Returns once it is online."""
    from swarm import net
    from swarm.config import NetworkConfig, ServerConfig
    from swarm.server.hosting import Hosting
    from swarm.server.options import ServeOptions
    from swarm.server.server import Server
    from swarm.types import ServerState, Span

    network = NetworkConfig(initial_peers=peers, host_maddrs=LOOPBACK)
    joined = await net.open(network)
    hosting = Hosting(ServeOptions(str(path), Span.parse(blocks), "cpu", "float32"), ServerConfig(), progress=False)
    online = asyncio.Event()
    server = Server(
        host=joined.host,
        directory=joined.directory,
        plans=[hosting.plan],
        network=network,
        on_state=lambda life: online.set() if life.state is ServerState.ONLINE else None,
    )
    running = asyncio.ensure_future(server.run())
    await online.wait()
    return joined, server, running


@click.command()
@click.option("--tokens", default=64, show_default=True, help="New tokens; the first ones are not counted.")
@output_options
def main(tokens: int, as_json: bool, save: bool) -> None:
    """One session through two servers, all in one process so that one clock times them, each with its own p2pd."""
    import torch

    from swarm import DistributedLlama, connect, net
    from swarm.config import NetworkConfig
    from swarm.net.loop import shared_loop

    torch.set_num_threads(1)
    path, loop, marks = llama_250m(), shared_loop(), Marks()

    first = loop.run(net.open(NetworkConfig(host_maddrs=LOOPBACK)))
    peers = tuple(first.host.addresses[:1])
    servers = [loop.run(serve(path, blocks, peers)) for blocks in ("0:8", "8:16")]
    with connect(peers) as swarm:
        model = DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False)
        generate(model, 8)
        watch(marks)
        generate(model, tokens)
    loop.run(end([server for _, server, _ in servers], [running for *_, running in servers]))
    for network in [*(network for network, _, _ in servers), first]:
        loop.run(network.close())
    report(result(marks), as_json, save)


async def end(servers: list[Any], running: list[Any]) -> None:
    """Let the servers leave."""
    for server in servers:
        server.leave()
    await asyncio.gather(*running)


def result(marks: Marks) -> Result:
    """Medians over the tokens, and their shares."""
    medians = {name: statistics.median(took[2:]) for name, took in marks.took.items()}
    whole = sum(medians.values())
    rows: list[dict[str, Any]] = [
        {"stage": name, "µs": value, "% of the token": 100 * value / whole} for name, value in medians.items()
    ]
    rows.append({"stage": "the whole token", "µs": whole, "% of the token": 100.0})
    return Result(
        name="budget",
        title="One token through two servers, stage by stage",
        rows=rows,
        goal="all but compute, the head and the wire below a hundredth",
        notes=[f"medians over {len(next(iter(marks.took.values()))) - 2} tokens; a frame is 4 KB"],
        plot=["µs"],
    )
