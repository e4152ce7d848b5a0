"""swarm-gateway: answer queries for a model."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarm import net
from swarm._version import __version__
from swarm.cli.command import Command
from swarm.cli.identity import identified
from swarm.cli.logs import progress_bars
from swarm.cli.network import edge_of, until
from swarm.cli.options import (
    EdgeOptions,
    client_options,
    edge_options,
    identity_option,
    model_argument,
    model_options,
    network_options,
    place_of,
    together,
)
from swarm.cli.signals import on_signals
from swarm.config import SPECULATIONS, ClientConfig, EdgeConfig, GatewayConfig, NetworkConfig
from swarm.errors import InvalidInput, NetworkError
from swarm.net.addresses import best_first
from swarm.net.initial_peers import HOW_TO_BEGIN

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from swarm.gateway.generation import Generator
    from swarm.gateway.metrics import QueryMetrics
    from swarm.net.base import Directory, Host
    from swarm.net.edge.host import Edge
    from swarm.wire import swarm_pb2 as pb

PAGE = Path(__file__).parent.parent / "gateway" / "page"
"""The built web page, in packages that have it."""


@click.command(cls=Command)
@model_argument
@network_options()
@identity_option
@client_options
@model_options
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="EndsBatcher threads for embeddings and head.")
@click.option("--public-name", default="", help="A name to show beside this query node.")
@together(
    "config",
    lambda capacity, speculation: GatewayConfig(capacity=capacity, speculation=speculation),
    click.option(
        "--capacity",
        type=click.IntRange(min=1),
        default=GatewayConfig().capacity,
        show_default=True,
        help="Queries at a time; one more is told to come again.",
    ),
    click.option(
        "--speculation",
        type=click.Choice(SPECULATIONS),
        default=GatewayConfig().speculation,
        help="Guesses sent ahead, for queries that do not say; ngram: what followed the same words before. Over far "
        "servers answers come sooner, and a busy swarm has more to compute.",
    ),
)
@together(
    "side",
    lambda http, no_http, allow_host, allow_origin, api_keys: (
        None if no_http else HttpSide(http[0], http[1], allow_host, allow_origin, api_keys)
    ),
    click.option(
        "--http",
        callback=place_of,
        default="127.0.0.1:8000",
        show_default=True,
        metavar="HOST:PORT",
        help="Where OpenAI's API and the page are served; port 0: any.",
    ),
    click.option("--no-http", is_flag=True, help="Answer peers alone."),
    click.option(
        "--allow-host", multiple=True, metavar="NAME", help="A Host that requests may name, beside loopback; * any."
    ),
    click.option(
        "--allow-origin", multiple=True, metavar="URL", help="An Origin whose pages may ask, beside loopback; * any."
    ),
    click.option(
        "--api-key",
        "api_keys",
        multiple=True,
        envvar="SWARM_API_KEYS",
        metavar="KEY",
        help="A key that HTTP requests need one of; else SWARM_API_KEYS, separated by spaces; else none is needed.",
    ),
)
@edge_options
def main(
    model: str,
    network: NetworkConfig,
    identity_path: str | None,
    dtype: str,
    revision: str | None,
    token: str | None,
    threads: int | None,
    public_name: str,
    client: ClientConfig,
    config: GatewayConfig,
    side: HttpSide | None,
    edge: EdgeOptions,
) -> None:
    """Answer queries for MODEL, a name on the Hugging Face hub or a folder, whose blocks others serve.

    A query node holds tokenizer, embeddings and head, and can read the queries that it answers. Programs ask it with
    OpenAI's API, browsers and peers find it in the directory. When it dies, those go on with another.

    Exit codes: 0 stopped by a signal, 1 an error that is printed, 2 wrong usage, 128 + n by a second signal.
    """
    if not network.initial_peers:
        raise InvalidInput(HOW_TO_BEGIN)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wishes = Wishes(model, dtype, revision, token, threads, public_name, config, client)
    with identified(network, identity_path, "gateway", "gateway") as network:
        asyncio.run(run(network, wishes, edge.beside(network), side))


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
    client: ClientConfig


@dataclass(frozen=True, slots=True)
class HttpSide:
    """Where HTTP is served, and to whom."""

    host: str
    port: int
    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    keys: tuple[str, ...]


async def run(network: NetworkConfig, wishes: Wishes, browsers: EdgeConfig | None, side: HttpSide | None) -> None:
    """Be a query node until a signal comes. Raises SwarmError."""
    leaving = asyncio.Event()
    on_signals(leaving.set)
    from prometheus_client import CollectorRegistry

    from swarm.gateway.metrics import QueryMetrics

    loaded = await asyncio.to_thread(load, wishes)
    async with contextlib.AsyncExitStack() as stack:
        joined = await stack.enter_async_context(await net.open(network))
        host, directory = joined.host, joined.directory
        registry = CollectorRegistry()
        metrics = QueryMetrics(registry)
        generator = await stack.enter_async_context(answering(host, directory, loaded, wishes, metrics))
        metrics.watch(generator)
        edge = await stack.enter_async_context(edge_of(joined.identity, browsers))
        await offer(generator, wishes.config, directory, [each for each in (host, edge) if each is not None])
        dtype = str(loaded.ends.dtype).removeprefix("torch.")
        from swarm.gateway.node import Announcer, describe

        def record() -> pb.QueryNode:
            edges = () if edge is None else best_first(edge.addresses)
            addresses = best_first(host.addresses)
            return describe(generator, wishes.name, addresses, edges, dtype, __version__, wishes.client)

        ends = [leaving.wait(), joined.lost(), Announcer(directory, network, record).run(), looking(generator)]
        if side is not None:
            ends.append(serve(generator, side, edge, registry))
        say(generator, edge)
        await until(leaving, ends)


async def offer(generator: Generator, config: GatewayConfig, directory: Directory, hosts: Sequence[Host]) -> None:
    """Take queries over every host, and show the swarm."""
    from swarm.gateway.map import MapService
    from swarm.gateway.node import QueryNode

    node, maps = QueryNode(generator, config), MapService(directory)
    for host in hosts:
        await node.serve(host)
        await maps.serve(host)


async def looking(generator: Generator) -> None:
    """Know at any time which blocks are served."""
    while True:
        with contextlib.suppress(NetworkError):
            await generator.view.refresh(generator.view.config.view_refresh)
        await asyncio.sleep(generator.view.config.view_refresh)


async def serve(generator: Generator, side: HttpSide, edge: Edge | None, registry: CollectorRegistry) -> None:
    """OpenAI's API, the page and metrics. Raises InvalidInput when the address is taken."""
    from swarm.gateway.openai.app import create_app
    from swarm.gateway.openai.guard import HttpSettings
    from swarm.gateway.openai.server import serve_http
    from swarm.metrics import exposition

    settings = HttpSettings(side.hosts, side.origins, side.keys)
    peers = lambda: () if edge is None else best_first(edge.addresses)  # noqa: E731
    app = create_app(
        {generator.model.name: generator}, settings, page=PAGE, peers=peers, metrics=lambda: exposition(registry)
    )
    await serve_http(app, side.host, side.port, lambda host, port: click.echo(f"http     http://{host}:{port}/v1"))


