"""From one process to the largest model that fits here: the same question in every way, with its times."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.models import random_llama
from benchmarks.results import Result, output_options, report
from swarm.demo.local_swarm import LocalSwarm

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm

LARGEST = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
"""Llama 3.1 8B."""
QUESTION = "What is gravity?"


@click.command()
@click.option("--tokens", default=48, show_default=True, help="New tokens at most.")
@click.option("--largest/--no-largest", default=True, help="Also 8 billion random parameters: 16 GB on disk.")
@output_options
def main(tokens: int, largest: bool, as_json: bool, save: bool) -> None:
    """SmolLM2-135M-Instruct in float32, one thread a process; then Llama 3.1 8B's shape in int4 on two servers."""
    import torch
    from transformers import AutoTokenizer

    from swarm.demo.smollm2 import smollm2

    torch.set_num_threads(1)
    path = smollm2(progress=True)
    asked = chat(AutoTokenizer.from_pretrained(path))
    rows = list(small(path, asked, tokens))
    if largest:
        rows.append(large(tokens))
    notes = ["first: seconds until the first token of the answer; tokens/s: after it; load: until it can be asked"]
    report(Result("runtimes", "Ways to run a model", rows, "", notes, plot=["tokens/s"]), as_json, save)


def chat(tokenizer: Any) -> dict[str, Any]:
    """The question as the model's template has it."""
    messages = [{"role": "user", "content": QUESTION}]
    return dict(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    )


def small(path: Path, asked: dict[str, Any], tokens: int) -> Iterator[dict[str, Any]]:
    """A row for each way; the first says which tokens are right."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def plain(**options: Any) -> Callable[[], Any]:
        return lambda: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)

    row, right = timed("plain transformers", plain(), asked, tokens)
    yield row
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        half = {"device_map": "auto", "max_memory": {"cpu": size // 2}, "offload_folder": folder}
        row, ids = timed("accelerate, half of the weights on disk", plain(**half), asked, tokens)
    yield row | equal(ids, right)
    for cuts in (["0:30"], ["0:10", "10:20", "20:30"]):
        with served(path, cuts) as (swarm, _):
            row, ids = timed(f"swarm, {len(cuts)} server{'s' * (len(cuts) > 1)}", client(path, swarm), asked, tokens)
            yield row | equal(ids, right)
    tokenizer = AutoTokenizer.from_pretrained(path)
    said = tokenizer.decode(right, skip_special_tokens=True)
    yield queried(path, said, tokens)


def equal(ids: Sequence[int], right: Sequence[int]) -> dict[str, str]:
    """Whether the text is the same."""
    return {"same text": "yes" if list(ids) == list(right) else "NO"}


def client(path: Path, swarm: Swarm, **options: Any) -> Callable[[], Any]:
    """How a client of these servers is made."""
    from swarm import DistributedLlama

    return lambda: DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False, **options)


@contextmanager
def served(path: Path, cuts: Sequence[str], *options: str, threads: int = 1) -> Iterator[tuple[Swarm, float]]:
    """A swarm of these spans, and the seconds until it served."""
    from swarm import connect

    with LocalSwarm(path, threads=threads, patience=600) as processes:
        processes.start_bootstrap()
        began = time.perf_counter()
        for blocks in cuts:
            processes.start_server(blocks, blocks, *options)
        processes.wait_until_online(*cuts)
        took = time.perf_counter() - began
        with connect([processes.peer]) as swarm:
            yield swarm, took


class Times:
    """A streamer that notes when each token came; the first that is put is the prompt."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        self.seconds.append(time.perf_counter() - self.began)

    def end(self) -> None:
        """Nothing is left to note."""


def timed(run: str, make: Callable[[], Any], asked: dict[str, Any], tokens: int) -> tuple[dict[str, Any], list[int]]:
    """A row, and the tokens of the answer."""
    began = time.perf_counter()
    model = make()
    load = time.perf_counter() - began
    times = Times()
    output = model.generate(**asked, max_new_tokens=tokens, do_sample=False, streamer=times, pad_token_id=0)
    first, last = times.seconds[1], times.seconds[-1]
    ids = output[0, asked["input_ids"].shape[1] :].tolist()
    rate = (len(ids) - 1) / (last - first)
    return {"run": run, "load, s": load, "first, s": first, "tokens/s": rate}, ids


def queried(path: Path, said: str, tokens: int) -> dict[str, Any]:
    """Asked by one that holds nothing, through a query node of three servers."""
    from swarm import connect

    cuts = ["0:10", "10:20", "20:30"]
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        for blocks in cuts:
            processes.start_server(blocks, blocks)
        processes.wait_until_online(*cuts)
        processes.start_gateway("node")
        processes.wait_until_ready("node")
        began = time.perf_counter()
        with connect([processes.peer]) as swarm:
            load, begun, pieces, times = time.perf_counter() - began, time.perf_counter(), list[str](), list[float]()
            messages = [{"role": "user", "content": QUESTION}]
            for text in swarm.ask(path.name, messages, max_tokens=tokens, temperature=0.0):
                pieces.append(text)
                times.append(time.perf_counter() - begun)
    same = "yes" if "".join(pieces).strip() == said.strip() else "NO"
    rate = (tokens - 1) / max(times[-1] - times[0], 1e-9)
    run = "swarm, a query node of three servers, asked from a process that holds nothing"
    return {"run": run, "load, s": load, "first, s": times[0], "tokens/s": rate, "same text": same}


def large(tokens: int) -> dict[str, Any]:
    """Two servers of one thread; the client's head in int4, too."""
    import torch

    path = random_llama("llama-8b", LARGEST)
    asked = {"input_ids": torch.arange(5, 37).unsqueeze(0), "attention_mask": torch.ones(1, 32, dtype=torch.long)}
    int4 = {"quantization": "int4", "head": "int4"}
    with served(path, ["0:16", "16:32"], "--quantization", "int4") as (swarm, load):
        row, _ = timed(
            "swarm, 8.0 billion random parameters, int4, 2 servers", client(path, swarm, **int4), asked, tokens
        )
    return row | {"load, s": load + row["load, s"]}
