"""Options of swarm-serve alone: what is hosted and how, and what of it others may have. Imports nothing heavy."""

from __future__ import annotations

import click

from swarm.cli.model_options import DTYPES, model_options, optional_model_argument
from swarm.cli.together import Function, together
from swarm.cli.values import COUNT, SHARE, THREADS, Seconds, size_of, span_of
from swarm.config import ANY, BLOCK_SOURCES, QUANTIZATIONS, ServerConfig
from swarm.server.options import ServeOptions


def hosting_options(function: Function) -> Function:
    """What is hosted and how, as `options`, a ServeOptions."""
    return together(
        "options",
        ServeOptions,
        optional_model_argument,
        click.option(
            "--blocks", callback=span_of, metavar="FIRST:LAST", help="Which to host, e.g. 10:20 for 10 to 19."
        ),
        click.option(
            "--device",
            help="cpu, cuda, cuda:1, mps ..., or several that share the blocks, as cuda:0,cuda:1; by default the best.",
        ),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            help="Of hidden states, and of weights that are on no grid: by default the checkpoint's own, or float32 "
            "where others are quantized.",
        ),
        click.option(
            "--quantization",
            type=click.Choice(QUANTIZATIONS),
            help="What the weights of linear layers are on: nothing (none), a grid of 8 or 4 bits that they are put "
            "on as they are loaded (int8, int4), the grid that the checkpoint has them on (file, the default where it "
            "has one). Serves only clients that ask for the same.",
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
            help="Without --blocks: host other blocks instead when the swarm needs these clearly more; sessions move "
            "on first. By default it does.",
        ),
        click.option("--threads", type=THREADS, metavar="N", help="Compute threads on a CPU."),
        click.option(
            "--cpu-offload",
            type=click.IntRange(min=0),
            default=0,
            metavar="N",
            help="On a CUDA device: the last N blocks are in main memory, and are moved to the device each time that "
            "they are computed. More blocks, slower steps; the speed is measured with them.",
        ),
        click.option(
            "--offer-blocks/--no-offer-blocks",
            default=None,
            help="Whether servers that join may have blocks from this one: by default where everybody may have the "
            "model from the hub; not of gated models and of folders.",
        ),
        click.option(
            "--blocks-from",
            type=click.Choice(BLOCK_SOURCES),
            default=ANY,
            show_default=True,
            help="Where blocks come from: the model's files (hub), other servers (peers), or these where samples "
            "agree with the files, and the files where not (any).",
        ),
        click.option(
            "--serve-ends",
            is_flag=True,
            help="Serve the model's head and embeddings, too, to clients that have neither (head='remote').",
        ),
        model_options,
    )(function)


def sharing_options(function: Function) -> Function:
    """What clients and other servers may have of it, as `config`, a ServerConfig."""
    return together(
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
            help="Of the KV cache, what one client may have though nobody else needs it; it gives way to others "
            "anyway.",
        ),
        click.option(
            "--share-prefixes",
            is_flag=True,
            help="Let the beginning of one client's prompt, once computed, serve other clients' prompts that begin "
            "alike, say with the same system prompt. Without this it serves the same client only: how soon an answer "
            "comes would tell others whether somebody has asked the same.",
        ),
        click.option(
            "--training-budget",
            callback=size_of,
            default="512MiB",
            show_default=True,
            metavar="SIZE",
            help="Main memory for the passes of clients who train, half of it for one client; they keep what is "
            "trained themselves.",
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
            help="Memory, of the device, for what spares computing blocks twice for gradients, half of it for one "
            "client.",
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
            help="Bytes a second of blocks for servers that join, a quarter of it while there are sessions; 0: no "
            "limit.",
        ),
    )(function)


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
