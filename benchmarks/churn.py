"""Weeks of volunteers who come and go, in minutes: how often every block is served, by this rule and by Petals'."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.petals_rule import PetalsRule
from benchmarks.results import Result, output_options, report
from swarm.server.placement import Strength, best_of
from swarm.server.rebalancing import better_of
from swarm.types import Span

BLOCKS = 126
HOUR = 3600.0


@dataclass(frozen=True)
class Kind:
    """A kind of machine: how many blocks it holds, milliseconds of one, how many of a hundred machines are so."""

    name: str
    blocks: int
    decode_ms: float
    share: int


KINDS = (
    Kind("8 GB", 3, 8.5, 25),
    Kind("12 GB", 4, 6.0, 20),
    Kind("16 GB", 6, 5.0, 20),
    Kind("24 GB", 9, 2.6, 25),
    Kind("48 GB", 19, 2.7, 7),
    Kind("80 GB", 33, 0.9, 3),
)
"""Of Llama 3.1 405B in int4, 2.1 GB a block with its cache; times as in docs/examples/machines.toml."""


@dataclass(frozen=True)
class Habits:
    """Seconds. Volunteers stay and stay away by Weibull's distribution with a long tail; some leave without a word."""

    stay: float = 10 * HOUR
    away: float = 14 * HOUR
    shape: float = 0.6
    impolite: float = 0.3
    load: float = 300.0
    drain: float = 60.0
    record: float = 60.0
    check: float = 120.0


class OurRule:
    """What servers do: swarm.server.placement and rebalancing."""

    name = "swarm"
    residence = 600.0

    def choose(self, spans: Sequence[Span], view: View, rng: random.Random) -> Span:
        return best_of(spans, Strength(view.servers, view.strength), view.meeting, rng)

    def move(self, spans: Sequence[Span], me: Machine, view: View, rng: random.Random) -> Span | None:
        assert me.span is not None
        servers, speed = view.servers.copy(), view.strength.copy()
        servers[me.span.first : me.span.last] -= 1
        speed[me.span.first : me.span.last] -= me.speed
        without = Strength(servers, np.round(speed, 6))
        serving = view.serving.copy()
        serving[me.span.first : me.span.last] -= 1
        return better_of(spans, me.span, me.speed, without, serving, lambda: view.meeting, rng)


@dataclass(eq=False)
class Machine:
    """A volunteer's machine. `seen`: the directory has it, as one that will stay; `serves`: sessions may use it."""

    kind: Kind
    span: Span | None = None
    online: bool = False
    seen: bool = False
    serves: bool = False
    life: int = 0
    since: float = 0.0

    @property
    def speed(self) -> float:
        return 1000.0 / (self.kind.decode_ms * self.kind.blocks)


@dataclass
class View:
    """What the directory says of each block: how many servers have it, or will, how fast together, and how many of
    them have loaded it. `everybody`: machines of which some are there."""

    servers: NDArray[np.int64]
    strength: NDArray[np.float64]
    serving: NDArray[np.int64]
    everybody: Sequence[Machine]

    @property
    def machines(self) -> list[Machine]:
        """Those that are there, and stay."""
        return [machine for machine in self.everybody if machine.seen and machine.span]

    @property
    def meeting(self) -> frozenset[int]:
        """Where spans begin and end."""
        spans = [machine.span for machine in self.machines if machine.span]
        return frozenset({0, BLOCKS, *(edge for span in spans for edge in (span.first, span.last))})


@dataclass
class Tally:
    """What was counted."""

    whole: float = 0.0
    total: float = 0.0
    holes: int = 0
    moves: int = 0
    server_days: float = 0.0
    cut: int = 0
    weakest: list[float] = field(default_factory=list)
    hops: list[int] = field(default_factory=list)


