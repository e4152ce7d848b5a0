"""Decode and prefill over three hops with 100 ms round trip and 100 Mbit/s, against what the delays allow."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import click

from benchmarks.decode import Clock, generate
from benchmarks.models import llama_250m
from benchmarks.prefill import prompts, timed
from benchmarks.results import Result, output_options, report
from benchmarks.wide import wide_swarm

SPANS = ("0:6", "6:11", "11:16")


@click.command()
@click.option("--rtt-ms", default=100.0, show_default=True, help="Round trip of every link.")
@click.option("--rate-mbit", default=100.0, show_default=True, help="Rate of every link.")
@click.option("--pass-ms", default=10.0, show_default=True, help="Stated compute of a pass at each hop…")
@click.option("--position-ms", default=3.0, show_default=True, help="… and of each position in it.")
@click.option("--positions", default=1000, show_default=True, help="Length of the prompt.")
@click.option("--tokens", default=40, show_default=True, help="New tokens.")
@click.option("--rounds", default=3, show_default=True)
@output_options
def main(
    rtt_ms: float,
    rate_mbit: float,
    pass_ms: float,
    position_ms: float,
    positions: int,
    tokens: int,
    rounds: int,
    as_json: bool,
    save: bool,
) -> None:
    """Three servers whose compute is simulated: its duration is stated, since three would fight for two cores."""
    import torch

    from swarm import DistributedLlama

    torch.set_num_threads(1)
    path = llama_250m()
    compute = ("--pass-ms", str(pass_ms), "--position-ms", str(position_ms), "--simulated")
    with wide_swarm(path, SPANS, rtt_ms, rate_mbit, *compute) as swarm:

        def model(**options: Any) -> Any:
            return DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False, **options)

        chosen, whole = model(), model(chunk_positions=positions)
        draw = prompts(positions)
        head = head_ms(chosen)
        generate(chosen, 4)
        steps = [token_ms(chosen, tokens) for _ in range(rounds)]
        first = {"cut as the client chooses": chosen, "whole": whole}
        prefill = {name: [timed(each, next(draw)) for _ in range(rounds)] for name, each in first.items()}
    hops = len(SPANS)
    bound = (hops + 1) * rtt_ms / 2 + hops * (pass_ms + position_ms) + head
    stage = (pass_ms + position_ms * positions) / 1000
    rows: list[dict[str, Any]] = [
        {"run": "decode: what delays, stated compute and the head add up to", "ms": bound},
        {"run": "decode: one token", "ms": steps, "× bound": [step / bound for step in steps]},
        {"run": f"prefill of {positions}: one stage's compute, stated", "ms": 1000 * stage},
    ]
    for name, times in prefill.items():
        run = f"prefill of {positions}: to the first token, {name}"
        rows.append(
            {"run": run, "ms": [1000 * each for each in times], "× one stage": [each / stage for each in times]}
        )
    title = f"Three hops, every link {rtt_ms:.0f} ms round trip and {rate_mbit:.0f} Mbit/s"
    notes = [
        f"compute is simulated: {pass_ms:g} ms a pass and {position_ms:g} ms a position at each hop, stated;",
        f"the network is real processes and p2pd behind delaying lines; the head here takes {head:.1f} ms a token",
        f"prefill includes opening the session and {hops + 1} one-way delays; {rounds} rounds, medians",
    ]
    goal = "a token within 1.1 of the bound; a prompt within 1.4 of one stage"
    report(Result("wan", title, rows, goal, notes, plot=["ms"]), as_json, save)


def token_ms(model: Any, tokens: int) -> float:
    """The median time of a token after the first, in ms."""
    clock = Clock()
    generate(model, tokens, clock)
    times = clock.times[1:]
    return 1000 * statistics.median(b - a for a, b in itertools.pairwise(times))


def head_ms(model: Any) -> float:
    """What the client computes for a token, in ms: the head, by itself."""
    import torch

    hidden = torch.randn(1, 1, model.config.hidden_size)
    times = []
    with torch.no_grad():
        for _ in range(20):
            began = time.perf_counter()
            model.lm_head(hidden)
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)
