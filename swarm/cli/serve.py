"""swarm-serve: contribute a machine."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from swarm.accounting.account import account_of
from swarm.cli.accounts import AccountOptions, account_options
from swarm.cli.command import Command
from swarm.cli.identity import identified
from swarm.cli.logs import progress_bars
from swarm.cli.network import join, showing_metrics
from swarm.cli.network_options import (
    check_joins,
    forward_options,
    identity_option,
    limit_options,
    metrics_option,
    name_option,
    network_options,
)
from swarm.cli.report import reached
from swarm.cli.serve_options import hosting_options, sharing_options
from swarm.cli.signals import on_signals
from swarm.config import (
    SCHEMES,
    ForwardConfig,
    NetworkConfig,
    PeerLimits,
    ServerConfig,
)
from swarm.contract import UNQUANTIZED
from swarm.errors import InvalidInput
from swarm.memory import size
from swarm.net.addresses import best_first
from swarm.net.base import Directory
from swarm.server.options import ServeOptions
from swarm.tasks import first_of, in_daemon_thread
from swarm.types import ServerState, Span

if TYPE_CHECKING:
    from swarm.server.hosting import Hosting
    from swarm.server.needs import Need
    from swarm.server.plan import Plan
    from swarm.server.span_life import SpanLife


@click.command(cls=Command)
@hosting_options
@click.option(
    "--models",
    multiple=True,
    metavar="PATTERN",
    help="Without MODEL: which of the models that the swarm knows may be hosted, e.g. 'meta-llama/*', or folders of "
    "this machine; repeat for several. The one that is needed most, and fits, is.",
)
@network_options()
@forward_options
@limit_options
@identity_option
@account_options("it does")
@name_option("this server in swarm-status")
@sharing_options
@metrics_option
@click.option("--dry-run", is_flag=True, help="Say what would be loaded, and what fits by each scheme, and exit.")
def main(
    options: ServeOptions,
    models: tuple[str, ...],
    network: NetworkConfig,
    forward: ForwardConfig | None,
    limits: PeerLimits,
    identity_path: str | None,
    account: AccountOptions,
    public_name: str,
    config: ServerConfig,
    metrics: tuple[str, int] | None,
    dry_run: bool,
) -> None:
    """Host blocks of MODEL, a name on the Hugging Face hub, a folder or a GGUF file, for everybody in the swarm.

    Without --blocks the server takes as many as fit into memory, where the swarm has least. Without MODEL it shows
    what the swarm serves, most needed first, and asks which; with --models it decides. It computes as others do then.

    Ctrl-C (or SIGTERM) leaves politely: no new sessions, and those there are move to other servers first. Once more
    leaves at once.

    Exit codes: 0 left politely (or --dry-run is done), 1 an error that is printed, also when the network is lost for
    good, 2 wrong usage, 128 + n by a second signal.
    """
    if not options.model and options.blocks is not None:
        raise click.UsageError("--blocks are of a MODEL: say which")
    if options.model and models:
        raise click.UsageError("--models is for a server that is told no MODEL")
    if not (dry_run and options.model):
        check_joins(network)
    from swarm.server.hosting import hostings

    given = hostings(options, config, progress=progress_bars()) if options.model else []
    if dry_run and given:
        click.echo("\n\n".join("\n".join(outlook(hosting)) for hosting in given))
        return

    async def choose(directory: Directory) -> Sequence[Hosting]:
        return given or await chosen(directory, options, models, config)

    if dry_run:
        asyncio.run(foresee(network, choose))
        return
    network = replace(network, dialled=True, forward=forward, limits=limits, begins=True)
    network = replace(network, account=account.folder(identity_path, begins=True))
    with identified(network, identity_path, "serve", "server") as network:
        hosted = asyncio.run(serve(choose, network, config, public_name, metrics))
    if not hosted or any(hosting.loading for hosting in hosted):
        # It left before the span was chosen or loaded; the thread that does so cannot be stopped, nor need it be
        # waited for.
        sys.stdout.flush()
        os._exit(0)


async def foresee(network: NetworkConfig, choose: Callable[[Directory], Awaitable[Sequence[Hosting]]]) -> None:
    """Join, say what would be loaded, and leave. Raises SwarmError."""
    async with await join(network, asyncio.Event()) as joined:
        found = await choose(joined.directory)
        click.echo("\n\n".join("\n".join(outlook(hosting)) for hosting in found))


async def chosen(
    directory: Directory, options: ServeOptions, models: Sequence[str], config: ServerConfig
) -> Sequence[Hosting]:
    """The most needed model of the swarm that is allowed and fits, in the numbers that most of its servers compute in;
    where nothing is allowed, the one that is typed.

    Raises InvalidInput, NetworkError.
    """
    from swarm.cli.offers import first_that_fits, folders_of, offers, source_of, table
    from swarm.models.loading.checkpoint import open_checkpoint
    from swarm.server.hosting import hostings

    def opened(one: Need, source: str) -> Sequence[Hosting]:
        scheme = next((name for name, known in SCHEMES.items() if known == one.quantization), None)
        like = replace(
            options,
            model=source,
            dtype=options.dtype or one.dtype or None,
            quantization=options.quantization or scheme,
        )
        found = hostings(like, config, progress=progress_bars())
        if found[0].info.key != one.model.key:
            raise InvalidInput("the swarm serves other files under this name; pass the folder, or --revision")
        found[0].choose([])
        return found

    needs = await offers(directory)
    click.echo("\n".join(table(needs)))
    if not models:
        needs = [await in_daemon_thread(lambda: asked(needs))]
        models = [needs[0].model.name]
    keys = ((open_checkpoint(path, options.token).info().key, path) for path in folders_of(models))
    folders = await in_daemon_thread(lambda: dict(keys))
    sources = [(one, source) for one in needs if (source := source_of(one, models, folders)) is not None]
    return await in_daemon_thread(lambda: first_that_fits(sources, opened))


def asked(needs: Sequence[Need]) -> Need:
    """Which of these somebody at the terminal wants. Raises InvalidInput where nobody is there to be asked."""
    if not sys.stdin.isatty():
        raise InvalidInput("say which: swarm-serve MODEL, or --models with a pattern of what may be hosted")
    number: int = click.prompt("which", type=click.IntRange(1, len(needs)), default=1)
    return needs[number - 1]


async def serve(
    choose: Callable[[Directory], Awaitable[Sequence[Hosting]]],
    network: NetworkConfig,
    config: ServerConfig,
    name: str,
    metrics: tuple[str, int] | None,
) -> Sequence[Hosting]:
    """Join, serve and leave; what was hosted, nothing where a signal came first. Raises SwarmError."""
    from swarm.server.metrics import ServerMetrics
    from swarm.server.server import Server

    leaving = asyncio.Event()
    on_signals(leaving.set)
    async with await join(network, leaving) as joined:
        choosing: asyncio.Future[Any] = asyncio.ensure_future(choose(joined.directory))
        await first_of(choosing, leaving.wait())
        if choosing.cancelled():
            return ()
        hosted: dict[Plan, Hosting] = {hosting.plan: hosting for hosting in choosing.result()}
        for hosting in hosted.values():
            hosting.join(joined.host, joined.directory, joined.locator)
        account = account_of(network.account)
        server = Server(
            account=account,
            host=joined.host,
            directory=joined.directory,
            plans=list(hosted),
            config=config,
            network=network,
            name=name,
            lost=joined.lost,
            guard=joined.guard,
            locator=joined.locator,
            identity=joined.identity,
            on_state=lambda life: say(life, joined.host.addresses, hosted[life.plan], network),
        )

        def leave() -> None:
            joined.retire()
            server.leave()

        on_signals(leave)
        if leaving.is_set():
            return list(hosted.values())
        async with showing_metrics(metrics, lambda registry: ServerMetrics(registry, server)):
            await server.run()
        if account is not None:
            account.close()
    return list(hosted.values())


def say(life: SpanLife, addresses: Sequence[str], hosting: Hosting, network: NetworkConfig) -> None:
    """Tell the contributor what the directory has just been told."""
    assert life.span is not None
    match life.state:
        case ServerState.JOINING:
            lines = [*summary(hosting, life.span), *where(hosting.options.model, best_first(addresses), network)]
            click.echo("\n".join([*lines, "loading  the blocks; online when they are checked and measured"]))
        case ServerState.ONLINE:
            click.echo(f"online: serving blocks {life.span}; Ctrl-C leaves politely")
        case ServerState.DRAINING:
            if life.moving:
                click.echo(f"moving: other blocks are needed more than {life.span}; sessions go to other servers first")
                return
            click.echo("leaving: sessions are moving to other servers; Ctrl-C again leaves at once")


def summary(hosting: Hosting, span: Span) -> list[str]:
    """Model, span, device and memory."""
    info, needs = hosting.info, hosting.footprint(span)
    per_block = needs.weight_bytes / len(span)
    lines = [
        f"model    {info.name}  {info.blocks} blocks  key {info.key[:12]}",
        f"span     {span}  {size(needs.weight_bytes)} of weights ({size(per_block)} a block) {computed(hosting)}",
        f"cache    {needs.cache_tokens:,} tokens in {size(needs.cache_bytes)} ({size(needs.token_bytes)} a token)",
        f"device   {hosting.device}  {size(needs.total)} of {size(hosting.allowance.memory)}",
    ]
    if hosting.ends_bytes:
        lines.append(f"ends     head and embeddings are served, too: at most {size(hosting.ends_bytes)} beside that")
    advice = hosting.advice(len(span))
    return lines if advice is None else [*lines, f"more     {advice}"]


def outlook(hosting: Hosting) -> list[str]:
    """What would be loaded, and a table of what fits. Raises InvalidInput where nothing does."""
    from swarm.cli.fit_table import table
    from swarm.server.fit import fit

    costs = hosting.costs()
    rows = table([(cost, fit(cost, hosting.allowance)) for cost in costs], hosting.info.blocks)
    free = f"disk     {size(hosting.disk_free)} free; decode: at best, by the speed of one row's products measured now"
    busy = [cost.quantization for cost in costs if cost.threads < hosting.threads]
    slower = f"one thread was faster than {hosting.threads} ({', '.join(busy)})"
    note = f"busy     {slower}: do other programs run? measure again"
    return [*summary(hosting, hosting.choose([])), free, *([note] if busy else []), "", *rows]


def computed(hosting: Hosting) -> str:
    """What weights and hidden states are in."""
    if hosting.quantization == UNQUANTIZED:
        return f"as {hosting.dtype}"
    return f"on the grid of {hosting.quantization}, hidden states as {hosting.dtype}"


def where(model: str, addresses: Sequence[str], network: NetworkConfig) -> list[str]:
    """Addresses, and how the next person joins: through those that we joined through, who are likely to stay."""
    through = (network.initial_peers or addresses)[:1]
    key = ["--swarm-key", "FILE"] if network.swarm_key is not None else []
    command = shlex.join(
        ["swarm-serve", model, *(word for peer in through for word in ("--initial-peers", peer)), *key]
    )
    lines = [*(f"address  {address}" for address in addresses), f"reached  {reached(addresses)}"]
    return [*lines, f"to add a machine:  {command}"]


if __name__ == "__main__":
    main()
