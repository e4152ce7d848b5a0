"""What hidden states lose as int8, on the shipped model: loss and greedy tokens against raw; and size and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from benchmarks.results import Cell, Result, output_options, report

MODEL = Path(__file__).parent.parent / "models" / "tiny-llama"
CONTEXT = 256
TOGETHER = 256
"""Positions in a frame of a prompt."""
WIDTHS = (192, 4096, 8192)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds of the times; medians are reported.")
@click.option("--windows", default=50, show_default=True, help="Windows of 256 tokens of each text, at most.")
@output_options
def main(rounds: int, windows: int, as_json: bool, save: bool) -> None:
    """Loss and greedy tokens of the shipped model with int8 at cuts between its blocks; bytes and microseconds."""
    import torch

    torch.set_num_threads(1)
    report(quality(windows), as_json, save)
    report(cost(rounds), as_json, save)


# ---- what is lost ---------------------------------------------------------------------------------------------


def quality(windows: int) -> Result:
    """The shipped model in float32, its hidden states through int8 at more and more places."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(MODEL, dtype="float32").eval()
    blocks = model.config.num_hidden_layers
    texts = {name: tokens[:windows] for name, tokens in read_texts().items()}
    places = {
        "raw": [],
        "int8, 2 cuts": cuts(blocks, 2),
        "int8, 4 cuts": cuts(blocks, 4),
        "int8, 4 cuts and both links to the client": [0, *cuts(blocks, 4), blocks],
    }
    whole = {name: predict(model, tokens) for name, tokens in texts.items()}
    rows: list[dict[str, Cell]] = []
    for run, where in places.items():
        row: dict[str, Cell] = {"hidden states": run}
        with encoded(model, where):
            for name, tokens in texts.items():
                loss, greedy = predict(model, tokens)
                row[f"loss, {name}"] = loss
                row[f"loss − raw, {name}"] = loss - whole[name][0]
                row[f"% greedy as raw, {name}"] = 100 * float((greedy == whole[name][1]).float().mean())
        rows.append(row)
    sizes = ", ".join(f"{tokens.shape[0] * CONTEXT:,} of {name}" for name, tokens in texts.items())
    return Result(
        name="codec",
        title="What int8 loses: the shipped model in float32, cut between its 8 blocks",
        rows=rows,
        notes=[
            f"nats per token, windows of {CONTEXT}; tokens: {sizes}; greedy tokens after the text's own, one by one"
        ],
        plot=[label for label in rows[0] if label.startswith("%")],
    )


def cuts(blocks: int, count: int) -> list[int]:
    """The blocks before which to cut into `count` + 1 spans of about one size."""
    return [round(blocks * i / (count + 1)) for i in range(1, count + 1)]


def read_texts() -> dict[str, Any]:
    """Windows `[n, CONTEXT + 1]` of text that the model was kept from, and of text that it was trained on last."""
    from transformers import AutoTokenizer

    from scripts.train_tiny_llama import encode, read_corpus

    tokenizer, corpus = AutoTokenizer.from_pretrained(MODEL), read_corpus()
    texts = {"held-out": corpus.held_out, "trained on": corpus.reference}
    return {name: encode(tokenizer, text).unfold(0, CONTEXT + 1, CONTEXT) for name, text in texts.items()}


@contextmanager
def encoded(model: Any, where: Sequence[int]) -> Iterator[None]:
    """Let hidden states go through int8 before these blocks; the number of blocks means behind the last."""
    import torch

    from swarm.wire.codecs import codec_of

    codec = codec_of("int8", "float32", model.config.hidden_size)

    def travel(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        arrived = codec.decode(codec.encode(hidden.numpy().tobytes()))
        return torch.frombuffer(bytearray(arrived), dtype=hidden.dtype).view(hidden.shape), *inputs[1:]

    stations = [*model.model.layers, model.model.norm]
    hooks = [stations[place].register_forward_pre_hook(travel) for place in where]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def predict(model: Any, windows: Any) -> tuple[float, Any]:
    """Mean loss in nats per token, and the most likely token at every position."""
    import torch
    from torch.nn.functional import cross_entropy

    losses, greedy = [], []
    with torch.inference_mode():
        for batch in windows.split(8):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
            losses.append(cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"))
            greedy.append(logits.argmax(-1).flatten())
    return float(torch.cat(losses).mean()), torch.cat(greedy)


# ---- what it costs --------------------------------------------------------------------------------------------


def cost(rounds: int) -> Result:
    """Bytes and microseconds of one position, in a prompt and alone."""
    from swarm.wire.codecs import codec_of

    kinds = [(dtype, width, name) for dtype in ("float32", "bfloat16") for width in WIDTHS for name in ("raw", "int8")]
    codecs = {kind: codec_of(kind[2], kind[0], kind[1]) for kind in kinds}
    prompts = {kind: hidden_states(kind[0], kind[1], TOGETHER) for kind in kinds}
    times: dict[Any, dict[str, list[float]]] = {kind: {} for kind in kinds}
    for _ in range(rounds):
        for kind, codec in codecs.items():
            for label, count in ((f"{TOGETHER} at once", TOGETHER), ("alone", 1)):
                rows = memoryview(prompts[kind])[: count * codec.raw_bytes]
                sent = codec.encode(rows)
                encode, decode = (
                    micros(lambda codec=codec, rows=rows: codec.encode(rows), count),  # type: ignore[misc]
                    micros(lambda codec=codec, sent=sent: codec.decode(memoryview(sent)), count),  # type: ignore[misc]
                )
                times[kind].setdefault(f"encode µs, {label}", []).append(encode)
                times[kind].setdefault(f"decode µs, {label}", []).append(decode)
    rows = [
        {
            "codec": f"{name}, {width} × {dtype}",
            "bytes": codecs[dtype, width, name].row_bytes,
            "× raw": codecs[dtype, width, name].row_bytes / codecs[dtype, width, name].raw_bytes,
            **times[dtype, width, name],
        }
        for dtype, width, name in kinds
    ]
    return Result(
        name="codec-cost",
        title="What int8 costs: bytes and microseconds of one position",
        rows=rows,
        notes=[f"{rounds} interleaved rounds, medians; gaussian values with a few far out; raw copies"],
    )


def hidden_states(dtype: str, width: int, count: int) -> bytes:
    """Gaussian positions with a few values far out, as bytes."""
    import torch

    values = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    values[:, :: max(width // 5, 1)] *= 40
    return values.to(getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()


def micros(work: Callable[[], Any], count: int, seconds: float = 0.02) -> float:
    """Microseconds per position of a work on `count`."""
    runs, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        work()
        runs += 1
    return passed / runs / count * 1e6
