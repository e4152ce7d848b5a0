"""A client that asks a swarm of strangers for one text after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from swarm.client.session import Session
from swarm.client.view import View
from swarm.config import ClientConfig
from swarm.errors import GenerationFailed, Refuted
from swarm.testing import World, generate
from swarm.testing.engine import InlineEngine
from swarm.testing.world import SimulatedServer
from swarm.types import PeerId, Span
from tests.attackers.attacks import Attack, Slow
from tests.attackers.numbers import NumbersRunner, arithmetic, reference

SPANS = (Span(0, 3), Span(3, 6), Span(6, 9))


@dataclass
class Outcome:
    """`wrong`: tokens that were returned as final and are not right, of `tokens`; `first`: the first text after which
    no wrong server was on a route any more; `exposed`: tokens that were computed with one on the route; `computed`:
    positions of all servers; `attackers`: all identities that were wrong; `seconds`: that the texts took."""

    tokens: int = 0
    wrong: int = 0
    refuted: int = 0
    undecided: int = 0
    first: int = 0
    exposed: int = 0
    convicted: set[PeerId] = field(default_factory=set)
    wrong_texts: list[int] = field(default_factory=list)
    seconds: float = 0.0
    computed: int = 0
    attackers: set[PeerId] = field(default_factory=set)


async def swarm(
    replicas: int, attacks: Mapping[tuple[int, int], Attack], seed: int = 0, operators: int = 0, noise: float = 0.0
) -> World:
    """`replicas` servers a span, and those attacks whose index is beyond; that at (span, index) is an attack, as fast
    as others. `operators`: how many of the last ones are in one block of addresses; `noise`: of honest servers."""
    world = World(seed, arithmetic=arithmetic())
    for place, span in enumerate(SPANS):
        beyond = max((index + 1 for where, index in attacks if where == place), default=0)
        count = max(replicas, beyond)
        for index in range(count):
            attack = attacks.get((place, index))
            runner = attack(span) if attack is not None else NumbersRunner(span, noise, seed=index)
            shared = index >= count - operators
            address = f"/ip4/81.0.7.{index + 1}/tcp/1" if shared else f"/ip4/{81 + place}.{index + 1}.7.1/tcp/1"
            name = f"{place}{index}"
            server = await world.add(name, span, runner=runner, decode_ms=1.0, addresses=(address,))
            if isinstance(runner, Slow):
                slow_down(server, runner.times)
    return world


def slow_down(server: SimulatedServer, times: float) -> None:
    """Each pass takes so many times as long."""
    engine = server.hosted.engine
    assert isinstance(engine, InlineEngine)
    usual = engine._seconds
    engine._seconds = lambda positions: times * usual(positions)


async def reborn(world: World, name: str, attack: Attack | None, index: int) -> str:
    """The server goes, and its owner comes back under another name. Returns that."""
    assert attack is not None
    old = world.servers[name]
    addresses, span = old.record.addresses[len(old.host.addresses) :], old.span
    await world.kill(name)
    name = f"{name.partition('-')[0]}-{index}"
    await world.add(name, span, runner=attack(span), decode_ms=1.0, addresses=addresses)
    return name


async def text_of(
    world: World,
    view: View | None,
    config: ClientConfig,
    prompt: Sequence[int],
    count: int,
    on_end: Callable[[Session], None] = lambda session: None,
) -> tuple[list[int], Session, int]:
    """A text as `generate` makes it: begun again where it turns out wrong. How often that was."""
    again = 0
    while True:
        session = world.session(config, view=view)
        view = session.view
        try:
            text = await generate(session, prompt, count, arithmetic=world.arithmetic)
            await session.settled()
        except Refuted:
            again += 1
            continue
        finally:
            on_end(session)
            await session.close()
        return text, session, again


async def campaign(
    world: World,
    attackers: set[PeerId],
    texts: int,
    config: ClientConfig,
    *,
    count: int = 96,
    seed: int = 0,
    boast: float | None = None,
    whitewash: Attack | None = None,
) -> Outcome:
    """So many texts of `count` tokens; every route is chosen by chance, as the load of many clients would have it.

    `boast`: the milliseconds a block that attackers announce, whatever they take; `whitewash`: an attacker that was
    found out comes back so, with another identity, at the same addresses.
    """
    rng, outcome, view = random.Random(seed), Outcome(), None
    attackers = set(attackers)

    def on_end(session: Session) -> None:
        if session.route and attackers & {hop.peer_id for hop in session.route.hops}:
            outcome.exposed += session.length(0) - len(prompt)
            outcome.first = index + 1

    for index in range(texts):
        for server in world.servers.values():
            drawn = rng.uniform(1.0, 2.0)
            told = drawn if boast is None or server.name not in attackers else boast
            server.record = replace(server.record, decode_ms=told)
            key = world.model.key, server.name, server.span.first
            known = world.network.records[key]
            world.network.records[key] = replace(known, decode_ms=server.record.decode_ms)
        if view is not None:
            await view.refresh(0.0)
        prompt = [rng.randrange(211) for _ in range(5)]
        began = asyncio.get_running_loop().time()
        try:
            text, session, again = await text_of(world, view, config, prompt, count, on_end)
        except GenerationFailed:
            outcome.undecided += 1
            continue
        outcome.seconds += asyncio.get_running_loop().time() - began
        view = session.view
        right = reference(prompt, count)
        bad = sum(one != other for one, other in zip(text, right, strict=True))
        outcome.tokens += count
        outcome.wrong += bad
        outcome.refuted += again
        if bad:
            outcome.wrong_texts.append(index)
        for name in attackers & view.trust.integrity.convicted & world.servers.keys() if whitewash else ():
            outcome.computed += world.servers[name].hosted.engine.runner.computed  # type: ignore[attr-defined]
            attackers.add(await reborn(world, name, whitewash, index))
    assert view is not None
    outcome.attackers = attackers
    outcome.convicted = set(view.trust.integrity.convicted)
    outcome.computed += sum(server.hosted.engine.runner.computed for server in world.servers.values())  # type: ignore[attr-defined]
    return outcome
