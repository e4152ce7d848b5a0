"""Time to the first token of sessions that share a long system prompt: the first one's, and those that follow."""

from __future__ import annotations

import statistics
from typing import Any

import click

from benchmarks.pair import two_servers
from benchmarks.prefill import first_token, timed
from benchmarks.results import Result, output_options, ratios, report


@click.command()
@click.option("--rounds", default=5, show_default=True, help="System prompts; medians are reported.")
@click.option("--positions", default=512, show_default=True, help="Length of the system prompt.")
@click.option("--tail", default=16, show_default=True, help="Length of each session's own question after it.")
@click.option("--sessions", default=4, show_default=True, help="Sessions with each system prompt.")
@output_options
def main(rounds: int, positions: int, tail: int, sessions: int, as_json: bool, save: bool) -> None:
    """Sessions one after the other through two one-thread servers, with a 250M-parameter random Llama in float32."""
    import torch

    from swarm import DistributedLlama

    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Any:
        return torch.randint(5, 30_000, (1, count), generator=generator)

    with two_servers() as (local, swarm, path):
        model = DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False)
        plain: list[float] = []
        first: list[float] = []
        later: list[float] = []
        first_token(model, draw(positions + tail))
        for _ in range(rounds):
            system = draw(positions)
            prompts = [torch.cat([system, draw(tail)], dim=1) for _ in range(sessions)]
            seconds = [timed(model, prompt) for prompt in prompts]
            first.append(seconds[0])
            later.append(statistics.median(seconds[1:]))
            plain.append(timed(local, prompts[0]))
        equal = all(first_token(model, prompt) == first_token(local, prompt) for prompt in prompts)
    report(result(positions, tail, plain, first, later, equal=equal), as_json, save)


def result(
    positions: int, tail: int, plain: list[float], first: list[float], later: list[float], *, equal: bool
) -> Result:
    """How many times as soon the answer comes when the system prompt has been there before."""
    seconds, sooner = "seconds", "× as soon as the first"
    return Result(
        name="prefix",
        title=f"Time to the first token after {positions} shared and {tail} own positions: two one-thread servers",
        rows=[
            {"session": "plain transformers, one thread", seconds: plain},
            {"session": "the first", seconds: first},
            {"session": "those that follow", seconds: later, sooner: ratios(first, later)},
        ],
        goal="those that follow at least five times as soon as the first",
        notes=[f"tokens equal plain transformers': {'yes' if equal else 'NO'}; {len(first)} rounds, medians"],
        plot=[seconds],
    )
