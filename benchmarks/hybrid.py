"""Blocks that keep a running state: sessions at once, and windows of guesses that are wrong."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import click

from benchmarks.concurrent import measure
from benchmarks.decode import generate
from benchmarks.models import hybrid_120m
from benchmarks.results import Result, output_options, ratios, report
from swarm.speculation.drafts import Draft

CUTS = ("0:6", "6:12")
PROMPT = 512
"""Positions before the guesses: what a replay would compute again."""


class Guesses:
    """Three guesses at a time out of a text, every third of its tokens guessed wrong. A `Drafter`."""

    def __init__(self, text: Sequence[int], vocabulary: int) -> None:
        self._text = [(token + (place % 3 == 0)) % vocabulary for place, token in enumerate(text)]

    def learn(self, text: Sequence[int]) -> None:
        """Nothing."""

    def kind(self, text: Sequence[int]) -> int | None:
        """One for all."""
        return 0

    def draft(self, text: Sequence[int], count: int) -> Draft:
        """What follows."""
        return Draft(tuple(self._text[len(text) : len(text) + min(count, 3)]))


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--tokens", default=32, show_default=True, help="New tokens per generation.")
@click.option("--sessions", "counts", multiple=True, type=int, default=(1, 8), show_default=True)
@output_options
def main(rounds: int, tokens: int, counts: tuple[int, ...], as_json: bool, save: bool) -> None:
    """Decode with a random Qwen3.5 of 120M parameters in float32 over two servers of one thread each."""
    import torch

    from swarm import DistributedModelForCausalLM, connect
    from swarm.demo.local_swarm import LocalSwarm

    torch.set_num_threads(1)
    path = hybrid_120m()
    rates: dict[int, list[float]] = {count: [] for count in counts}
    with LocalSwarm(path) as processes:
        processes.start_bootstrap()
        for blocks in CUTS:
            processes.start_server(blocks, blocks)
            processes.wait_until_online(blocks)
        with connect([processes.peer]) as swarm:
            model = DistributedModelForCausalLM.from_pretrained(path, swarm=swarm, dtype="float32", progress=False)
            generate(model, 8)
            for _, count in itertools.product(range(rounds), counts):
                rates[count].append(measure(model, tokens, count)[0])
            guessed = guesses(model, tokens, rounds)
    rows: list[dict[str, Any]] = [
        {
            "run": f"{n} session{'s' * (n > 1)}",
            "tokens/s": rates[n],
            "× one session": ratios(rates[n], rates[counts[0]]),
        }
        for n in counts
    ]
    goal = "8 sessions at least 3 times one; wrong guesses cost no replay: epochs 1"
    notes = [f"guesses: behind a prompt of {PROMPT} positions, each third of them wrong; {rounds} rounds, medians"]
    title = "Blocks that keep a running state, through two servers"
    report(Result("hybrid", title, [*rows, *guessed], goal, notes, plot=["tokens/s"]), as_json, save)


def guesses(model: Any, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """One session without guesses, and with guesses of which many are wrong: tokens per second, times that the session
    began anew, and whether the text is the same."""
    import torch

    from swarm.models.speculation.decoding import SpeculativeDecoding
    from swarm.speculation.pacer import Pacer

    class Always(Pacer):
        """Three guesses in each window, whatever they cost."""

        def depth(self, ahead: Sequence[int]) -> int:
            return 3

    ids = torch.randint(0, model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": tokens, "return_dict_in_generate": True}
    ways: dict[str, list[float]] = {"plain": [], "every third guess wrong": []}
    texts, epochs = dict[str, list[int]](), dict[str, int]()
    for _, way in itertools.product(range(rounds), ways):
        how: dict[str, Any] = {}
        if way != "plain":
            decoding = SpeculativeDecoding(Guesses(texts["plain"], model.config.vocab_size))
            decoding.pacer = Always(decoding.pacer.drafter)
            how["custom_generate"] = decoding
        with model.remote_blocks.generating(rollback=way != "plain"):
            began = time.perf_counter()
            output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **options, **how)
            ways[way].append(tokens / (time.perf_counter() - began))
        texts[way] = output.sequences[0].tolist()
        (session,) = output.past_key_values.layers[0].session._sessions
        epochs[way] = session._session.statistics().epochs
    equal = "yes" if len(set(map(tuple, texts.values()))) == 1 else "NO"
    return [{"run": way, "tokens/s": each, "epochs": epochs[way], "text as plain": equal} for way, each in ways.items()]
