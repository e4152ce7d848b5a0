"""swarm-status: what a swarm serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from swarm import net
from swarm.cli.command import Command
from swarm.cli.logs import progress_bars, quiet
from swarm.cli.model_options import folders
from swarm.cli.network_options import check_joins, network_options
from swarm.cli.report import as_json, as_text, lacking, missing, served_by
from swarm.cli.values import Seconds
from swarm.config import NetworkConfig
from swarm.errors import InvalidInput, ModelNotFound, NobodyFound
from swarm.net import Network
from swarm.net.base import Directory
from swarm.types import ModelInfo, ServerRecord

POLL = 1.0
"""Seconds between two looks at the directory."""


@click.command(cls=Command)
@click.argument("model", required=False, shell_complete=folders)
@network_options()
@click.option("--wait", is_flag=True, help="Wait until every block of MODEL is served.")
@click.option(
    "--timeout", type=Seconds(), metavar="SECONDS", help="With --wait: give up after so long, with exit code 3."
)
@click.option("--watch", "watching", is_flag=True, help="Show MODEL as it changes, until Ctrl-C.")
@click.option("--json", "json_", is_flag=True, help="One JSON document instead of text.")
def main(
    model: str | None,
    network: NetworkConfig,
    wait: bool,
    timeout: float | None,
    watching: bool,
    json_: bool,
) -> None:
    """Show who serves which blocks of MODEL: a name or a key that the swarm knows, or a folder or name to look up.

    Without MODEL, list the models that the swarm knows.

    Exit codes: 0 shown (with --wait: every block is served), 1 an error that is printed, 2 wrong usage,
    3 --timeout passed and blocks are missing.
    """
    if (wait or watching) and model is None:
        raise click.UsageError("--wait and --watch need a MODEL")
    check_joins(network)
    if watching and model is not None:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(follow(network, model))
        return
    try:
        text, whole = asyncio.run(run(network, model, wait=wait, timeout=timeout, json_=json_))
    except NobodyFound as error:
        if not wait:
            raise
        click.echo(error.message, err=True)
        sys.exit(3)
    click.echo(text)
    sys.exit(3 if wait and not whole else 0)


async def run(
    config: NetworkConfig, model: str | None, *, wait: bool, timeout: float | None, json_: bool
) -> tuple[str, bool]:
    """Join, look, leave. Returns the report, and whether the model is whole.

    Raises what `net.open` raises; with `wait` NobodyFound not before `timeout`.
    """
    # Who reads JSON may read stderr, too, as if it were of it.
    say = (lambda why: None) if json_ or quiet() else (lambda why: click.echo(f"waiting: {why}", err=True))
    began = time.monotonic()
    async with await (until_found(config, timeout, say) if wait else net.open(config)) as network:
        directory = network.directory
        if model is None:
            return listing(await directory.models(), json_), True
        left = None if timeout is None else max(timeout - (time.monotonic() - began), 0.0)
        info, records = await (until_whole(directory, model, left, say) if wait else look(directory, model))
    report = json.dumps(as_json(info, records), indent=2) if json_ else as_text(info, records)
    return report, not missing(records, info.blocks)


async def until_found(
    config: NetworkConfig, timeout: float | None, say: Callable[[str], None] = lambda why: None
) -> Network:
    """Join, looking for somebody on the local network until `timeout` s passed. Raises what `net.open` raises."""
    began, said = time.monotonic(), False
    while True:
        try:
            return await net.open(config)
        except NobodyFound as error:
            if timeout is not None and time.monotonic() - began >= timeout:
                raise
            if not said:
                say(error.message)
                said = True
        await asyncio.sleep(POLL)


async def follow(config: NetworkConfig, model: str) -> None:
    """Join, and show a model until cancelled."""
    from swarm.cli.watch import watch

    async with await net.open(config) as network:
        directory = network.directory
        info, _ = await look(directory, model)
        await watch(info, lambda: asyncio.ensure_future(directory.lookup(info.key, info.blocks)))


def listing(models: Sequence[ModelInfo], json_: bool) -> str:
    """The models of a swarm, one a line."""
    if json_:
        return json.dumps([{"key": m.key, "name": m.name, "blocks": m.blocks} for m in models], indent=2)
    if not models:
        return "this swarm serves no model yet: swarm-serve MODEL begins"
    return "\n".join(f"{m.name}  {m.blocks} blocks  key {m.key}" for m in sorted(models, key=lambda m: m.name))


async def look(directory: Directory, model: str) -> tuple[ModelInfo, list[ServerRecord]]:
    """One look at one model. Raises InvalidInput or ModelNotFound when it is not known here either."""
    info = choose(await directory.models(), model)
    if info is None:
        info = await resolve(model)
    return info, await directory.lookup(info.key, info.blocks)


async def until_whole(
    directory: Directory, model: str, timeout: float | None, say: Callable[[str], None] = lambda why: None
) -> tuple[ModelInfo, list[ServerRecord]]:
    """Look again until every block is served or `timeout` s passed; what was seen last is returned.

    `say` hears what is waited for, whenever it is something else.
    """
    from tqdm import tqdm

    records: list[ServerRecord] = []
    info: ModelInfo | None = None
    said = ""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            info = await _until_known(directory, model, say)
            # None: no bar where nobody watches, in a file or a pipe.
            with tqdm(total=info.blocks, desc="served", unit=" blocks", disable=not progress_bars()) as bar:
                while missing(records := await directory.lookup(info.key, info.blocks), info.blocks):
                    why = str(lacking(records, info.blocks))
                    bar.n = sum(count > 0 for count in served_by(records, info.blocks))
                    bar.refresh()
                    if why != said:
                        say(f"{info.name}: {why}")
                        said = why
                    await asyncio.sleep(POLL)
                bar.update(info.blocks - bar.n)
    return (info, records) if info is not None else await look(directory, model)


async def _until_known(directory: Directory, model: str, say: Callable[[str], None]) -> ModelInfo:
    """Wait for the swarm to know the model, unless it can be looked up here."""
    said = False
    while True:
        known = choose(await directory.models(), model)
        if known is not None:
            return known
        with contextlib.suppress(ModelNotFound):
            return await resolve(model)
        if not said:
            say(f"no server of {model!r} has announced itself, and it is no model of this machine")
            said = True
        await asyncio.sleep(POLL)


def choose(models: Sequence[ModelInfo], wanted: str) -> ModelInfo | None:
    """The model that `wanted` means: a name, a key, or the beginning of a key (8 digits or more).

    Raises InvalidInput when it means several.
    """
    named = [model for model in models if model.name == wanted]
    keyed = [model for model in models if model.key == wanted or (len(wanted) >= 8 and model.key.startswith(wanted))]
    found = {model.key: model for model in named + keyed}
    if len(found) > 1:
        raise InvalidInput(f"{wanted!r} could be any of these: {', '.join(sorted(found))}; pass the key")
    return next(iter(found.values()), None)


async def resolve(model: str) -> ModelInfo:
    """The model's identity from its own files. Raises ModelNotFound, BadCheckpoint, UnsupportedModel."""
    return await asyncio.to_thread(_described, model)


def _described(model: str) -> ModelInfo:
    from swarm.models.loading.cost import describe

    info = describe(model).info
    # A folder goes by its last name, as its servers announce it.
    return replace(info, name=Path(model).resolve().name) if Path(model).is_dir() else info


if __name__ == "__main__":
    main()
