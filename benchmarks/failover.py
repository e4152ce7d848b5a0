"""Seconds from the loss of a server in the middle of a generation to the next token."""

from __future__ import annotations

import itertools
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

import click

from benchmarks.models import llama_250m
from benchmarks.results import Result, output_options, ratios, report
from swarm.demo.local_swarm import LocalSwarm

MIDDLE = "6:11"
AT = 8
"""New tokens before the loss."""
TOKENS = 16


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Losses of each kind, after each prompt.")
@click.option("--positions", multiple=True, type=int, default=(64, 512), show_default=True, help="Prompt lengths.")
@click.option("--standby", multiple=True, type=click.IntRange(0, 1), help="Only without (0), only with one (1).")
@output_options
def main(rounds: int, positions: tuple[int, ...], standby: tuple[int, ...], as_json: bool, save: bool) -> None:
    """Three hops of one thread each, a fourth server that can replace the middle one, which is killed or frozen.

    With a standby, the first and the last server compute everything twice: nobody else has their blocks.
    """
    import torch
    from transformers import LlamaForCausalLM

    from swarm import DistributedLlama, connect

    torch.set_num_threads(1)
    path = llama_250m()
    local = LlamaForCausalLM.from_pretrained(path)
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        for name, blocks in {"first": "0:6", "last": "11:16", "middle0": MIDDLE, "middle1": MIDDLE}.items():
            processes.start_server(name, blocks)
        processes.wait_until_online("first", "last", "middle0", "middle1")
        with connect([processes.peer]) as swarm:
            rows = []
            for spare in standby or (0, 1):
                model = DistributedLlama.from_pretrained(
                    path, swarm=swarm, dtype="float32", progress=False, standby=spare
                )
                losses = [Loss(processes, model, kind) for kind in (signal.SIGKILL, signal.SIGSTOP)]
                rows += [row(local, model, loss, length, rounds) for length in positions for loss in losses]
    report(result(rows), as_json, save)


class Loss:
    """Takes the middle server of the route away, and sees to it that there is a spare one the next time."""

    def __init__(self, processes: LocalSwarm, model: Any, kind: signal.Signals) -> None:
        self.processes = processes
        self.model = model
        self.kind = kind
        self.lost = ""

    def strike(self) -> None:
        """Kill or freeze the server that computes the middle blocks now."""
        self.lost = self.processes.name_of(self.model.route.hops[1].peer_id)
        if self.kind is signal.SIGKILL:
            self.processes.kill(self.lost)
        else:
            self.processes.signal(self.lost, self.kind)

    def make_good(self) -> None:
        """A new server in place of a killed one; a frozen one is killed first, lest it be half known."""
        if self.kind is not signal.SIGKILL:
            self.processes.kill(self.lost)
        name = f"middle{len(self.processes.processes)}-{time.monotonic_ns()}"
        self.processes.start_server(name, MIDDLE)
        self.processes.wait_until_online(name)
        time.sleep(2 * self.model.remote_blocks.view.config.view_refresh)


class Watch:
    """A streamer that notes when each token came, and lets something happen after the `at`-th."""

    def __init__(self, at: int, happening: Callable[[], None]) -> None:
        self.at = at
        self.happening = happening
        self.times: list[float] = []
        self.struck = 0.0

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) == self.at + 1:
            self.struck = time.perf_counter()
            self.happening()

    def end(self) -> None:
        """Nothing is left to note."""

    @property
    def until_next(self) -> float:
        """Seconds from the loss to the token after it."""
        return self.times[self.at + 1] - self.struck

    @property
    def ordinary(self) -> float:
        """Median seconds of the tokens before the loss."""
        times = self.times[1 : self.at + 1]
        return statistics.median(after - before for before, after in itertools.pairwise(times))


def generate(model: Any, length: int, streamer: Any = None) -> list[int]:
    """Greedy, after a prompt of `length`."""
    import torch

    inputs = torch.randint(5, 30_000, (1, length), generator=torch.Generator().manual_seed(length))
    options = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), streamer=streamer, **options)
    return [int(token) for token in output[0]]


def row(local: Any, model: Any, loss: Loss, length: int, rounds: int) -> dict[str, Any]:
    """Losses of one kind after a prompt of one length."""
    right = generate(local, length)
    ordinary, lost, equal = [], [], True
    for _ in range(rounds):
        watch = Watch(AT, loss.strike)
        equal &= generate(model, length, watch) == right
        ordinary.append(watch.ordinary)
        lost.append(watch.until_next)
        loss.make_good()
    return {
        "loss": f"{loss.kind.name}, prompt {length}{', standby' * loss.model.remote_blocks.view.config.standby}",
        "token s": ordinary,
        "until the next token s": lost,
        "tokens that it cost": ratios(lost, ordinary),
        "tokens equal": "yes" if equal else "NO",
    }


def result(rows: list[dict[str, Any]]) -> Result:
    """One row for each kind of loss and prompt."""
    return Result(
        name="failover",
        title="Loss of the middle one of three servers in the middle of a generation",
        rows=rows,
        notes=[
            "a killed process is missed at once; a frozen one after some times of what steps took (deadlines.py);",
            "then the positions so far are computed again by the replacement, unless a standby has them; medians",
        ],
        plot=["until the next token s"],
    )
