"""Time to the first token of a long prompt: through a pipeline of two one-thread servers, over one process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click

from benchmarks.pair import two_servers
from benchmarks.results import Result, output_options, ratios, report


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--positions", default=512, show_default=True, help="Length of the prompt.")
@click.option("--chunk", "chunks", multiple=True, type=int, default=(32, 64, 128, 256), show_default=True)
@output_options
def main(rounds: int, positions: int, chunks: tuple[int, ...], as_json: bool, save: bool) -> None:
    """Prefill of a prompt with a 250M-parameter random Llama in float32, whole and cut into chunks."""
    from swarm import DistributedLlama

    with two_servers() as (local, swarm, path):
        whole = {"chunk_positions": positions}
        cuts = {"chosen": {}, "whole": whole, **{str(size): {"chunk_positions": size} for size in chunks}}
        models = {
            name: DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False, **options)
            for name, options in cuts.items()
        }
        draw = prompts(positions)
        prompt = next(draw)
        tokens = [first_token(model, prompt) for model in (local, *models.values())]
        plain: list[float] = []
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(rounds):
            plain.append(timed(local, next(draw)))
            for name, model in models.items():
                seconds[name].append(timed(model, next(draw)))
    report(result(positions, plain, seconds, equal=len(set(tokens)) == 1), as_json, save)


def prompts(positions: int) -> Iterator[Any]:
    """Each another one: what servers keep of a prompt would serve the next time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(5, 30_000, (1, positions), generator=generator)


def first_token(model: Any, prompt: Any) -> int:
    """The prefill of a prompt, and the token that follows."""
    import torch

    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=1, do_sample=False, pad_token_id=0
    )
    return int(output[0, -1])


def timed(model: Any, prompt: Any) -> float:
    """Seconds until the first token is there."""
    began = time.perf_counter()
    first_token(model, prompt)
    return time.perf_counter() - began


def result(positions: int, plain: list[float], seconds: dict[str, list[float]], *, equal: bool) -> Result:
    """How many times as fast as one process each way of cutting is."""
    rows: list[dict[str, Any]] = [{"run": "plain transformers, one thread", "seconds": plain}]
    names = {"chosen": "two servers, chunks as the client chooses", "whole": "two servers, the prompt whole"}
    for name, times in seconds.items():
        run = names.get(name, f"two servers, chunks of {name}")
        rows.append({"run": run, "seconds": times, "× as fast as plain": ratios(plain, times)})
    return Result(
        name="prefill",
        title=f"Prefill of {positions} positions: two one-thread servers against one process",
        rows=rows,
        goal="as the client chooses, at least 1.5 times as fast as one process",
        notes=[f"tokens equal: {'yes' if equal else 'NO'}; {len(plain)} rounds, medians"],
        plot=["seconds"],
    )
