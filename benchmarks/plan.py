"""How near swarm-plan is: what it says of three swarms on this machine, and what they then do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.decode import aggregate_rate, decode_rate
from benchmarks.models import llama_250m
from benchmarks.prefill import prompts, timed
from benchmarks.results import Result, output_options, ratios, report
from benchmarks.wide import wide_swarm

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm

PROMPT = 512
SESSIONS = 8
SWARMS = ("two servers", "three servers, int8", "three servers, 40 ms and 50 Mbit/s")


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Plans and measurements in turns; medians are reported.")
@click.option("--tokens", default=24, show_default=True, help="New tokens per generation.")
@click.option("--swarm", "swarms", multiple=True, type=click.Choice(SWARMS), help="Only these.")
@output_options
def main(rounds: int, tokens: int, swarms: tuple[str, ...], as_json: bool, save: bool) -> None:
    """A 250M-parameter Llama on two servers; SmolLM2-135M in int8 on three; the Llama on three that are far away. Three
    to four minutes where nothing else runs; what does makes servers announce, and clients see, something else."""
    import torch

    torch.set_num_threads(1)
    cores = capacity()
    rows = [row for name in swarms or SWARMS for row in compared(name, rounds, tokens, cores)]
    report(
        Result(
            name="plan",
            title="What swarm-plan says, over what is measured",
            rows=rows,
            goal="within 25%",
            notes=[
                f"{cores:.2f} cores; {rounds} rounds, medians",
                f"prompt of {PROMPT} positions, {SESSIONS} sessions for many",
            ],
            plot=["said / seen"],
        ),
        as_json,
        save,
    )


@contextmanager
def a_swarm(name: str) -> Iterator[tuple[Path, Swarm, dict[str, Any]]]:
    """The model, the connection, and how a client loads it."""
    from swarm import connect
    from swarm.demo.local_swarm import LocalSwarm
    from swarm.demo.smollm2 import smollm2

    if name == SWARMS[2]:
        path = llama_250m()
        compute = ("--pass-ms", "30", "--position-ms", "3", "--simulated")
        with wide_swarm(path, ("0:6", "6:11", "11:16"), 40, 50, *compute) as swarm:
            yield path, swarm, {}
        return
    path, spans, options = llama_250m(), ("0:8", "8:16"), {}
    if name == SWARMS[1]:
        path, spans, options = smollm2(progress=True), ("0:10", "10:20", "20:30"), {"quantization": "int8"}
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        names = [f"server{index}" for index in range(len(spans))]
        for each, blocks in zip(names, spans, strict=True):
            chosen = itertools.chain.from_iterable((f"--{key}", value) for key, value in options.items())
            processes.start_server(each, blocks, *chosen)
            processes.wait_until_online(each)  # one after the other: each measures itself alone, as it announces
        with connect([processes.peer]) as swarm:
            yield path, swarm, options


def capacity() -> float:
    """How many cores this machine has, by how much more all of them get done than one: some are threads of one."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    import torch

    count = os.cpu_count() or 1
    left, right = torch.randn(512, 512), torch.randn(512, 512)

    def work() -> float:
        began = time.perf_counter()
        for _ in range(40):
            left @ right
        return time.perf_counter() - began

    with ThreadPoolExecutor(count) as pool:
        alone = min(work() for _ in range(5))
        shared = min(max(each.result() for each in [pool.submit(work) for _ in range(count)]) for _ in range(5))
    return count * min(alone / shared, 1.0)


def compared(name: str, rounds: int, tokens: int, cores: float) -> list[dict[str, Any]]:
    """A row for one session, for many, and for a prompt, of one swarm."""
    from swarm import DistributedLlama
    from swarm.cli.plan import of_servers

    said: dict[str, list[float]] = {"one session": [], "many": [], "prompt": []}
    seen: dict[str, list[float]] = {"one session": [], "many": [], "prompt": []}
    with a_swarm(name) as (path, swarm, options):
        together = None if name == SWARMS[2] else cores  # there nothing is computed, but by the client
        model = DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False, **options)
        draw = prompts(PROMPT)
        timed(model, next(draw))
        for _ in range(rounds):
            plan = swarm.loop.run(of_servers(swarm.network, str(path), None, None, PROMPT, together))
            rates = plan["tokens_per_second"]
            for what, number in zip(said, (rates["1"], rates[str(SESSIONS)], plan["prompt_seconds"]), strict=True):
                said[what].append(number)
            seen["one session"].append(decode_rate(model, tokens))
            seen["many"].append(aggregate_rate(model, tokens, SESSIONS))
            seen["prompt"].append(timed(model, next(draw)))
    return [
        {
            "swarm": f"{name}: {what}",
            "said": said[what],
            "seen": seen[what],
            "said / seen": ratios(said[what], seen[what]),
        }
        for what in said
    ]
