"""Options of which model is meant, and of how a client has it computed, that several commands share. Imports nothing
heavy."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from swarm.cli.together import Function, Option, together
from swarm.cli.values import Seconds
from swarm.config import CODEC_CHOICES, HEADS, QUANTIZATIONS, ClientConfig

DTYPES = ("float32", "bfloat16", "float16")


def model_argument(function: Function) -> Function:
    """MODEL, which shells complete as a folder: a name on the hub is not known here."""
    return click.argument("model", shell_complete=folders)(function)


def optional_model_argument(function: Function) -> Function:
    """As `model_argument`; "" where there is none."""
    return click.argument("model", required=False, default="", shell_complete=folders)(function)


def folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes a folder in a shell."""
    return [CompletionItem(incomplete, type="dir")]


def model_options(function: Function) -> Function:
    """Which version of a model, and with whose permission."""
    function = click.option(
        "--revision", help="Branch, tag or commit of the model; everybody in a swarm must use the same commit."
    )(function)
    return click.option(
        "--token",
        envvar="HF_TOKEN",
        help="Access token of the Hugging Face hub; else HF_TOKEN, else the one saved by its login.",
    )(function)


def head_option(function: Function) -> Function:
    """Where the head is, as `head`."""
    return click.option(
        "--head",
        type=click.Choice(HEADS),
        help="Where the head is: in memory, on disk (slow), or quantized (file: as the checkpoint has it). "
        "By default on the grid of a quantized checkpoint, else in memory where it fits.",
    )(function)


def client_options(function: Function) -> Function:
    """Which servers are used, and how. The command gets `dtype`, and the rest as `client`, a ClientConfig."""
    usual = ClientConfig()
    dtype = click.option(
        "--dtype",
        type=click.Choice(("auto", *DTYPES)),
        default="auto",
        help="That of the servers; auto: the checkpoint's.",
    )
    return dtype(together("client", _client, *_numbers(usual), *_checks(usual), _MAX_WAIT)(function))


def _client(
    quantization: str | None,
    codec: str,
    standby: int,
    compare: int,
    audits: bool,
    standings: str | None,
    evidence: str | None,
    max_wait: float | None,
) -> ClientConfig:
    return ClientConfig(
        quantization=quantization,
        codec=codec,
        standby=standby,
        compare=compare,
        audits=audits,
        standings=standings,
        evidence=evidence,
        max_wait=max_wait,
    )


_MAX_WAIT: Option = click.option(
    "--max-wait",
    type=Seconds(),
    metavar="SECONDS",
    help="How long to wait for blocks that nobody serves; by default for ever.",
)


def _numbers(usual: ClientConfig) -> tuple[Option, ...]:
    """In which numbers is computed, and how they travel."""
    return (
        click.option(
            "--quantization",
            type=click.Choice(QUANTIZATIONS),
            default=usual.quantization,
            help="That of the servers: only those that compute with it are used; by default none, or file for a "
            "quantized checkpoint.",
        ),
        click.option(
            "--codec",
            type=click.Choice(CODEC_CHOICES),
            default=usual.codec,
            help="How hidden states travel: exactly (raw), as 8-bit integers (int8: a quarter to a half of the "
            "bytes, about half a percent off), or so on slow links only (auto).",
        ),
    )


def _checks(usual: ClientConfig) -> tuple[Option, ...]:
    """What is computed more than once, and what is remembered of it."""
    return (
        click.option(
            "--standby",
            type=click.IntRange(0, 1),
            default=usual.standby,
            help="1: a second route on other servers computes the same a step behind, and goes on at once where "
            "the first is late or fails; it costs the swarm twice the work and memory.",
        ),
        click.option(
            "--compare",
            type=click.IntRange(1, 2),
            default=usual.compare,
            help="2: every step is computed by two routes without a common server, and nothing is given before "
            "both have come to the same; it costs the swarm twice the work and memory.",
        ),
        click.option(
            "--audits/--no-audits",
            default=usual.audits,
            help="Have some of what servers computed computed once more by others, by chance, and leave for good "
            "who was wrong. Among strangers; off by default.",
        ),
        click.option(
            "--standings",
            type=click.Path(dir_okay=False),
            metavar="FILE",
            help="Where to keep what audits have shown, for the next time; by default nowhere.",
        ),
        click.option(
            "--evidence",
            type=click.Path(file_okay=False),
            metavar="FOLDER",
            help="Where to keep what servers that were found out have signed, as files that swarm-audit checks; by "
            "default nowhere.",
        ),
    )
