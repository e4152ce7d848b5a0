"""What credit buys at a busy server, and what signing costs: waits with and without credit, tokens per second."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.decode import generate
from benchmarks.results import Result, output_options, ratios, report
from swarm.accounting.weight import HIGHEST

CROWD = 3
"""Peers that always have prompts waiting, ..."""
EACH = 4
"""... so many each."""
GIVEN, NOTHING = "has given", "a stranger"
SIGNED, ANONYMOUS = "receipts are signed", "nothing is signed"


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Interleaved rounds; medians are reported.")
@click.option("--tokens", default=64, show_default=True, help="New tokens per generation.")
@click.option("--positions", default=512, show_default=True, help="Of each prompt.")
@click.option("--model", type=click.Path(exists=True), help="A folder; by default a random Llama of 250M parameters.")
@output_options
def main(rounds: int, tokens: int, positions: int, model: str | None, as_json: bool, save: bool) -> None:
    """One server of one thread: prompts when its queue is full, then single texts with and without receipts."""
    import torch

    from benchmarks.models import llama_250m
    from swarm import DistributedLlama, connect
    from swarm.demo.local_swarm import LocalSwarm

    torch.set_num_threads(1)
    path = str(llama_250m() if model is None else model)
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(LocalSwarm(path))
        folders = {name: processes.folder / f"account-{name}" for name in ("server", GIVEN)}
        asyncio.run(owe(folders["server"], folders[GIVEN]))
        processes.start_bootstrap()
        blocks = f"0:{blocks_of(path)}"
        processes.start_server("server", blocks, "--account", str(folders["server"]))
        processes.wait_until_online("server")

        def loaded(name: str) -> Any:
            account = str(folders[name]) if name in folders else None
            # Where to listen tells connections apart: each is a peer of its own.
            where = f"/ip4/127.0.0.{2 + len(models)}/tcp/0"
            swarm = stack.enter_context(connect([processes.peer], account=account, host_maddrs=where))
            return DistributedLlama.from_pretrained(path, swarm=swarm, dtype="float32", progress=False)

        models: dict[str, Any] = {}
        for name in (GIVEN, NOTHING, *(f"crowd {number}" for number in range(CROWD))):
            models[name] = loaded(name)
            generate(models[name], 4)
        rates = [{SIGNED: rate(models[GIVEN], tokens), ANONYMOUS: rate(models[NOTHING], tokens)} for _ in range(rounds)]
        waits = busy(models, positions, rounds)
    alone = asyncio.run(engine_alone(path, positions, rounds))
    report(result(rates, waits, alone, positions), as_json, save)


def blocks_of(path: str) -> int:
    """How many blocks a model has."""
    from swarm.models.loading.cost import describe

    return describe(path).info.blocks


async def owe(server: Path, friend: Path) -> None:
    """The server's account has had very much of the friend's."""
    from swarm.accounting.account import Account
    from swarm.accounting.entries import check_entry

    one, other = Account.open(server), Account.open(friend)
    taken = await one.take(other.key, 10**15, bytes(16))
    await one.answered(taken, check_entry(await other.answer(check_entry(taken))))
    one.close()
    other.close()


def rate(model: Any, tokens: int) -> float:
    """Tokens per second of a text, from its prompt to its return."""
    began = time.perf_counter()
    generate(model, tokens)
    return tokens / (time.perf_counter() - began)


def busy(models: dict[str, Any], positions: int, rounds: int) -> list[dict[str, float]]:
    """Seconds to the first token of a prompt, of one that comes with credit and one without, while others always have
    some waiting. Also how long those of the crowd take."""
    over, crowd = threading.Event(), list[float]()

    def press(model: Any) -> None:
        while not over.is_set():
            crowd.append(first_token(model, positions))

    pressing = [
        threading.Thread(target=press, args=(model,))
        for name, model in models.items()
        for _ in range(EACH)
        if name.startswith("crowd")
    ]
    for thread in pressing:
        thread.start()
    time.sleep(2.0)
    waits = []
    for _ in range(rounds):
        row: dict[str, float] = {}

        def ask(name: str, row: dict[str, float] = row) -> None:
            row[name] = first_token(models[name], positions)

        asking = [threading.Thread(target=ask, args=(name,)) for name in (GIVEN, NOTHING)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        waits.append(row)
    over.set()
    for thread in pressing:
        thread.join()
    assert crowd, "a stranger of the crowd has finished nothing"
    return waits


async def engine_alone(path: str, positions: int, rounds: int) -> list[dict[str, float]]:
    """The same without a network: seconds until the server's engine has computed a prompt, of many that wait."""
    from swarm.models.span.load import load_span
    from swarm.server.thread_engine import ThreadEngine
    from swarm.types import Span

    model = load_span(path, Span(0, blocks_of(path)), dtype="float32", progress=False)
    engine, over = ThreadEngine(model), asyncio.Event()
    numbers = itertools.count()

    async def compute(client: str, weight: float = 1.0) -> float:
        return await computed(engine, model.row_bytes, positions, next(numbers), client, weight)

    async def press(client: str) -> None:
        while not over.is_set():
            await compute(client)

    crowd = [asyncio.ensure_future(press(f"crowd {number}")) for number in range(CROWD) for _ in range(EACH)]
    waits = []
    for _ in range(rounds):
        given, nothing = await asyncio.gather(compute(GIVEN, HIGHEST), compute(NOTHING))
        waits.append({GIVEN: given, NOTHING: nothing})
    over.set()
    await asyncio.gather(*crowd)
    await engine.close()
    return waits