def say(generator: Generator, edge: Edge | None) -> None:
    """Tell the contributor what is offered, and where."""
    for address in () if edge is None else best_first(edge.addresses):
        click.echo(f"browsers {address}")
    click.echo(f"query node for {generator.model.name} is ready; Ctrl-C leaves")


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

    from swarm.models.ends.ends import Ends
    from swarm.models.ends.load import load_client_model
    from swarm.models.loading.checkpoint import open_checkpoint
    from swarm.models.loading.cost import describe
    from swarm.models.texts import load_tokenizer

    if wishes.threads is not None:
        torch.set_num_threads(wishes.threads)
    checkpoint = open_checkpoint(wishes.model, wishes.token, wishes.revision)
    dtype = None if wishes.dtype == "auto" else wishes.dtype
    info = describe(checkpoint, dtype=dtype).info
    tokenizer = load_tokenizer(wishes.model, wishes.token, wishes.revision)
    model, _ = load_client_model(checkpoint, dtype=dtype, progress=progress_bars())
    return Loaded(Ends(model), info, tokenizer, model.generation_config)


@asynccontextmanager
async def answering(
    host: Host, directory: Directory, loaded: Loaded, wishes: Wishes, metrics: QueryMetrics
) -> AsyncIterator[Generator]:
    """What answers, for as long as the block lasts."""
    from swarm.client.view import View
    from swarm.gateway.ends_batcher import EndsBatcher
    from swarm.gateway.generation import Generator
    from swarm.gateway.recommended import Recommended
    from swarm.models.texts import Texts

    dtype = str(loaded.ends.dtype).removeprefix("torch.")
    view = View(directory, loaded.info, dtype, wishes.client)
    compute = EndsBatcher(loaded.ends)
    recommended = Recommended.of(loaded.generation, loaded.tokenizer)
    with contextlib.suppress(NetworkError):
        await view.refresh(0.0)
    try:
        yield Generator(host, view, Texts(loaded.tokenizer), compute, recommended, wishes.config, metrics)
    finally:
        await compute.close()


if __name__ == "__main__":
    main()
