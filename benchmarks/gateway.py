"""Many streams at once through one gateway, over HTTP: tokens per second of all together, and the first token."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchmarks.results import Result, output_options, ratios, report

if TYPE_CHECKING:
    import openai

MODEL = Path(__file__).parent.parent / "models" / "tiny-llama"
CUTS = ("0:4", "4:8")


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--tokens", default=96, show_default=True, help="New tokens of each answer.")
@click.option("--streams", "counts", multiple=True, type=click.IntRange(min=1), default=(8, 32), show_default=True)
@output_options
def main(rounds: int, tokens: int, counts: tuple[int, ...], as_json: bool, save: bool) -> None:
    """OpenAI's client streams answers of the tiny model from one gateway and two servers of one thread each."""
    with gateway() as url:
        runs = asyncio.run(measure(url, rounds, tokens, sorted({1, *counts})))
    report(result(runs, tokens), as_json, save)


@contextmanager
def gateway() -> Iterator[str]:
    """Where a gateway serves OpenAI's API, with the swarm behind it."""
    from swarm.demo.local_swarm import LocalSwarm

    with LocalSwarm(MODEL) as processes:
        processes.start_bootstrap()
        for blocks in CUTS:
            processes.start_server(blocks, blocks)
        processes.wait_until_online(*CUTS)
        processes.wait_until_served()
        processes.start_gateway("gateway")
        processes.wait_until_ready("gateway")
        yield processes.url("gateway")


@dataclass(slots=True)
class Stream:
    """One answer: its text, tokens and what it failed of; `times` of its chunks with text, in s since it was asked."""

    prompt: str
    text: str = ""
    tokens: int = 0
    failure: str = ""
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Run:
    """So many streams, begun together; `seconds` until the last one had ended."""

    streams: Sequence[Stream]
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second of all."""
        return sum(stream.tokens for stream in self.streams) / self.seconds

    @property
    def first(self) -> float:
        """Median time to the first token, in s; that of a run in which none came is the whole of it."""
        return statistics.median([stream.times[0] for stream in self.streams if stream.times] or [self.seconds])


async def measure(url: str, rounds: int, tokens: int, counts: Sequence[int]) -> dict[int, list[Run]]:
    """The runs with each number of streams."""
    import openai

    runs: dict[int, list[Run]] = {count: [] for count in counts}
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        await together(client, max(counts), 2)
        for turn, count in itertools.product(range(rounds), counts):
            runs[count].append(await together(client, count, tokens, turn))
    return runs


async def together(client: openai.AsyncOpenAI, count: int, tokens: int, turn: int = 0) -> Run:
    """Ask for `count` answers at once. Each has a prompt of its own; in another `turn` others are the first ones."""
    streams = [Stream(f"{turn + place} function definitions") for place in range(count)]
    began = time.perf_counter()
    await asyncio.gather(*(ask(client, stream, tokens) for stream in streams))
    return Run(streams, time.perf_counter() - began)


async def ask(client: openai.AsyncOpenAI, stream: Stream, tokens: int) -> None:
    """Read one answer as it comes."""
    import httpx
    import openai

    began = time.perf_counter()
    asked: dict[str, Any] = {"prompt": stream.prompt, "max_tokens": tokens, "temperature": 0}
    try:
        chunks = await client.completions.create(
            model="tiny-llama",
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
            **asked,
        )
        async for chunk in chunks:
            if chunk.choices and chunk.choices[0].text:
                stream.times.append(time.perf_counter() - began)
                stream.text += chunk.choices[0].text
            stream.tokens = chunk.usage.completion_tokens if chunk.usage else stream.tokens
    except (openai.APIError, httpx.HTTPError) as error:
        stream.failure = str(error) or type(error).__name__
    if not stream.failure and stream.tokens != tokens:
        stream.failure = f"{stream.tokens} tokens came of {tokens}"


def result(runs: dict[int, list[Run]], tokens: int) -> Result:
    """One row for each number of streams."""
    one = runs[1]
    alone = {stream.prompt: stream.text for run in one for stream in run.streams}
    failures = {stream.failure for run in itertools.chain(*runs.values()) for stream in run.streams} - {""}
    return Result(
        name="gateway",
        title="Answers streamed over HTTP by one gateway, so many at once",
        rows=[row(count, runs[count], one, alone) for count in runs],
        goal="none fails, also of 32",
        notes=[
            f"{tokens} tokens each; tokens/s from the first request to the end of the last answer; medians of rounds",
            "as if alone: greedy texts are those that the same prompts have alone, where they were asked alone too",
            "two servers, gateway and client share this machine; ratios are those within a round",
            *sorted(failures),
        ],
        plot=["tokens/s", "first token s"],
    )


def row(count: int, runs: Sequence[Run], one: Sequence[Run], alone: dict[str, str]) -> dict[str, Any]:
    """What is shown of one number of streams. `alone`: by prompt, the texts of those that had nobody beside them."""
    streams = [stream for run in runs for stream in run.streams]
    first = [stream.times[0] for stream in streams if stream.times]
    rates = [run.rate for run in runs]
    return {
        "streams": f"{count} stream{'s' * (count > 1)}",
        "tokens/s": rates,
        "× one": ratios(rates, [run.rate for run in one]),
        "first token s": [run.first for run in runs],
        "p99 s": percentile(first, 99),
        "p99 / median": percentile(first, 99) / statistics.median(first) if first else float("nan"),
        "failed": float(sum(bool(stream.failure) for stream in streams)),
        "as if alone": "yes" if all(alone.get(s.prompt, s.text) == s.text for s in streams) else "NO",
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """Of few values the largest, rather than one beyond them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] if ordered else float("nan")
