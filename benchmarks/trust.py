"""What audits and compare=2 cost a session: tokens per second through two hops that are there twice."""

from __future__ import annotations

import time
from typing import Any

import click

from benchmarks.decode import generate
from benchmarks.results import Result, output_options, ratios, report

PASSED = 100
"""Audits behind a server that is known."""


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--tokens", default=64, show_default=True, help="New tokens per generation.")
@output_options
def main(rounds: int, tokens: int, as_json: bool, save: bool) -> None:
    """Generate with a 250M-parameter random Llama on four one-thread servers, to the end of each text."""
    import torch

    from benchmarks.models import llama_250m
    from swarm import DistributedLlama, connect
    from swarm.demo.local_swarm import LocalSwarm

    torch.set_num_threads(1)
    path = llama_250m()
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        for name, span in (("one", "0:8"), ("two", "8:16"), ("three", "0:8"), ("four", "8:16")):
            processes.start_server(name, span)
        processes.wait_until_online("one", "two", "three", "four")
        with connect([processes.peer]) as swarm:
            models = {
                name: DistributedLlama.from_pretrained(path, swarm=swarm, dtype="float32", **options)
                for name, options in OPTIONS.items()
            }
            for model in models.values():
                generate(model, 4)
            rows = []
            for _ in range(rounds):
                for name, model in models.items():
                    know(model, PASSED if name == KNOWN else 0)
                rows.append({name: rate(model, tokens) for name, model in models.items()})
    report(result(rows), as_json, save)


BARE, NEW, KNOWN, TWICE = (
    "no audits",
    "audits of servers not known",
    "audits of servers that always passed",
    "compare=2",
)
OPTIONS: dict[str, dict[str, Any]] = {BARE: {}, NEW: {"audits": True}, KNOWN: {"audits": True}, TWICE: {"compare": 2}}


def know(model: Any, passed: int) -> None:
    """Forget what is known of all servers, but that each has passed so many audits."""
    integrity = model.remote_blocks.view.trust.integrity
    integrity.standings.clear()
    for _ in range(passed):
        integrity.passed([record.peer_id for record in model.remote_blocks.view.records], 0.0, time.time())


def rate(model: Any, tokens: int) -> float:
    """Tokens per second of a text, from its prompt to its return."""
    began = time.perf_counter()
    generate(model, tokens)
    return tokens / (time.perf_counter() - began)


def result(rounds: list[dict[str, float]]) -> Result:
    """Each rate, relative to that without audits."""
    bare = [row[BARE] for row in rounds]
    columns = {name: [row[name] for row in rounds] for name in OPTIONS}
    rows = [{"run": name, "tokens/s": values, "× no audits": ratios(values, bare)} for name, values in columns.items()]
    return Result(
        name="trust",
        title="Audits: two hops, each there twice",
        rows=rows,
        goal="audits of servers that always passed cost at most 3 %",
        notes=[f"{len(rounds)} rounds, medians; all servers and the client share this machine"],
        plot=["tokens/s"],
    )
