"""What is the same for all commands: how they are told to be loud, and how they fail."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from swarm._version import __version__
from swarm.cli.logs import start_logging
from swarm.errors import SwarmError


class Command(click.Command):
    """A command with -v, -q, --log-json and --version. A SwarmError is one line and exit code 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.context_settings = {"help_option_names": ["-h", "--help"]}
        self.params += [
            click.Option(
                ["-v", "--verbose"], count=True, help="More of what happens, and tracebacks; -vv for debugging."
            ),
            click.Option(["-q", "--quiet"], is_flag=True, help="Warnings and errors only; no progress bars."),
            click.Option(["--log-json"], is_flag=True, help="Log one JSON object a line."),
            _version_option(),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and end the process in a way that its user understands."""
        verbose = ctx.params.pop("verbose")
        start_logging(verbose, ctx.params.pop("quiet"), as_json=ctx.params.pop("log_json"))
        try:
            return super().invoke(ctx)
        except SwarmError as error:
            if verbose:
                logging.getLogger("swarm").error("failed", exc_info=error)
            click.echo(f"error: {error}", err=True)
            sys.exit(1)


def _version_option() -> click.Parameter:
    @click.version_option(__version__, prog_name="swarm")
    def nothing() -> None: ...

    (option,) = nothing.__click_params__  # type: ignore[attr-defined]
    return option  # type: ignore[no-any-return]
