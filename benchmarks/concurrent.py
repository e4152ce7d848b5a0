"""Many sessions at once: tokens per second of all together, time per token of each, and what more hops add."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import click

from benchmarks.decode import Clock, generate, together
from benchmarks.models import llama_250m
from benchmarks.results import Result, output_options, ratios, report

CUTS = {1: ("0:16",), 2: ("0:8", "8:16"), 4: ("0:4", "4:8", "8:12", "12:16")}
"""Spans, by the number of hops."""
MANY = 8


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--tokens", default=48, show_default=True, help="New tokens per generation.")
@click.option("--sessions", "counts", multiple=True, type=int, default=(1, 2, 4, 8, 16), show_default=True)
@click.option("--hops", "hops", multiple=True, type=int, default=(2, 1, 4), show_default=True)
@output_options
def main(rounds: int, tokens: int, counts: tuple[int, ...], hops: tuple[int, ...], as_json: bool, save: bool) -> None:
    """Decode with a 250M-parameter random Llama in float32 over servers of one thread each, on this machine."""
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for many in hops:
        rows += through(many, counts if many == 2 else (1, MANY), rounds, tokens)
    notes = [
        "servers have one thread each, the client another; with 4 hops more of them compute than there are cores",
        f"from when all sessions decode until the first has ended; {rounds} rounds, medians",
    ]
    goal = "two hops: 8 sessions at least 4 times one, 16 at least 5 times; p99 at most 3 times the median with 8"
    title = "Many sessions at once, through one, two and four servers"
    report(Result("concurrent", title, rows, goal, notes, plot=["tokens/s", "p99 / median"]), as_json, save)


def through(hops: int, counts: tuple[int, ...], rounds: int, tokens: int) -> list[dict[str, Any]]:
    """A row for each number of sessions over so many hops."""
    from swarm import DistributedLlama, connect
    from swarm.demo.local_swarm import LocalSwarm

    path = llama_250m()
    rates: dict[int, list[float]] = {count: [] for count in counts}
    gaps: dict[int, list[float]] = {count: [] for count in counts}
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        for blocks in CUTS[hops]:
            processes.start_server(blocks, blocks)
            processes.wait_until_online(blocks)
        with connect([processes.peer]) as swarm:
            model = DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False)
            generate(model, 8)
            for _, count in itertools.product(range(rounds), counts):
                rate, each = measure(model, tokens, count)
                rates[count].append(rate)
                gaps[count] += each
    return [row(hops, count, rates[count], rates[counts[0]], gaps[count]) for count in counts]


def measure(model: Any, tokens: int, sessions: int) -> tuple[float, list[float]]:
    """Tokens per second of all together, and every time between two tokens of a session, in ms."""
    clocks = [Clock() for _ in range(sessions)]
    together([lambda clock=clock: generate(model, tokens, clock) for clock in clocks])  # type: ignore[misc]
    begin, end = max(clock.times[1] for clock in clocks), min(clock.times[-1] for clock in clocks)
    inside = [[at for at in clock.times if begin <= at <= end] for clock in clocks]
    gaps = [1000 * (b - a) for times in inside for a, b in itertools.pairwise(times)]
    return sum(begin < at for times in inside for at in times) / (end - begin), gaps


def row(hops: int, sessions: int, rates: list[float], one: list[float], gaps: list[float]) -> dict[str, Any]:
    """What is shown of one number of sessions."""
    median, p99 = statistics.median(gaps), statistics.quantiles(gaps, n=100)[98]
    return {
        "run": f"{hops} hop{'s' * (hops > 1)}, {sessions} session{'s' * (sessions > 1)}",
        "tokens/s": rates,
        "× one session": ratios(rates, one),
        "ms per token": median,
        "p99 ms": p99,
        "p99 / median": p99 / median,
    }