class Simulation:
    """A swarm of one model over `seconds`; the first tenth is not counted."""

    def __init__(self, rule: Any, machines: int, seconds: float, seed: int, habits: Habits) -> None:
        self.rule, self.seconds, self.habits = rule, seconds, habits
        self.random = random.Random(seed)  # of the volunteers: the same for every rule
        self.choices = random.Random(seed)
        kinds = [kind for kind in KINDS for _ in range(kind.share)]
        self.machines = [Machine(self.random.choice(kinds)) for _ in range(machines)]
        self.spans = {
            kind.blocks: [Span(first, min(first + kind.blocks, BLOCKS)) for first in range(BLOCKS)] for kind in KINDS
        }
        self.seen = np.zeros(BLOCKS)
        self.servers = np.zeros(BLOCKS, dtype=np.int64)
        self.loaded = np.zeros(BLOCKS, dtype=np.int64)
        self.serving = np.zeros(BLOCKS, dtype=np.int64)
        self.online = 0
        self.tally = Tally()
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changes = 0
        self._checked: dict[int, int] = {}
        for machine in self.machines:
            self.after(self.stretch(habits.away) * self.random.random(), machine, self.arrive)
        self.at(self.warm, self.sample)

    @property
    def warm(self) -> float:
        return self.seconds / 10

    def run(self) -> Tally:
        last = 0.0
        while self._events and self._events[0][0] <= self.seconds:
            self.now, _, what = heapq.heappop(self._events)
            self.count(self.now - max(last, self.warm))
            last = self.now
            what()
        return self.tally

    def count(self, passed: float) -> None:
        if passed <= 0:
            return
        self.tally.total += passed
        self.tally.whole += passed * bool(self.serving.all())
        self.tally.server_days += passed / 86400 * self.online

    def sample(self) -> None:
        self.at(self.now + 600, self.sample)
        strength = np.zeros(BLOCKS)
        for machine in self.machines:
            if machine.serves and machine.span:
                strength[machine.span.first : machine.span.last] += machine.speed
        self.tally.weakest.append(float(strength.min()))
        if hops := self.hops():
            self.tally.hops.append(hops)

    def hops(self) -> int:
        """Of the shortest chain of servers; 0: there is none."""
        reach = [0] * BLOCKS
        for machine in self.machines:
            if machine.serves and machine.span:
                reach[machine.span.first] = max(reach[machine.span.first], machine.span.last)
        at, best, hops = 0, 0, 0
        for block in range(BLOCKS):
            best = max(best, reach[block])
            if block == at:
                if best <= block:
                    return 0
                at, hops = best, hops + 1
        return hops

    # ---- events -----------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), what))

    def after(self, seconds: float, machine: Machine, what: Callable[[Machine], None]) -> None:
        """Unless the machine has come or gone, or moved, by then."""
        life = machine.life
        self.at(self.now + seconds, lambda: what(machine) if machine.life == life else None)

    def stretch(self, mean: float) -> float:
        return self.random.weibullvariate(mean / math.gamma(1 + 1 / self.habits.shape), self.habits.shape)

    def view(self) -> View:
        return View(self.servers.copy(), np.round(self.seen, 6), self.loaded.copy(), self.machines)

    def show(self, machine: Machine, seen: bool) -> None:
        if machine.seen != seen and machine.span:
            machine.seen = seen
            self.seen[machine.span.first : machine.span.last] += machine.speed if seen else -machine.speed
            self.servers[machine.span.first : machine.span.last] += 1 if seen else -1
            self._changes += 1

    def stay(self, machine: Machine, count: int) -> None:
        """One more, or less, that has loaded its span and does not leave."""
        assert machine.span is not None
        self.loaded[machine.span.first : machine.span.last] += count
        self.online += count

    def serve(self, machine: Machine, serves: bool) -> None:
        if machine.serves == serves or not machine.span:
            return
        before = bool(self.serving.all())
        machine.serves = serves
        self.serving[machine.span.first : machine.span.last] += 1 if serves else -1
        if before and not self.serving.all() and self.now > self.warm:
            self.tally.holes += 1

    def arrive(self, machine: Machine) -> None:
        machine.online, machine.life = True, machine.life + 1
        stays = self.stretch(self.habits.stay)
        impolite = self.random.random() < self.habits.impolite
        self.settle(machine, self.rule.choose(self.spans[machine.kind.blocks], self.view(), self.choices))

        def leave() -> None:
            machine.life += 1
            (self.vanish if impolite else self.leave)(machine)
            self.after(self.stretch(self.habits.away), machine, self.arrive)

        self.at(self.now + stays, leave)

    def settle(self, machine: Machine, span: Span) -> None:
        machine.span, machine.since = span, self.now
        self.show(machine, True)
        move = machine.life
        self.at(self.now + self.habits.load, lambda: self.ready(machine, move))

    def ready(self, machine: Machine, life: int) -> None:
        if machine.life == life:
            self.serve(machine, True)
            self.stay(machine, 1)
            self.after(self.choices.expovariate(1 / self.habits.check), machine, self.check)

    def vanish(self, machine: Machine) -> None:
        """Its record stays until it expires."""
        if self.now > self.warm:
            self.tally.cut += machine.serves
        if machine.serves:
            self.stay(machine, -1)
        self.serve(machine, False)
        ghost = Machine(machine.kind, machine.span, seen=machine.seen)
        machine.online = machine.seen = False
        self.at(self.now + self.habits.record, lambda: self.show(ghost, False))

    def leave(self, machine: Machine) -> None:
        """It says so, and serves on while its sessions move."""
        self.show(machine, False)
        machine.online = False
        if machine.serves:
            self.stay(machine, -1)
            ghost = Machine(machine.kind, machine.span, serves=True)
            machine.serves = False
            self.at(self.now + self.habits.drain, lambda: self.serve(ghost, False))

    def check(self, machine: Machine) -> None:
        self.after(self.choices.expovariate(1 / self.habits.check), machine, self.check)
        if self.now - machine.since < self.rule.residence or self._checked.get(id(machine)) == self._changes:
            return
        self._checked[id(machine)] = self._changes
        span = self.rule.move(self.spans[machine.kind.blocks], machine, self.view(), self.choices)
        if span is None:
            return
        if self.now > self.warm:
            self.tally.moves += 1
        machine.life += 1
        self.depart(machine, span)

    def depart(self, machine: Machine, span: Span) -> None:
        """To another span: it drains as one that leaves, then loads."""
        self.leave(machine)
        machine.online = True
        self.settle(machine, span)


