"""swarm-gateway: answer queries for a model."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from swarm._version import __version__
from swarm.cli.common import identity_option, network_config, network_options, on_signals, quiet, verbosity_options
from swarm.cli.identity import identity
from swarm.cli.network import daemon_death, joined
from swarm.config import ClientConfig, GatewayConfig, NetworkConfig
from swarm.errors import InvalidInput
from swarm.net.known import HOW_TO_BEGIN

if TYPE_CHECKING:
    from swarm.gateway.generation import Generator
    from swarm.net.base import Directory, Host

DTYPES = ("auto", "float32", "bfloat16", "float16")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model")
@network_options
@identity_option
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", help="That of the servers; auto: the checkpoint's.")
@click.option("--revision", help="Branch, tag or commit of the model, the same as the servers'.")
@click.option(
    "--token",
    envvar="HF_TOKEN",
    help="Access token of the Hugging Face hub; else HF_TOKEN, else the one saved by its login.",
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Compute threads for embeddings and head.")
@click.option("--public-name", default="", help="A name to show beside this query node.")
@click.option(
    "--capacity",
    type=click.IntRange(min=1),
    default=GatewayConfig().capacity,
    show_default=True,
    help="Queries at a time; one more is told to come again.",
)
@click.option(
    "--max-wait",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long a query waits for blocks that nobody serves; by default for ever.",
)
@verbosity_options
def main(
    model: str,
    initial_peers: tuple[str, ...],
    host_maddrs: tuple[str, ...],
    announce_maddrs: tuple[str, ...],
    identity_path: str | None,
    dtype: str,
    revision: str | None,
    token: str | None,
    threads: int | None,
    public_name: str,
    capacity: int,
    max_wait: float | None,
) -> None:
    """Answer queries for MODEL, a name on the Hugging Face hub or a folder, whose blocks others serve.

    A query node holds tokenizer, embeddings and head, and can read the queries that it answers. Peers find it in the
    directory. When it dies, those who asked go on with another.

    Exit codes: 0 stopped by a signal, 1 an error that is printed, 2 wrong usage, 128 + n by a second signal.
    """
    network = network_config(initial_peers, host_maddrs, announce_maddrs)
    if not network.initial_peers:
        raise InvalidInput(HOW_TO_BEGIN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wishes = Wishes(model, dtype, revision, token, threads, public_name, GatewayConfig(capacity=capacity), max_wait)
    with identity(identity_path, "gateway") as path:
        if path is None:
            click.echo("another gateway of this user is running: this one has a temporary identity")
        asyncio.run(run(replace(network, identity_path=path), wishes))


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to answer for, and how."""

    model: str
    dtype: str
    revision: str | None
    token: str | None
    threads: int | None
    name: str
    config: GatewayConfig
    max_wait: float | None


async def run(network: NetworkConfig, wishes: Wishes) -> None:
    """Be a query node until a signal comes. Raises SwarmError."""
    leaving = asyncio.Event()
    on_signals(leaving.set)
    ends = await asyncio.to_thread(load, wishes)
    async with joined(network) as (host, directory), answering(host, directory, ends, wishes) as generator:
        from swarm.gateway.node import Announcer, QueryNode, describe

        node = QueryNode(generator, wishes.config)
        await node.serve(host)
        dtype = str(ends.ends.dtype).removeprefix("torch.")
        record = lambda: describe(generator, wishes.name, host.addresses, (), dtype, __version__)  # noqa: E731
        announcing = asyncio.create_task(Announcer(directory, network, record).run(), name="announce")
        click.echo(f"query node for {generator.model.name} is ready; Ctrl-C leaves")
        try:
            await until(leaving, daemon_death(host))
        finally:
            announcing.cancel()
            await asyncio.gather(announcing, return_exceptions=True)


async def until(leaving: asyncio.Event, death: Any) -> None:
    """Wait for a signal, or for what ends the process. Raises DaemonFailed."""
    ends = [asyncio.ensure_future(end) for end in (leaving.wait(), death)]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not leaving.is_set():
            await ends[1]
    finally:
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a query node holds of a model."""

    ends: Any
    info: Any
    tokenizer: Any
    generation: Any


def load(wishes: Wishes) -> Loaded:
    """Read tokenizer, embeddings and head. Raises ModelError."""
    import torch

    from swarm.gateway.texts import load_tokenizer
    from swarm.models.checkpoint import open_checkpoint
    from swarm.models.cost import describe
    from swarm.models.ends import Ends
    from swarm.models.shell import load_client_model

    if wishes.threads is not None:
        torch.set_num_threads(wishes.threads)
    checkpoint = open_checkpoint(wishes.model, wishes.token, wishes.revision)
    dtype = None if wishes.dtype == "auto" else wishes.dtype
    info = describe(checkpoint, dtype=dtype).info
    tokenizer = load_tokenizer(wishes.model, wishes.token, wishes.revision)
    model, _ = load_client_model(checkpoint, dtype=dtype, progress=not quiet())
    return Loaded(Ends(model), info, tokenizer, model.generation_config)


@asynccontextmanager
async def answering(host: Host, directory: Directory, loaded: Loaded, wishes: Wishes) -> AsyncIterator[Generator]:
    """What answers, for as long as the block lasts."""
    from swarm.client.view import View
    from swarm.gateway.compute import Compute
    from swarm.gateway.generation import Generator, Recommended
    from swarm.gateway.texts import Texts

    dtype = str(loaded.ends.dtype).removeprefix("torch.")
    view = View(directory, loaded.info, dtype, ClientConfig(max_wait=wishes.max_wait))
    compute = Compute(loaded.ends)
    recommended = Recommended.of(loaded.generation, loaded.tokenizer)
    with contextlib.suppress(asyncio.CancelledError):
        await view.refresh(0.0)
    try:
        yield Generator(host, view, Texts(loaded.tokenizer), compute, recommended, wishes.config)
    finally:
        await compute.close()


if __name__ == "__main__":
    main()
