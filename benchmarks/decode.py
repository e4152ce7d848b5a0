"""Tokens per second of a swarm of two one-thread servers on this machine, over plain transformers with one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import click

from benchmarks.results import Result, output_options, ratios, report

PROMPT = 16


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--tokens", default=32, show_default=True, help="New tokens per generation.")
@click.option("--sessions", default=8, show_default=True, help="Concurrent sessions.")
@click.option("--quantization", type=click.Choice(["none", "int8", "int4"]), default="none", show_default=True)
@output_options
def main(rounds: int, tokens: int, sessions: int, quantization: str, as_json: bool, save: bool) -> None:
    """Decode with a 250M-parameter random Llama: in one process in float32, through two servers, and many at once."""
    import torch
    from transformers import LlamaForCausalLM

    from benchmarks.models import llama_250m
    from swarm import DistributedLlama, connect
    from swarm.demo.local_swarm import LocalSwarm

    torch.set_num_threads(1)
    path = llama_250m()
    local = LlamaForCausalLM.from_pretrained(path)
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        processes.start_server("one", "0:8", "--quantization", quantization)
        processes.start_server("two", "8:16", "--quantization", quantization)
        processes.wait_until_online("one", "two")
        with connect([processes.peer]) as swarm:
            model = DistributedLlama.from_pretrained(path, swarm=swarm, dtype="float32", quantization=quantization)
            equal = torch.equal(generate(local, tokens), generate(model, tokens))
            rows = [measure(local, model, tokens, sessions) for _ in range(rounds)]
    report(result(rows, sessions, equal, quantization), as_json, save)


def generate(model: Any, tokens: int, streamer: Any = None) -> Any:
    """Greedy, `tokens` new ones."""
    import torch

    inputs = torch.arange(5, 5 + PROMPT).unsqueeze(0)
    mask = torch.ones_like(inputs)
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    return model.generate(inputs, attention_mask=mask, streamer=streamer, **options)


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to note."""


def decode_rate(model: Any, tokens: int) -> float:
    """Tokens per second from the first new token to the last: prefill is not in it."""
    clock = Clock()
    generate(model, tokens, clock)
    return (tokens - 1) / (clock.times[-1] - clock.times[1])


def aggregate_rate(model: Any, tokens: int, sessions: int) -> float:
    """Tokens per second of all sessions together, from when all decode until the first has ended."""
    clocks = [Clock() for _ in range(sessions)]
    together([lambda clock=clock: generate(model, tokens, clock) for clock in clocks])  # type: ignore[misc]
    begin = max(clock.times[1] for clock in clocks)
    end = min(clock.times[-1] for clock in clocks)
    return sum(begin < at <= end for clock in clocks for at in clock.times) / (end - begin)


def together(works: list[Callable[[], Any]]) -> None:
    """Run each in a thread of its own."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(local: Any, model: Any, tokens: int, sessions: int) -> dict[str, float]:
    """One round of all three, one after the other."""
    return {
        "plain": decode_rate(local, tokens),
        "swarm": decode_rate(model, tokens),
        "many": aggregate_rate(model, tokens * 2, sessions),
    }


def result(rounds: list[dict[str, float]], sessions: int, equal: bool, quantization: str) -> Result:
    """What each rate is relative to plain transformers, and many sessions to one."""
    plain, swarm, many = ([row[name] for row in rounds] for name in ("plain", "swarm", "many"))
    rate, over_plain, over_one = "tokens/s", "× plain", "× one session"
    rows = [
        {"run": "plain transformers, one thread", rate: plain},
        {"run": "swarm, one session", rate: swarm, over_plain: ratios(swarm, plain)},
        {
            "run": f"swarm, {sessions} sessions",
            rate: many,
            over_plain: ratios(many, plain),
            over_one: ratios(many, swarm),
        },
    ]
    return Result(
        name="decode" if quantization == "none" else f"decode-{quantization}",
        title="Decode: two one-thread servers against one process",
        rows=rows,
        goal="one session at least as fast as plain transformers; eight sessions four times as fast as one",
        notes=[
            f"servers' weights: {quantization}; tokens equal plain transformers': {'yes' if equal else 'NO'}",
            f"{len(rounds)} rounds, medians",
        ],
        plot=[rate],
    )
