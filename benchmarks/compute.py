"""One span by itself, without a network: passes in float32, bfloat16, int8 and int4 beside plain transformers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.models import llama_250m
from benchmarks.results import Result, output_options, report

SPAN = "0:8"
PAST = 32
TINY = Path(__file__).parent.parent / "models" / "tiny-llama"
WINDOWS = 12
KINDS = (("float32", "none"), ("bfloat16", "none"), ("float32", "int8"), ("float32", "int4"))


@click.command()
@click.option("--steps", default=15, show_default=True, help="Passes of each kind; medians are reported.")
@output_options
def main(steps: int, as_json: bool, save: bool) -> None:
    """Eight blocks of a 250M-parameter random Llama with one thread; the loss is that of the shipped tiny model."""
    import torch

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = [
        {"blocks": f"plain transformers, {dtype}", **plain(dtype, steps)} for dtype in ("float32", "bfloat16")
    ]
    base = rows[0]
    for dtype, quantization in KINDS:
        name = f"span, {dtype}{f', {quantization}' * (quantization != 'none')}"
        row = {"blocks": name, **spans(dtype, quantization, steps), **losses(dtype, quantization)}
        row["× plain float32, 8 steps"] = base["8 steps, ms"] / row["8 steps, ms"]
        rows.append(row)
    notes = [
        f"a pass over blocks {SPAN}; steps follow {PAST} positions each; plain transformers takes them as a batch",
        f"loss: of models/tiny-llama with all its blocks so, in nats a token, {WINDOWS} windows of each text",
    ]
    title = "A pass over eight blocks in one process"
    plot = ["1 step, ms", "8 steps, ms", "a prompt of 256, ms"]
    report(Result("compute", title, rows, "low precision pays where the processor has it", notes, plot), as_json, save)


def timed(pass_: Callable[[int], Any], steps: int) -> float:
    """The median of passes, in ms; the first is not counted."""
    times = []
    for step in range(steps + 1):
        began = time.perf_counter()
        pass_(step)
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def plain(dtype: str, steps: int) -> dict[str, float]:
    """The library's own model with its first eight blocks, its own cache, a batch of equal lengths."""
    import torch
    from transformers import DynamicCache, LlamaModel

    model: Any = LlamaModel.from_pretrained(llama_250m(), dtype=getattr(torch, dtype), num_hidden_layers=8)
    width, found = model.config.hidden_size, {}
    with torch.inference_mode():
        for batch in (1, 8):
            cache = DynamicCache()
            rows = torch.randn(batch, PAST, width, dtype=model.dtype)
            model(inputs_embeds=rows, past_key_values=cache)
            step = rows[:, :1]
            name = f"{batch} step{'s' * (batch > 1)}, ms"
            found[name] = timed(lambda _, s=step, c=cache: model(inputs_embeds=s, past_key_values=c), steps)
        rows = torch.randn(1, 256, width, dtype=model.dtype)
        found["a prompt of 256, ms"] = timed(lambda _: model(inputs_embeds=rows), max(steps // 5, 2))
    return found


def spans(dtype: str, quantization: str, steps: int) -> dict[str, float]:
    """The same through a span, as a server computes it."""
    import torch

    from swarm.jobs import compute
    from swarm.models.span.load import load_span
    from swarm.types import Segment, Span

    span = Span.parse(SPAN)
    model = load_span(llama_250m(), span, dtype=dtype, quantization=quantization, progress=False)
    found: dict[str, float] = {}

    def hidden(count: int) -> bytes:
        return torch.randn(count, model.hidden_size).to(model.dtype).view(torch.uint8).numpy().tobytes()

    for batch in (1, 8):
        keys = [(b"%d" % batch, row) for row in range(batch)]
        compute(model, span, [Segment(key, 0, PAST) for key in keys], hidden(batch * PAST))

        def step(number: int, keys: list[Any] = keys) -> None:
            compute(model, span, [Segment(key, PAST + number, 1) for key in keys], hidden(len(keys)))

        found[f"{batch} step{'s' * (batch > 1)}, ms"] = timed(step, steps)
    prompt = hidden(256)
    passes = max(steps // 5, 2)
    found["a prompt of 256, ms"] = timed(
        lambda number: compute(model, span, [Segment((b"p", number), 0, 256)], prompt), passes
    )
    return found


def losses(dtype: str, quantization: str) -> dict[str, str]:
    """Of the shipped model, whose blocks compute so, in nats a token, by text."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.codec import predict, read_texts
    from benchmarks.models import use_quantized

    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=getattr(torch, dtype)).eval()
    if quantization != "none":
        use_quantized(model.model.layers, quantization)
    return {f"loss, {name}": f"{predict(model, text[:WINDOWS])[0]:.4f}" for name, text in read_texts().items()}
