"""A swarm in one process, for tests of what is built on swarm; needs no network, no model and no time.

`SimulatedNetwork` is a network in memory whose hosts, links and directory satisfy the protocols of `swarm.net.base`:
links are slow, lossy or cut, peers die or freeze, and a run is the same each time for one seed. `run` runs it in
virtual time. `World` is a swarm on it: real servers and real client sessions over an engine that computes hashes
(`ExactRunner`), so that a lost, doubled, reordered or stale position changes every later token, without ties and
without floats. `DelayedHost` makes long lines of any host's streams, real ones too.

    from swarm.testing import World, generate, reference, run
    from swarm.types import Span

    async def main() -> None:
        world = World(blocks=9)
        for name, span in (("a", "0:5"), ("b", "5:9"), ("c", "5:9")):
            await world.add(name, Span.parse(span))
        session = world.session()
        world.later(0.1, world.kill("b"))
        assert await generate(session, [1, 2, 3], 50) == reference([1, 2, 3], 50)
        await world.close()

    run(main())
"""

from swarm.testing.clock import Deadlock, VirtualClockLoop, run
from swarm.testing.conditions import Line, LinkConditions
from swarm.testing.engine import InlineEngine
from swarm.testing.exact import (
    MASK,
    ROW,
    VOCABULARY,
    Arithmetic,
    ExactRunner,
    ForgetlessRunner,
    RoomyRunner,
    SnapshotRunner,
    embed,
    reference,
    token_of,
)
from swarm.testing.generation import generate, speculate
from swarm.testing.network import MemoryDirectory, MemoryHost, MemoryStream, SimulatedNetwork
from swarm.testing.peer import Peer, Talk
from swarm.testing.runner import ByteRows, ByteRunner, PastRunner
from swarm.testing.wan import DelayedHost, DelayedStream
from swarm.testing.world import SimulatedServer, World

__all__ = [
    "MASK",
    "ROW",
    "VOCABULARY",
    "Arithmetic",
    "ByteRows",
    "ByteRunner",
    "Deadlock",
    "DelayedHost",
    "DelayedStream",
    "ExactRunner",
    "ForgetlessRunner",
    "InlineEngine",
    "Line",
    "LinkConditions",
    "MemoryDirectory",
    "MemoryHost",
    "MemoryStream",
    "PastRunner",
    "Peer",
    "RoomyRunner",
    "SimulatedNetwork",
    "SimulatedServer",
    "SnapshotRunner",
    "Talk",
    "VirtualClockLoop",
    "World",
    "embed",
    "generate",
    "reference",
    "run",
    "speculate",
    "token_of",
]
