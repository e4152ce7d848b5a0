"""Large swarms: choosing a route, the size of a view, the status report, and a directory of many real peers."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import click

from benchmarks.results import Result, output_options, report
from swarm.client.routing import Conditions, find_route, repair
from swarm.contract import Contract
from swarm.types import ModelInfo, ServerRecord, ServerState, Span

if TYPE_CHECKING:
    from swarm.net import Network

MODEL = ModelInfo("5c" * 32, "deep-model", blocks=126, hidden_size=16384)
"""As deep as the deepest open models."""
WHOLE = Span(0, MODEL.blocks)
SIDE_BY_SIDE = 10
"""Servers that together leave no block out."""
BATCH = 10
"""Peers that start, or end, at the same time."""
READERS = 5
SAMPLE = 1000
"""Records whose size in memory is measured; so many are remembered once they were checked, and that is not counted."""


@click.command()
@click.option("--servers", "sizes", default=(10, 100, 1000, 10_000), show_default=True, multiple=True, type=int)
@click.option("--rounds", default=5, show_default=True, help="How often each is measured; medians are reported.")
@click.option("--nodes", default=100, show_default=True, help="Real peers in the directory; 0 leaves that part out.")
@output_options
def main(sizes: tuple[int, ...], rounds: int, nodes: int, as_json: bool, save: bool) -> None:
    """Simulated swarms of a model with 126 blocks; then a directory of real peers, all on this machine."""
    report(simulated(sizes, rounds), as_json, save)
    if nodes:
        report(asyncio.run(measure_directory(nodes)), as_json, save)


# ---- simulated ------------------------------------------------------------------------------------------------


def swarm_of(servers: int, seed: int = 0) -> tuple[list[ServerRecord], Conditions]:
    """Records of so many servers, and what a client knows that has measured a third of them.

    Spans have 4 to 20 blocks. Some servers are slow, busy, full, joining or draining, one in fifty has other weights,
    one in a hundred and ten links are to be avoided.
    """
    rng = random.Random(seed)
    records = [server_of(rng, place) for place in range(servers)]
    names = [record.peer_id for record in records]
    return records, Conditions(
        rtt_ms={name: rng.lognormvariate(3.5, 0.8) for name in names if rng.random() < 0.34},
        default_rtt_ms=60.0,
        avoid_peers=frozenset(rng.sample(names[SIDE_BY_SIDE:], servers // 100)),
        avoid_links=frozenset((rng.choice(names), rng.choice(names)) for _ in range(10)),
        positions=2048,
    )


def server_of(rng: random.Random, place: int) -> ServerRecord:
    """One server; the first ten lie side by side, the others where chance puts them."""
    beside = place < SIDE_BY_SIDE
    length = -(-MODEL.blocks // SIDE_BY_SIDE) if beside else rng.randint(4, 20)
    first = min(place * length, MODEL.blocks - length) if beside else rng.randint(0, MODEL.blocks - length)
    span = Span(first, first + length)
    weights = int(not beside and rng.random() < 0.02)
    states = [ServerState.ONLINE] * (1 if beside else 18) + [ServerState.JOINING, ServerState.DRAINING] * (not beside)
    return ServerRecord(
        peer_id=f"12D3KooW{place:044d}",
        contract=Contract(MODEL.key, span, tuple(fingerprint(block, weights) for block in span)),
        state=rng.choice(states),
        addresses=(f"/ip4/10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}/tcp/31337",),
        free_tokens=0 if rng.random() < 0.1 else rng.randint(2048, 200_000),
        decode_ms=rng.lognormvariate(1.0, 0.7),
        prefill_rate=rng.lognormvariate(9.0, 0.7),
        queue=rng.choice((0, 0, 0, 1, 2, 5)),
        name=f"server {place}",
        expires=time.time() + 200.0,
    )


@cache
def fingerprint(block: int, weights: int) -> bytes:
    """8 bytes, as of real tensors; `weights` tells one tuning of the model from another."""
    return random.Random(block * 100 + weights).randbytes(8)


def simulated(sizes: Sequence[int], rounds: int) -> Result:
    """A row for each size."""
    return Result(
        name="scale",
        title=f"Swarms of many servers of a model with {MODEL.blocks} blocks",
        rows=[measure(servers, rounds) for servers in sizes],
        goal="with 1,000 servers a route in less than 20 ms and a status report in less than 2 s",
        notes=[
            "check: the signatures of all records, new to this process or seen before",
            "report: swarm-status --json over a simulated directory, without the way to it",
        ],
        plot=["route, ms", "check new, ms", "report, ms", "wire, KB"],
    )


def measure(servers: int, rounds: int) -> dict[str, Any]:
    """One row: everything about a swarm of this size."""
    records, conditions = swarm_of(servers)
    route = find_route(records, WHOLE, conditions)
    lost = {len(route.hops) // 2}
    signed = signed_records(records)
    return {
        "servers": servers,
        "route, ms": [took(lambda: find_route(records, WHOLE, conditions)) for _ in range(rounds)],
        "repair, ms": [took(lambda: repair(route, lost, records, conditions)) for _ in range(rounds)],
        "check new, ms": took(lambda: check(signed)),
        "check seen, ms": [took(lambda: check(signed)) for _ in range(rounds)],
        "wire, KB": sum(map(len, signed)) / 1000,
        "view, KB": in_memory(lambda: check(signed[:SAMPLE])) / min(SAMPLE, servers) * servers / 1000,
        "report, ms": [status_report(records) for _ in range(rounds)],
    }


def took(work: Callable[[], Any]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def in_memory(make: Callable[[], Any]) -> int:
    """Bytes that what is made takes, apart from what its first making left behind."""
    make()
    tracemalloc.start()
    made = make()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del made
    return taken


def signed_records(records: Sequence[ServerRecord]) -> list[bytes]:
    """What is in the directory, each record signed by a peer of its own."""
    from swarm.net.identity import Identity
    from swarm.net.records import sign_record

    identities = [Identity.generate() for _ in records]
    pairs = zip(records, identities, strict=True)
    return [sign_record(identity, replace(record, peer_id=identity.peer_id)) for record, identity in pairs]


def check(signed: Sequence[bytes]) -> list[ServerRecord]:
    """The records that a client makes of what it reads."""
    from swarm.config import NetworkConfig
    from swarm.net.records import verify_record

    now, config = time.time(), NetworkConfig()
    return [verify_record(each, now=now, config=config) for each in signed]


def status_report(records: Sequence[ServerRecord]) -> float:
    """Milliseconds from the question to the text of swarm-status --json."""
    from swarm.cli.report import as_json
    from swarm.cli.status import look
    from swarm.testing import SimulatedNetwork, run

    network = SimulatedNetwork()
    network.infos[MODEL.key] = MODEL
    network.records |= {(MODEL.key, record.peer_id): record for record in records}
    directory = network.directory(network.host("viewer"))
    return took(lambda: json.dumps(as_json(*run(look(directory, MODEL.name))), indent=2))


# ---- real -----------------------------------------------------------------------------------------------------


async def measure_directory(nodes: int) -> Result:
    """So many peers join, each announces, some more join and read."""
    began = time.perf_counter()
    async with started(nodes) as peers:
        start = (time.perf_counter() - began) * 1000
        rng = random.Random(0)
        announced = [await took_async(announcement(peer, server_of(rng, i))) for i, peer in enumerate(peers)]
        reads: dict[str, list[float]] = {"join": [], "told": [], "first": [], "again": []}
        found = [await read(peers[0].host.addresses, reads) for _ in range(READERS)]
    return Result(
        name="scale-directory",
        title=f"A directory of {nodes} real peers on one machine",
        rows=[
            {"what": f"start of all peers, {BATCH} at a time, each", "median, ms": start / nodes},
            spread("an announcement", announced),
            spread("joining to read", reads["join"]),
            spread("all servers, told by a peer that has read them", reads["told"][1:]),
            spread("first lookup of all blocks", reads["first"]),
            spread("the next lookups", reads["again"]),
        ],
        notes=[
            f"{nodes} peers were up after {start / 1000:.1f} s; each has its own p2pd, all share one Python process",
            f"each of {READERS} readers found between {min(found)} and {max(found)} of {nodes} servers",
        ],
        plot=["median, ms", "95th percentile, ms"],
    )


def spread(what: str, times: Sequence[float]) -> dict[str, Any]:
    """A row: the middle of these times, and what only one in twenty exceeds."""
    late = statistics.quantiles(times, n=20, method="inclusive")[-1]
    return {"what": what, "median, ms": list(times), "95th percentile, ms": late}


async def took_async(work: Awaitable[Any]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


@asynccontextmanager
async def started(nodes: int) -> AsyncIterator[list[Network]]:
    """Peers that joined through the first of them. All of them end, also when one of them could not start."""
    peers: list[Network] = []

    async def enter(initial: Sequence[str]) -> None:
        peers.append(await join(initial))

    try:
        await enter(())
        while len(peers) < nodes:
            async with asyncio.TaskGroup() as batch:
                for _ in range(min(BATCH, nodes - len(peers))):
                    batch.create_task(enter(peers[0].host.addresses))
        yield peers
    finally:
        while peers:
            ending, peers[-BATCH:] = peers[-BATCH:], []
            await asyncio.gather(*(peer.close() for peer in ending), return_exceptions=True)


async def join(initial: Sequence[str]) -> Network:
    """A peer on loopback with a p2pd of its own."""
    from swarm import net
    from swarm.config import NetworkConfig

    return await net.open(NetworkConfig(initial_peers=tuple(initial), host_maddrs=("/ip4/127.0.0.1/tcp/0",)))


async def announcement(peer: Network, record: ServerRecord) -> None:
    own = replace(record, peer_id=peer.host.peer_id, addresses=tuple(peer.host.addresses))
    await peer.directory.announce(replace(own, expires=time.time() + 290.0), MODEL)


async def read(initial: Sequence[str], times: dict[str, list[float]]) -> int:
    """Join, look up, look up again, leave; how many servers were found. Nothing is known of any signature at first."""
    from swarm.net import records

    began = time.perf_counter()
    peer = await join(initial)
    try:
        times["join"].append((time.perf_counter() - began) * 1000)
        assert peer.introducers is not None
        for what, work in {"told": peer.introducers.servers, "first": peer.directory.lookup}.items():
            records._authentic.cache_clear()  # every peer of this process has checked them all
            times[what].append(await took_async(work(MODEL.key, MODEL.blocks)))
        times["again"] += [await took_async(peer.directory.lookup(MODEL.key, MODEL.blocks)) for _ in range(2)]
        return len(await peer.directory.lookup(MODEL.key, MODEL.blocks))
    finally:
        await peer.close()