async def computed(engine: Any, row_bytes: int, positions: int, number: int, client: str, weight: float) -> float:
    """Seconds until a prompt has gone through the engine."""
    from swarm.jobs import Change, Forward, Kind
    from swarm.server.work import Work
    from swarm.types import Segment

    key, answer = (number.to_bytes(16, "big"), 0), asyncio.get_running_loop().create_future()
    rows = memoryview(bytes(positions * row_bytes))
    job = Forward(engine.runner.span, [Segment(key, 0, positions)], rows)
    began = time.perf_counter()
    engine.submit(Work(key[0], job, answer.set_result, answer.set_exception, client=client, weight=weight))
    await answer
    seconds = time.perf_counter() - began
    engine.change(key[0], [Change(Kind.FREE, key)])
    return seconds


def first_token(model: Any, positions: int) -> float:
    """Seconds until a prompt of random tokens, that nobody has asked before, has its answer's first token."""
    import torch

    ids = torch.randint(3, model.config.vocab_size, (1, positions))
    began = time.perf_counter()
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
    return time.perf_counter() - began


def result(
    rates: list[dict[str, float]], waits: list[dict[str, float]], alone: list[dict[str, float]], positions: int
) -> Result:
    """Rates and waits, each relative to those of who signs nothing and has given nothing."""
    bare = [row[ANONYMOUS] for row in rates]
    rows: list[dict[str, Any]] = []
    for name in (ANONYMOUS, SIGNED):
        values = [row[name] for row in rates]
        rows.append({"run": name, "tokens/s": values, "s to first token": "", "×": ratios(values, bare)})
    for where, found in (("", waits), ("engine alone: ", alone)):
        for name in (NOTHING, GIVEN):
            values, stranger = [row[name] for row in found], [row[NOTHING] for row in found]
            rows.append(
                {"run": where + name, "tokens/s": "", "s to first token": values, "×": ratios(values, stranger)}
            )
    return Result(
        name="credit",
        title="Credit: receipts on a quiet server, and prompts on a busy one",
        rows=rows,
        goal="who has given waits at most half as long as a stranger; signing costs at most 3 %",
        notes=[
            f"{len(rates)} rounds, medians; all share this machine",
            f"the busy server always has {CROWD} x {EACH} other prompts of {positions} positions",
        ],
        plot=[],
    )


if __name__ == "__main__":
    main()
