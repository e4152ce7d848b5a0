"""Speculation over three distant hops: repetitive and ordinary text, n-grams and a draft model, over plain decode."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.decode import Clock
from benchmarks.results import Result, output_options, ratios, report
from benchmarks.wide import wide_swarm

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm
    from swarm.gateway.generation import Generator

MODEL = Path(__file__).parent.parent / "models" / "tiny-llama"
SPANS = ("0:3", "3:6", "6:8")
PROMPT = "A function definition"
TEXTS: dict[str, dict[str, Any]] = {"repetitive": {"repetition_penalty": 0.5}, "ordinary": {}}
"""A penalty below one makes the model say one sentence again and again."""
NODE_WAYS = {"query node, plain": "none", "query node, n-grams": "ngram"}


@click.command()
@click.option("--rtt-ms", default=100.0, show_default=True, help="Round trip of every link.")
@click.option("--rate-mbit", default=100.0, show_default=True, help="Rate of every link.")
@click.option("--pass-ms", default=20.0, show_default=True, help="Stated duration of a pass at each hop…")
@click.option("--position-ms", default=1.0, show_default=True, help="… and of each position in it.")
@click.option("--tokens", default=64, show_default=True, help="New tokens.")
@click.option("--rounds", default=3, show_default=True)
@output_options
def main(
    rtt_ms: float,
    rate_mbit: float,
    pass_ms: float,
    position_ms: float,
    tokens: int,
    rounds: int,
    as_json: bool,
    save: bool,
) -> None:
    """The trained tiny model, computed for real within passes whose duration is stated, behind delaying lines."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from swarm import DistributedLlama

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    whole = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "n-grams": {"speculation": "ngram"},
        "draft model (the same weights: always right)": {"draft_model": whole},
    }
    compute = ("--pass-ms", str(pass_ms), "--position-ms", str(position_ms))
    rows: list[dict[str, Any]] = []
    with wide_swarm(MODEL, SPANS, rtt_ms, rate_mbit, *compute) as swarm, query_node(swarm, tokenizer) as node:
        model = DistributedLlama.from_pretrained(str(MODEL), swarm=swarm, dtype="float32", progress=False)
        run(model, tokenizer, 4)
        for name, style in TEXTS.items():
            expected = run(whole, tokenizer, tokens, **style)[0]
            times: dict[str, list[float]] = {way: [] for way in (*ways, *NODE_WAYS)}
            equal = True
            for _ in range(rounds):
                for way, options in ways.items():
                    text, milliseconds = run(model, tokenizer, tokens, **style, **options)
                    times[way].append(milliseconds)
                    equal &= text == expected
                for way, speculation in NODE_WAYS.items():
                    text, milliseconds = swarm.loop.run(ask(node, tokens, speculation=speculation, **style))
                    times[way].append(milliseconds)
                    equal &= text == expected[-tokens:]
            for way, each in times.items():
                plain = times["plain" if way in ways else "query node, plain"]
                row = {"text": f"{name}, {way}", "ms per token": each, "× plain decode": ratios(plain, each)}
                rows.append({**row, "text as plain": "yes" if equal else "NO"})
    title = f"Speculation over three hops, {rtt_ms:.0f} ms round trip and {rate_mbit:.0f} Mbit/s each"
    goal = "n-grams: 3 times plain decode on repetitive text, never below 0.95 on ordinary text"
    notes = [
        f"passes take {pass_ms:g} ms and {position_ms:g} ms a position at each hop, stated; models/tiny-llama",
        "repetitive: generated with a repetition penalty of 0.5",
        f"{tokens} new tokens, the time of the first not counted; {rounds} rounds, medians",
    ]
    report(Result("speculative", title, rows, goal, notes, plot=["ms per token"]), as_json, save)


def run(model: Any, tokenizer: Any, tokens: int, **options: Any) -> tuple[list[int], float]:
    """Greedy; the ids, and ms per token after the first."""
    inputs, clock = tokenizer(PROMPT, return_tensors="pt"), Clock()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    greedy = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    output = model.generate(ids, attention_mask=mask, streamer=clock, **greedy, **options)
    return output[0].tolist(), 1000 * (clock.times[-1] - clock.times[1]) / (tokens - 1)


@contextmanager
def query_node(swarm: Swarm, tokenizer: Any) -> Iterator[Generator]:
    """What answers queries, in this process."""
    from swarm.client.view import View
    from swarm.config import ClientConfig, GatewayConfig
    from swarm.gateway.ends_batcher import EndsBatcher
    from swarm.gateway.generation import Generator
    from swarm.gateway.recommended import Recommended
    from swarm.models.ends.ends import Ends
    from swarm.models.ends.load import load_ends
    from swarm.models.loading.cost import describe
    from swarm.models.texts import Texts

    compute = EndsBatcher(Ends(load_ends(MODEL, dtype="float32", progress=False)[0]))
    info = describe(MODEL, dtype="float32").info
    view = View(swarm.directory, info, info.contract("float32", info.hidden_size * 4), ClientConfig())
    recommended = Recommended({}, frozenset())
    yield Generator(swarm.host, view, Texts(tokenizer), compute, recommended, GatewayConfig())
    swarm.loop.run(compute.close())


async def ask(node: Generator, tokens: int, **sampling: Any) -> tuple[list[int], float]:
    """Greedy; the ids of the answer, and ms per token after the first."""
    from swarm.wire import swarm_pb2 as pb

    ids: list[int] = []
    began = 0.0
    asked = pb.Query(id=bytes(16), text=PROMPT, sampling=pb.Sampling(max_tokens=tokens, **sampling))
    async for reply in node.answer(asked):
        began = began if ids else time.perf_counter()
        ids += reply.delta.tokens
    return ids, 1000 * (time.perf_counter() - began) / (tokens - 1)
