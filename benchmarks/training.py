"""A LoRA step through servers of one thread each, over local peft with one thread; and who generates beside it."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.decode import Clock, generate, together
from benchmarks.results import Result, output_options, ratios, report

CUTS = {"one": "0:16", "two a": "0:8", "two b": "8:16"}
BESIDE = 4
"""Sessions that generate."""


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--batch", default=8, show_default=True, help="Texts in a step.")
@click.option("--length", default=256, show_default=True, help="Positions of each.")
@click.option("--tokens", default=48, show_default=True, help="New tokens of each session that generates.")
@output_options
def main(rounds: int, batch: int, length: int, tokens: int, as_json: bool, save: bool) -> None:
    """Rank 8 beside q and v of a 250M-parameter random Llama in float32, by peft, forwards, backwards, and AdamW."""
    import torch
    from transformers import LlamaForCausalLM

    from benchmarks.models import llama_250m

    torch.set_num_threads(1)
    path = llama_250m()
    ids = torch.randint(5, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
    local, rows = Trained(LlamaForCausalLM.from_pretrained(path)), list[dict[str, float]]()
    with swarm(path, "one") as (one, alone), swarm(path, "two a", "two b") as (two, both):
        far, near = Trained(two), Trained(one)
        plain = two_of(path, two)
        for model in (local, near, far):
            model.step(ids)  # the first one makes what later ones find
        for _ in range(rounds):
            row = {"local": local.step(ids)}
            for servers in (alone, both):
                servers.seconds()
            for name, model, servers in (("one", near, alone), ("two", far, both)):
                row[name] = model.step(ids)
                row[f"{name} cpu"] = local.seconds / (model.seconds + servers.seconds())
            row["alone"] = latency(plain, tokens)
            with far.going_on(ids):
                row["beside"] = latency(plain, tokens)
            rows.append(row)
    report(result(rows, batch * length, far.losses[0] - local.losses[0]), as_json, save)


@contextmanager
def swarm(path: Any, *names: str) -> Iterator[Any]:
    """A model over servers of these blocks, and their processors' time."""
    from swarm import DistributedLlama, connect
    from swarm.demo.local_swarm import LocalSwarm

    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        for name in names:
            processes.start_server(name.replace(" ", "-"), CUTS[name])
        processes.wait_until_online(*(name.replace(" ", "-") for name in names))
        with connect([processes.peer]) as joined:
            ids = [processes.processes[name.replace(" ", "-")].pid for name in names]
            yield DistributedLlama.from_pretrained(path, swarm=joined, dtype="float32"), Busy(ids)


class Busy:
    """How long processes have computed."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = ids
        self._before = self._all()

    def seconds(self) -> float:
        """Since this was asked last, of all together."""
        before, self._before = self._before, self._all()
        return self._before - before

    def _all(self) -> float:
        return sum(self._ticks(each) for each in self._ids) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def _ticks(process: int) -> int:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


def two_of(path: Any, model: Any) -> Any:
    """Another model over the same servers, without adapters."""
    from swarm import DistributedLlama

    return DistributedLlama.from_pretrained(path, swarm=model.remote_blocks.swarm, dtype="float32")


class Trained:
    """A model with LoRA, and its optimizer."""

    def __init__(self, model: Any) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        self.model = get_peft_model(model, config)
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learning, lr=1e-4)
        self.losses: list[float] = []
        self.seconds = 0.0
        """Of this process's processors, in the last step."""

    def step(self, ids: Any) -> float:
        """Tokens per second of one."""
        began, busy = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.seconds = time.process_time() - busy
        return float(ids.numel() / (time.perf_counter() - began))

    @contextmanager
    def going_on(self, ids: Any) -> Iterator[None]:
        """Steps one after the other meanwhile."""
        over = threading.Event()

        def train() -> None:
            while not over.is_set():
                self.step(ids)

        thread = threading.Thread(target=train)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def latency(model: Any, tokens: int) -> float:
    """The 99th percentile of the ms between two tokens of sessions that generate together."""
    clocks = [Clock() for _ in range(BESIDE)]
    together([lambda clock=clock: generate(model, tokens, clock) for clock in clocks])  # type: ignore[misc]
    gaps = [1000 * (b - a) for clock in clocks for a, b in zip(clock.times[1:], clock.times[2:], strict=False)]
    return statistics.quantiles(gaps, n=100)[98]


def result(rounds: list[dict[str, float]], positions: int, apart: float) -> Result:
    """What each rate is relative to local peft, and waiting beside training to waiting alone."""
    columns = {name: [row[name] for row in rounds] for name in rounds[0]}
    rate, over_local, wait, over_alone = "tokens/s", "× local peft", "decode p99, ms", "× alone"
    work = "local peft's processor time ÷ that of all processes"
    local = columns["local"]
    return Result(
        name="training",
        title=f"A LoRA step of {positions} positions, 250M-parameter random Llama, float32",
        rows=[
            {"run": "local peft, one thread", rate: local},
            {
                "run": "one server",
                rate: columns["one"],
                over_local: ratios(columns["one"], local),
                work: columns["one cpu"],
            },
            {
                "run": "two servers",
                rate: columns["two"],
                over_local: ratios(columns["two"], local),
                work: columns["two cpu"],
            },
            {"run": f"{BESIDE} sessions generate alone", wait: columns["alone"]},
            {
                "run": f"{BESIDE} sessions beside training",
                wait: columns["beside"],
                over_alone: ratios(columns["beside"], columns["alone"]),
            },
        ],
        goal="two servers at least 1.3 × local peft, one at least 0.8; p99 at most 3 × alone",
        notes=[f"{len(rounds)} rounds; the first loss differs by {apart:.1e} from local peft's"],
    )
