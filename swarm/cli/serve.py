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
from swarm.cli.model_options import DTYPES, model_options, optional_model_argument
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
from swarm.cli.signals import on_signals
from swarm.cli.together import together
from swarm.cli.values import COUNT, SHARE, THREADS, Seconds, size_of, span_of
from swarm.config import (
    ANY,
    BLOCK_SOURCES,
    QUANTIZATIONS,
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


def _config(
    drain_timeout: float,
    share_prefixes: bool,
    max_sessions_per_peer: int,
    max_cache_per_peer: float,
    offer_rate: float,
    training_budget: int,
    activation_budget: int,
    adapter_budget: int,
) -> ServerConfig:
    return ServerConfig(
        drain_timeout=drain_timeout,
        share_prefixes=share_prefixes,
        max_sessions_per_peer=max_sessions_per_peer,
        cache_share_per_peer=max_cache_per_peer,
        offer_rate=offer_rate,
        training_bytes=training_budget,
        activation_bytes=activation_budget,
        adapter_bytes=adapter_budget,
    )


@click.command(cls=Command)
@together(
    "options",
    ServeOptions,
    optional_model_argument,
    click.option("--blocks", callback=span_of, metavar="FIRST:LAST", help="Which to host, e.g. 10:20 for 10 to 19."),
    click.option(
        "--device",
        help="cpu, cuda, cuda:1, mps ..., or several that share the blocks, as cuda:0,cuda:1; by default the best.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(DTYPES),
        help="Of hidden states, and of weights that are on no grid: by default the checkpoint's own, or float32 where "
        "others are quantized.",
    ),
    click.option(
        "--quantization",
        type=click.Choice(QUANTIZATIONS),
        help="What the weights of linear layers are on: nothing (none), a grid of 8 or 4 bits that they are put on as "
        "they are loaded (int8, int4), the grid that the checkpoint has them on (file, the default where it has one). "
        "Serves only clients that ask for the same.",
    ),
    click.option(
        "--memory",
        callback=size_of,
        metavar="SIZE",
        help="For weights and KV cache, e.g. 12GiB; else most of what is free.",
    ),
    click.option(
        "--max-disk",
        callback=size_of,
        metavar="SIZE",
        help="Of what was fetched from the hub and of blocks, what may stay on disk for the next start, e.g. "
        "50GB, or 0; else at most as much as stays free.",
    ),
    click.option(
        "--cache-tokens",
        type=COUNT,
        metavar="N",
        help="Positions of KV cache, of all sessions together.",
    ),
    click.option(
        "--rebalance/--no-rebalance",
        default=True,
        help="Without --blocks: host other blocks instead when the swarm needs these clearly more; sessions move on "
        "first. By default it does.",
    ),
    click.option("--threads", type=THREADS, metavar="N", help="Compute threads on a CPU."),
    click.option(
        "--cpu-offload",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="On a CUDA device: the last N blocks are in main memory, and are moved to the device each time that they "
        "are computed. More blocks, slower steps; the speed is measured with them.",
    ),
    click.option(
        "--offer-blocks/--no-offer-blocks",
        default=None,
        help="Whether servers that join may have blocks from this one: by default where everybody may have "
        "the model from the hub; not of gated models and of folders.",
    ),
    click.option(
        "--blocks-from",
        type=click.Choice(BLOCK_SOURCES),
        default=ANY,
        show_default=True,
        help="Where blocks come from: the model's files (hub), other servers (peers), or these where "
        "samples agree with the files, and the files where not (any).",
    ),
    click.option(
        "--serve-ends",
        is_flag=True,
        help="Serve the model's head and embeddings, too, to clients that have neither (head='remote').",
    ),
    model_options,
)
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
@together(
    "config",
    _config,
    click.option(
        "--drain-timeout",
        type=Seconds(),
        default=ServerConfig().drain_timeout,
        show_default=True,
        metavar="SECONDS",
        help="How long sessions have to move on when this server leaves.",
    ),
    click.option(
        "--max-sessions-per-peer",
        type=COUNT,
        default=ServerConfig().max_sessions_per_peer,
        show_default=True,
        metavar="N",
        help="Sessions of one client at a time; a gateway has one for each query.",
    ),
    click.option(
        "--max-cache-per-peer",
        type=SHARE,
        default=ServerConfig().cache_share_per_peer,
        show_default=True,
        metavar="SHARE",
        help="Of the KV cache, what one client may have though nobody else needs it; it gives way to others anyway.",
    ),
    click.option(
        "--share-prefixes",
        is_flag=True,
        help="Let the beginning of one client's prompt, once computed, serve other clients' prompts that begin alike, "
        "say with the same system prompt. Without this it serves the same client only: how soon an answer comes would "
        "tell others whether somebody has asked the same.",
    ),
    click.option(
        "--training-budget",
        callback=size_of,
        default="512MiB",
        show_default=True,
        metavar="SIZE",
        help="Main memory for the passes of clients who train, half of it for one client; they keep what is trained "
        "themselves.",
    ),
    click.option(
        "--no-training",
        "training_budget",
        flag_value="0",
        help="Give no gradients: the same as --training-budget 0.",
    ),
    click.option(
        "--activation-budget",
        callback=size_of,
        default="2GiB",
        show_default=True,
        metavar="SIZE",
        help="Memory, of the device, for what spares computing blocks twice for gradients, half of it for one client.",
    ),
    click.option(
        "--adapter-budget",
        callback=size_of,
        default="256MiB",
        show_default=True,
        metavar="SIZE",
        help="Main memory for the adapters that clients bring, half of it for one client.",
    ),
    click.option(
        "--offer-rate",
        callback=size_of,
        default="32MiB",
        show_default=True,
        metavar="SIZE",
        help="Bytes a second of blocks for servers that join, a quarter of it while there are sessions; 0: no limit.",
    ),
)
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
