"""Random fault schedules on the simulated network: what happens is drawn from a seed, what must come out is exact.

A scenario is a swarm of servers with overlapping spans, one to three clients that each play a script of prefills,
decodes, forks, crops and frees, and a schedule of faults: kills, restarts, freezes, cut links and peers, slow links,
evictions, drains, joins. At its end servers for every block join, unless the scenario is one in which they do not:
then `MissingBlocks`, or that everybody is full or out of reach, is the right end.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.client.session import Session
from swarm.config import ClientConfig, ServerConfig
from swarm.errors import MissingBlocks, NetworkError, ServerBusy
from swarm.jobs import compute
from swarm.testing import (
    Arithmetic,
    ExactRunner,
    ForgetlessRunner,
    LinkConditions,
    SnapshotRunner,
    World,
    run,
    speculate,
)
from swarm.types import Rows, Segment, Span
from swarm.wire import swarm_pb2 as pb

BLOCKS = 6
ROOMY = 1 << 20
"""Bytes of a cache budget that is never full."""
HANG = 3600.0
"""Seconds of simulated time after which a scenario counts as hung."""


@dataclass(frozen=True)
class Act:
    """One thing a client does: feed `count` tokens (or decode as many), after forking, moving or freeing."""

    kind: str
    sequence: int
    source: int = 0
    length: int = 0
    count: int = 0


def draw_script(rng: random.Random, *, rollback: bool) -> list[Act]:
    """Prefill, decode, and what beams, crops and new turns do to the sequences."""
    lengths, script, fresh = {0: 0}, [Act("prefill", 0, count=rng.randint(1, 30))], 1
    lengths[0] = script[0].count
    for _ in range(rng.randint(6, 20)):
        sequence = rng.choice(list(lengths))
        kind = rng.choices(["decode", "prefill", "fork", "move", "free"], [8, 2, 2, 2 if rollback else 0, 1])[0]
        if kind in ("decode", "prefill"):
            count = rng.randint(1, 8 if kind == "decode" else 20)
            lengths[sequence] += count
            script.append(Act(kind, sequence, count=count))
        elif kind == "free" and len(lengths) > 1:
            del lengths[sequence]
            script.append(Act(kind, sequence))
        elif kind in ("fork", "move"):
            length = rng.randint(1, lengths[sequence]) if rollback else lengths[sequence]
            script.append(Act(kind, fresh, source=sequence, length=length))
            lengths[fresh] = length
            if kind == "move":
                del lengths[sequence]
            fresh += 1
    return script


def peak(script: Sequence[Act], per_position: int, per_sequence: int) -> int:
    """The most bytes that a script holds at once."""
    lengths: dict[int, int] = {}
    most = 0
    for act in script:
        lengths[act.sequence] = lengths.get(act.sequence, 0) + act.count + act.length
        most = max(most, sum(lengths.values()) * per_position + len(lengths) * per_sequence)
        for gone in {"free": [act.sequence], "move": [act.source]}.get(act.kind, []):
            del lengths[gone]
    return most


async def play(
    script: Sequence[Act],
    arithmetic: Arithmetic,
    feed: Callable[[int, list[bytes], list[pb.Operation]], Awaitable[bytes]],
) -> list[int]:
    """Carry out a script; `feed(sequence, rows, operations)` computes and returns the last output. All tokens."""
    tokens: list[int] = []
    tails: dict[int, tuple[int, int]] = {}
    operations: list[pb.Operation] = []
    for act in script:
        if act.kind in ("fork", "move"):
            kind = pb.Operation.FORK if act.kind == "fork" else pb.Operation.MOVE
            operations.append(pb.Operation(kind=kind, source=act.source, target=act.sequence, length=act.length))
            tails[act.sequence] = (act.length, act.source * 31 + act.length)
        elif act.kind == "free":
            operations.append(pb.Operation(kind=pb.Operation.FREE, source=act.sequence))
        else:
            position, token = tails.get(act.sequence, (0, 7))
            step = act.count if act.kind == "prefill" else 1
            for _ in range(act.count // step):
                rows = [arithmetic.embed(token + i, position + i) for i in range(step)]
                output = await feed(act.sequence, rows, operations)
                operations = []
                position, token = position + step, arithmetic.token_of(output)
                tokens.append(token)
            tails[act.sequence] = (position, token)
    return tokens


async def expected(script: Sequence[Act], arithmetic: Arithmetic) -> list[int]:
    """What one process without a network computes."""
    runner, lengths = arithmetic.make_runner(Span(0, BLOCKS)), {}
    if isinstance(runner, SnapshotRunner):
        runner = ExactRunner()  # it can go back as far as a script likes

    async def feed(sequence: int, rows: list[bytes], operations: list[pb.Operation]) -> bytes:
        for op in operations:
            source, target = (b"", op.source), (b"", op.target)
            if op.kind == pb.Operation.FREE:
                runner.free(source)
                continue
            runner.fork(source, target, op.length)
            lengths[op.target] = op.length
            if op.kind == pb.Operation.MOVE:
                runner.free(source)
        start = lengths.get(sequence, 0)
        lengths[sequence] = start + len(rows)
        segment = Segment((b"", sequence), start, len(rows))
        return bytes(compute(runner, Span(0, BLOCKS), [segment], b"".join(rows)))

    return await play(script, arithmetic, feed)


async def through(session: Session, script: Sequence[Act], arithmetic: Arithmetic) -> list[int]:
    """What the swarm computes."""

    async def feed(sequence: int, rows: list[bytes], operations: list[pb.Operation]) -> bytes:
        (output,) = await session.step([Rows(sequence, b"".join(rows), 1)], operations)
        return output

    return await play(script, arithmetic, feed)


def draw_prefixes(seed: int) -> dict[str, Any]:
    """How servers keep the beginnings of prompts; all scripts begin with the same tokens."""
    rng = random.Random(f"prefixes of {seed}")
    share = rng.choice([0.0, 0.05, 0.25, 1.0, 1.0])
    return {"prefix_share": share, "prefix_chunk": rng.choice([1, 2, 4, 8]), "share_prefixes": rng.random() < 0.8}


class Scenario:
    """One seed's swarm, scripts and faults."""

    def __init__(self, seed: int, arithmetic: Arithmetic | None = None, standby: int = 0) -> None:
        self.standby = standby
        self.rng = rng = random.Random(seed)
        self.rollback = rng.random() < 0.85 or arithmetic is not None
        runner = ExactRunner if self.rollback else ForgetlessRunner
        if self.rollback and arithmetic is None and random.Random(f"states of {seed}").random() < 0.3:
            runner = SnapshotRunner
        delay = rng.choice([0.0005, 0.005, 0.05])
        conditions = LinkConditions(delay=delay, jitter=delay * rng.random(), loss=rng.choice([0.0, 0.0, 0.02]))
        self.scripts = [draw_script(rng, rollback=self.rollback) for _ in range(rng.choice([1, 1, 2, 3]))]
        whole = Span(0, BLOCKS)
        blocks = arithmetic.make_runner(whole) if arithmetic else runner()
        costs = blocks.reserved_bytes(whole, 1), blocks.snapshot_bytes(whole)
        config = ServerConfig(
            # Tight: the greediest client fits, but not everybody at once.
            cache_bytes=max(peak(script, *costs) for script in self.scripts) if rng.random() < 0.25 else ROOMY,
            history_share=rng.choice([0.0, 0.05, 0.25]),
            grace=rng.choice([1.0, 30.0]),
            idle_expiry=rng.choice([2.0, 600.0]),
            evict_after=0.5,
            **draw_prefixes(seed),
        )
        self.world = World(
            seed, blocks=BLOCKS, conditions=conditions, make_runner=runner, arithmetic=arithmetic, server_config=config
        )
        self.scarce = rng.random() < 0.1
        slow = rng.choice([0.0, 0.0, 0.05, 0.5])
        self.world.step_seconds = lambda positions: 0.002 + 0.0002 * positions + slow * (positions > 0)
        self.restored = asyncio.Event()
        self.names = 0

    async def play(self) -> str:
        """Returns how it ended: `exact` or `missing`. Raises AssertionError on a wrong token or a hang."""
        for span in self.draw_spans():
            await self.join(span)
        faults = asyncio.ensure_future(self.faults())
        try:
            ends = await asyncio.wait_for(asyncio.gather(*(self.client(script) for script in self.scripts)), HANG)
        except TimeoutError:
            raise AssertionError("hung") from None
        finally:
            faults.cancel()
            await asyncio.gather(faults, return_exceptions=True)
        await self.settle()
        return "missing" if "missing" in ends else "exact"

    @property
    def config(self) -> ClientConfig:
        return ClientConfig(max_wait=120.0 if self.scarce else None, chunk_positions=8, standby=self.standby)

    async def client(self, script: Sequence[Act]) -> str:
        session = self.world.session(self.config)
        await asyncio.sleep(self.rng.random())
        wanted = await expected(script, self.world.arithmetic)
        try:
            # A tight budget was made for the scripts: a speculation may be longer, and is then refused at once.
            if self.rollback and self.rng.random() < 0.3 and self.world.server_config.cache_bytes == ROOMY:
                tokens, wanted = await self.guess(session)
            else:
                tokens = await through(session, script, self.world.arithmetic)
        except (MissingBlocks, ServerBusy, NetworkError):
            assert self.scarce, "blocks were missing though their servers joined"
            return "missing"
        finally:
            await session.close()
        assert tokens == wanted, "wrong tokens"
        return "exact"

    async def guess(self, session: Session) -> tuple[list[int], list[int]]:
        """A client that sends guesses ahead; what came of it, and what had to come."""
        arithmetic, prompt = self.world.arithmetic, [7 + i for i in range(self.rng.randint(1, 20))]
        script = [Act("prefill", 0, count=len(prompt)), Act("decode", 0, count=self.rng.randint(1, 60))]
        truth = await expected(script, arithmetic)
        return await speculate(session, arithmetic, prompt, truth, self.rng), truth

    async def settle(self) -> None:
        """After the sessions ended every byte must be free again."""
        for name in list(self.world.network.hosts):
            self.world.network.thaw(name)
        for one in list(self.world.network.hosts):
            for other in list(self.world.network.hosts):
                if one < other:
                    self.world.network.mend(one, other)
        await asyncio.sleep(120.0)
        for runner in self.world.runners:
            assert getattr(runner, "complaints", []) == [], "an engine was asked what cannot be done"
        for server in self.world.servers.values():
            held = server.hosted.statistics()
            assert (held.sessions, held.kv_bytes, held.history_bytes) == (0, 0, 0), f"{server.name} still holds {held}"
            assert server.bytes_held() == 0, f"{server.name} leaks KV cache"
            server.hosted.prefixes.clear()
            await asyncio.sleep(1.0)
            assert server.hosted.engine.runner.bytes_held() == 0, f"{server.name} leaks prefixes"
            # Housekeeping asks the engine what is held, now and then.
            for _ in range(10):
                await asyncio.sleep(0.03 if server.hosted.engine.queue else 0.0)
            assert server.hosted.engine.queue == 0, f"{server.name} still has work"
        await self.world.close()

    # ---- the swarm and what happens to it ---------------------------------------------------------------------

    def draw_spans(self) -> list[Span]:
        """Spans that cover every block, most of them more than once."""
        spans = []
        for _ in range(self.rng.choice([1, 2, 2, 3])):
            cuts = sorted(self.rng.sample(range(1, BLOCKS), self.rng.randint(0, 2)))
            spans += [Span(a, b) for a, b in zip([0, *cuts], [*cuts, BLOCKS], strict=True)]
        return spans

    async def join(self, span: Span) -> None:
        self.names += 1
        await self.world.add(f"s{self.names}", span, decode_ms=self.rng.uniform(0.5, 4.0))

    async def faults(self) -> None:
        """Faults for a while, then everything that is needed joins (or, in a scarce world, does not)."""
        for _ in range(self.rng.randint(1, 6)):
            await asyncio.sleep(self.rng.expovariate(3.0))
            for _ in range(self.rng.choice([1, 1, 1, 2])):
                if self.world.servers:
                    await self.fault(self.rng.choice(list(self.world.servers)))
        if not self.scarce:
            await asyncio.sleep(self.rng.choice([0.0, 5.0, 90.0]))
            for span in (Span(0, 2), Span(2, 4), Span(4, BLOCKS)):
                await self.join(span)

    async def fault(self, name: str) -> None:
        rng, network, world = self.rng, self.world.network, self.world
        peers = [p for p, host in network.hosts.items() if p != name and host.alive]
        kind = rng.choice(["kill", "kill", "restart", "freeze", "link", "peer", "slow", "evict", "drain", "join"])
        if kind == "kill":
            await world.kill(name)
        elif kind == "restart":
            server = world.servers[name]
            await world.kill(name)
            await world.add(name, server.span)
        elif kind == "freeze":
            network.freeze(name)
            self.later(lambda: network.thaw(name))
        elif kind in ("link", "peer"):
            for peer in peers if kind == "peer" else rng.sample(peers, 1) if peers else []:
                network.cut(name, peer, silent=rng.random() < 0.5)
                self.later(lambda peer=peer: network.mend(name, peer))
        elif kind == "slow" and peers:
            network.set_link(name, rng.choice(peers), LinkConditions(delay=rng.choice([0.2, 1.5]), rate=20_000))
        elif kind == "evict":
            for session in list(world.servers[name].hosted.sessions.values()):
                session.evict()
        elif kind == "drain":
            server = world.servers.pop(name)
            server.tasks.append(asyncio.ensure_future(server.drain(rng.choice([1.0, 30.0]))))
        else:
            await self.join(rng.choice([Span(0, 3), Span(3, BLOCKS), Span(1, 5), Span(0, BLOCKS)]))

    def later(self, mend: Callable[[], None]) -> None:
        """A fault that passes; some take longer than anybody's patience."""
        asyncio.get_running_loop().call_later(self.rng.choice([0.3, 2.0, 8.0, 60.0]), mend)


def play_seed(seed: int, arithmetic: Arithmetic | None = None, standby: int = 0) -> str:
    """Play one seed's scenario to its end on a loop of its own."""

    async def main() -> str:
        return await Scenario(seed, arithmetic, standby).play()

    return run(main())


def outcome(seed: int, arithmetic: Callable[[], Arithmetic] | None = None, standby: int = 0) -> tuple[int, str]:
    """How the scenario of a seed ended, or what went wrong in it. For processes beside this one."""
    try:
        return seed, play_seed(seed, arithmetic and arithmetic(), standby)
    except BaseException:
        return seed, traceback.format_exc(limit=-4)