@click.command()
@click.option("--weeks", default=2.0, show_default=True)
@click.option("--machines", multiple=True, type=int, default=(1000, 84), show_default=True)
@click.option("--seeds", default=2, show_default=True)
@output_options
def main(weeks: float, machines: tuple[int, ...], seeds: int, as_json: bool, save: bool) -> None:
    """126 blocks on so many volunteers' machines, of which about four of ten are on at a time."""
    habits = Habits()
    rows = [
        row(count, [Simulation(rule, count, weeks * 7 * 86400, seed, habits).run() for seed in range(seeds)], rule)
        for count in machines
        for rule in (OurRule(), PetalsRule(), NoRule())
    ]
    mean = sum(kind.blocks * kind.share for kind in KINDS) / sum(kind.share for kind in KINDS)
    share = habits.stay / (habits.stay + habits.away)
    notes = [f"{count} machines: {count * mean * share / BLOCKS:.1f} times the blocks" for count in machines]
    report(
        Result(
            "churn",
            f"{weeks:g} weeks of volunteers' machines, {BLOCKS} blocks",
            rows,
            goal="every block served 99.9% of the time at twice the capacity; no column behind the baseline's",
            notes=[*notes, f"{seeds} seeds; times in docs/architecture.md"],
            plot=["every block served %"],
        ),
        as_json,
        save,
    )


class NoRule(OurRule):
    """Servers stay where they went."""

    name = "no moves"

    def move(self, spans: Sequence[Span], me: Machine, view: View, rng: random.Random) -> Span | None:
        return None


def row(machines: int, tallies: Sequence[Tally], rule: Any) -> dict[str, Any]:
    """A line of the table."""
    days = [tally.total / 86400 for tally in tallies]
    return {
        "machines, rule": f"{machines}, {rule.name}",
        "every block served %": [100 * tally.whole / tally.total for tally in tallies],
        "holes a day": [tally.holes / day for tally, day in zip(tallies, days, strict=True)],
        "hops": [statistics.mean(tally.hops) for tally in tallies],
        "weakest block, steps/s": [statistics.mean(tally.weakest) for tally in tallies],
        "moves a server-day": [tally.moves / tally.server_days for tally in tallies],
    }
