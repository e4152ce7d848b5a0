"""swarm-chat: talk to a model."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarm.cli.accounts import AccountOptions, account_options
from swarm.cli.command import Command
from swarm.cli.conversation import ChatOptions, Conversation, Responder
from swarm.cli.logs import quiet
from swarm.cli.model_options import client_options, head_option, model_argument, model_options
from swarm.cli.network_options import check_joins, network_options
from swarm.cli.screen import Screen
from swarm.cli.seeing import SeeingResponder
from swarm.cli.streams import readable
from swarm.cli.together import together
from swarm.cli.values import COUNT, SEED
from swarm.config import ClientConfig, NetworkConfig
from swarm.errors import DaemonFailed, SwarmError
from swarm.models.processors import processor_of
from swarm.models.texts import tokenizer_of

if TYPE_CHECKING:
    from swarm.models.loading.checkpoint import Checkpoint

WARNING = "Whoever serves blocks on the route can read what you type and what the model answers."


@click.command(cls=Command)
@model_argument
@network_options()
@together(
    "options",
    ChatOptions,
    click.option("--max-new-tokens", type=COUNT, metavar="N", help="Tokens of an answer at most."),
    click.option(
        "--temperature",
        type=click.FloatRange(min=0, max=100),
        help="0 always takes the best token; by default as the model's authors recommend.",
    ),
    click.option("--seed", type=SEED, help="Makes answers that are drawn by chance repeatable."),
    click.option("--system", metavar="TEXT", help="What the model is told before the conversation."),
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A picture that the first question is about; several times for several.",
)
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="LoRA that peft has saved, to be added to the model.",
)
@account_options("it does where this user has an account, as who has run a server has")
@client_options
@head_option
@model_options
def main(
    model: str,
    network: NetworkConfig,
    options: ChatOptions,
    images: tuple[Path, ...],
    adapter: Path | None,
    account: AccountOptions,
    dtype: str,
    head: str | None,
    revision: str | None,
    token: str | None,
    client: ClientConfig,
) -> None:
    """Talk to MODEL, a name on the Hugging Face hub, a folder or a GGUF file, whose blocks others serve.

    A model with a chat template holds a conversation; any other goes on with what is typed, line by line.

    Ctrl-C stops an answer, Ctrl-D leaves. In a pipe each line is a prompt; answers go to stdout, all else to stderr.

    Exit codes: 0 left, 1 an error that is printed, 2 wrong usage, 130 stopped by Ctrl-C in a pipe.
    """
    check_joins(network)
    screen = Screen(talkative=not quiet())
    calm_logging()
    from swarm.client.swarm import connect
    from swarm.models.ends.adapter_folder import put_adapter
    from swarm.models.loading.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model, token, revision)
    _ = checkpoint.config  # what is wrong with it is not to be told as the tokenizer's fault
    processor = processor_of(checkpoint) if images else None
    conversation = None if processor else Conversation(tokenizer_of(checkpoint), options.system)
    with connect(network.initial_peers, account=account.folder(), **chosen(network)) as swarm:
        loading = {"swarm": swarm, "dtype": dtype, "head": head, "token": token, "revision": revision, **asdict(client)}
        loaded = load_model(model, checkpoint, screen, loading, sees=processor is not None)
        if adapter is not None:
            put_adapter(loaded, adapter)
        screen.note(WARNING, always=True)
        if conversation is None:
            talk(SeeingResponder(loaded, processor, images, options, screen), screen)
        else:
            talk(Responder(loaded, conversation, options, screen), screen)


def chosen(network: NetworkConfig) -> dict[str, Any]:
    """What was said of how to join, beside through whom: to `connect` only what is otherwise than usual."""
    usual = NetworkConfig()
    given = {name: getattr(network, name) for name in ("host_maddrs", "announce_maddrs", "p2pd", "swarm_key")}
    said = {name: value for name, value in given.items() if value != getattr(usual, name)}
    return {"lan": network.lan, **said}


def calm_logging() -> None:
    """What the user should see of routes comes as notices; the log would say it twice, in the middle of a sentence."""
    if logging.getLogger("swarm").level > logging.DEBUG:
        logging.getLogger("swarm").setLevel(logging.ERROR)
        logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def load_model(
    model: str, checkpoint: Checkpoint, screen: Screen, options: dict[str, Any], *, sees: bool = False
) -> Any:
    """The part of the model that runs here. Raises what `from_pretrained` raises."""
    from swarm.client.model import DistributedModelForCausalLM, DistributedModelForImageTextToText

    screen.note(f"{checkpoint.name}: loading what is computed here")
    kind = DistributedModelForImageTextToText if sees else DistributedModelForCausalLM
    return kind.from_pretrained(
        model, progress=screen.talkative and sys.stderr.isatty(), on_notice=screen.hear, **options
    )


def talk(responder: Responder | SeeingResponder, screen: Screen) -> None:
    """Answer what is typed, until there is no more. Raises SwarmError: in a pipe any, else what cannot be mended."""
    terminal = sys.stdin.isatty()
    for text in lines(terminal):
        try:
            responder.answer(readable(text, "what was typed"))
        except KeyboardInterrupt:
            screen.end_line()
            if not terminal:
                sys.exit(130)
        except SwarmError as error:
            screen.end_line()
            if not terminal or isinstance(error, DaemonFailed):
                raise
            screen.note(f"error: {error}", always=True)


def lines(terminal: bool) -> Iterator[str]:
    """What is typed, or piped in, without empty lines."""
    while True:
        try:
            line = _typed() if terminal else sys.stdin.readline()
        except KeyboardInterrupt:
            if not terminal:
                sys.exit(130)
            click.echo()
            continue
        except EOFError:
            click.echo()
            return
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def _typed() -> str:
    """A line from a terminal, with the line editor where there is one; ends with a newline. Raises EOFError."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it once it is there
    return input("> ") + "\n"


if __name__ == "__main__":
    main()
