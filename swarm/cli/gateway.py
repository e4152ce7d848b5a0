"""swarm-gateway: answer queries for a model."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import click

from swarm.accounting.account import account_of
from swarm.accounting.stream import serve_receipts
from swarm.cli.accounts import AccountOptions, account_options
from swarm.cli.command import Command
from swarm.cli.identity import identified
from swarm.cli.logs import progress_bars
from swarm.cli.model_options import client_options, folders, head_option, model_options
from swarm.cli.network import edge_of, join, until
from swarm.cli.network_options import (
    EdgeOptions,
    check_joins,
    edge_options,
    identity_option,
    limit_options,
    name_option,
    network_options,
)
from swarm.cli.signals import on_signals
from swarm.cli.together import together
from swarm.cli.values import COUNT, THREADS, adapters_of, place_of
from swarm.config import SPECULATIONS, ClientConfig, GatewayConfig, NetworkConfig, PeerLimits

if TYPE_CHECKING:
    from swarm.gateway.life import Gateway, HttpPlace


@click.command(cls=Command)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, shell_complete=folders)
@network_options()
@limit_options
@identity_option
@account_options("it does where this user has an account, as who has run a server has")
@client_options
@head_option
@model_options
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    callback=adapters_of,
    metavar="NAME=FOLDER",
    help="LoRA that peft has saved, offered as the model MODEL:NAME beside MODEL; several times for several.",
)
@click.option(
    "--images",
    is_flag=True,
    help="Take pictures also where a model can be had without what looks at them; others that see take them anyway.",
)
@click.option("--threads", type=THREADS, metavar="N", help="Compute threads for embeddings and head.")
@name_option("this query node")
@together(
    "config",
    lambda capacity, speculation: GatewayConfig(capacity=capacity, speculation=speculation),
    click.option(
        "--capacity",
        type=COUNT,
        default=GatewayConfig().capacity,
        show_default=True,
        help="Queries of each model at a time; one more is told to come again.",
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
    lambda http, no_http, allow_host, allow_origin, api_keys, image_urls: (
        None if no_http else HttpSide(http[0], http[1], allow_host, allow_origin, api_keys, image_urls)
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
        "--allow-host",
        multiple=True,
        metavar="NAME",
        help="A Host that requests may name, beside loopback; *.NAME those below it, * any.",
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
    click.option(
        "--image-urls",
        is_flag=True,
        help="Fetch pictures that requests tell the address of, from the public internet alone. Whoever may ask lets "
        "this machine fetch what they name.",
    ),
)
@edge_options
def main(
    models: tuple[str, ...],
    network: NetworkConfig,
    identity_path: str | None,
    account: AccountOptions,
    dtype: str,
    head: str | None,
    revision: str | None,
    token: str | None,
    adapters: dict[str, str],
    images: bool,
    threads: int | None,
    public_name: str,
    client: ClientConfig,
    limits: PeerLimits,
    config: GatewayConfig,
    side: HttpSide | None,
    edge: EdgeOptions,
) -> None:
    """Answer queries for MODELs, names on the Hugging Face hub, folders or GGUF files, whose blocks others serve.

    A query node holds tokenizer, embeddings and head, and can read the queries that it answers. Programs ask it with
    OpenAI's API, browsers and peers find it in the directory. When it dies, those go on with another.

    Exit codes: 0 stopped by a signal, 1 an error that is printed, 2 wrong usage, 128 + n by a second signal.
    """
    check_joins(network)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if len(models) > 1 and revision is not None:
        raise click.UsageError("--revision is of one model: run a gateway for each, or leave it out")
    if len(models) > 1 and adapters:
        raise click.UsageError("--adapter is of one model: run a gateway for each, or leave it out")
    options = GatewayOptions(
        models, dtype, head, revision, token, adapters, images, threads, public_name, config, client
    )
    network = replace(network, dialled=True, limits=limits, account=account.folder(identity_path))
    with identified(network, identity_path, "gateway", "gateway") as network:
        asyncio.run(run(network, options, edge, side))


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """What to answer for, and how."""

    models: tuple[str, ...]
    dtype: str
    head: str | None
    revision: str | None
    token: str | None
    adapters: dict[str, str]
    images: bool
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
    image_urls: bool

    def place(self) -> HttpPlace:
        """The same as the gateway takes it. Raises InvalidInput."""
        from swarm.gateway.http.guard import HttpSettings
        from swarm.gateway.life import HttpPlace

        return HttpPlace(
            self.host, self.port, HttpSettings(self.hosts, self.origins, self.keys, image_urls=self.image_urls)
        )


async def run(network: NetworkConfig, options: GatewayOptions, browsers: EdgeOptions, side: HttpSide | None) -> None:
    """Be a query node until a signal comes, without an edge where that is impossible and nobody asked for one.

    Raises SwarmError.
    """
    from swarm.gateway.life import Gateway
    from swarm.gateway.loading import load_model

    leaving = asyncio.Event()
    on_signals(leaving.set)
    http = None if side is None else side.place()
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    dtype = None if options.dtype == "auto" else options.dtype
    which: dict[str, Any] = {
        "dtype": dtype,
        "head": options.head,
        "images": options.images,
        "quantization": options.client.quantization,
        "revision": options.revision,
        "token": options.token,
        "adapters": options.adapters,
    }
    loaded = [await asyncio.to_thread(load_model, model, progress=progress_bars(), **which) for model in options.models]
    async with contextlib.AsyncExitStack() as stack:
        joined = await stack.enter_async_context(await join(network, leaving))
        account = account_of(network.account)
        if account is not None:
            stack.callback(account.close)
            await serve_receipts(joined.host, account)
        listening = edge_of(joined.identity, browsers.beside(network), needed=browsers.needed)
        edge = await stack.enter_async_context(listening)
        gateway = Gateway(
            joined,
            loaded,
            config=options.config,
            client=options.client,
            announcing=network,
            http=http,
            edge=edge,
            name=options.name,
            on_ready=say,
            account=account,
        )
        await until(leaving, gateway.run())


def say(gateway: Gateway) -> None:
    """Tell the contributor what is offered, and where."""
    for address in gateway.edges:
        click.echo(f"browsers {address}")
    if gateway.url:
        click.echo(f"http     {gateway.url}")
    if gateway.missing is not None:
        click.echo(f"answers have to wait: {gateway.missing}")
    names = ", ".join(name for loaded in gateway.loaded for name in loaded.names)
    click.echo(f"query node for {names} is ready; Ctrl-C leaves")


if __name__ == "__main__":
    main()
