"""What is the same for all commands: how they are told to be loud, and how they fail."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from swarm._version import __version__
from swarm.cli import streams
from swarm.cli.extras import how_to_have
from swarm.cli.logs import start_logging
from swarm.errors import DaemonFailed, InvalidInput, SwarmError

log = logging.getLogger("swarm")


class Command(click.Command):
    """A command with -v, -q, --log-json and --version, which never shows a traceback unless it is asked for one.

    Whatever goes wrong is one line and exit code 1; 130 after Ctrl-C; 141, without a word, where nobody reads stdout
    any more (128 + SIGPIPE, as shells have it).
    """

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

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command as a process."""
        streams.prepare()
        with _terminated_politely(), _written():
            return super().main(*args, **kwargs)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line. What is no text is wrong usage, but for paths, which need not be text."""
        with _written(), _told(verbose=0):
            rest = super().parse_args(ctx, args)
        for parameter in self.get_params(ctx):
            if parameter.name in ctx.params and isinstance(parameter.type, click.types.StringParamType):
                ctx.params[parameter.name] = _texts(ctx, parameter, ctx.params[parameter.name])
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and end the process in a way that its user understands."""
        verbose = ctx.params.pop("verbose")
        start_logging(verbose, ctx.params.pop("quiet"), as_json=ctx.params.pop("log_json"))
        with _written(), _told(verbose):
            return super().invoke(ctx)


@contextlib.contextmanager
def _told(verbose: int) -> Iterator[None]:
    """Whatever goes wrong in the block ends the process with a line."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(err=True)
        sys.exit(128 + signal.SIGINT)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if streams.broken() is None:
            fail(error, verbose)
        raise


def fail(error: Exception, verbose: int) -> NoReturn:
    """End the process with one line about what went wrong."""
    said = cause(error)
    if verbose:
        log.error("failed", exc_info=error)
    hint = "" if verbose else hint_of(said)
    with contextlib.suppress(OSError):
        click.echo(f"error: {shown(words(said))}{hint}", err=True)
    sys.exit(1)


def hint_of(error: Exception) -> str:
    """What -v would show of it."""
    if isinstance(error, DaemonFailed):
        return " (-v shows what it said)" if error.details else ""
    return "" if isinstance(error, SwarmError | OSError | ModuleNotFoundError) else " (-v shows where)"


def shown(text: str) -> str:
    """Text that may hold what somebody else wrote, without the characters that a terminal obeys."""
    return "".join(each if each.isprintable() or each == "\n" else f"\\x{ord(each):02x}" for each in text)


def cause(error: Exception) -> Exception:
    """What went wrong, where several tasks ended by it: our own error rather than another."""
    while isinstance(error, ExceptionGroup):
        error = min(error.exceptions, key=lambda each: not isinstance(each, SwarmError | ExceptionGroup))
    return error


def words(error: Exception) -> str:
    """An error for people: ours say what to do, those of the system what it was about, others what they are."""
    if isinstance(error, SwarmError):
        return error.message if isinstance(error, DaemonFailed) else str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ModuleNotFoundError) and (hint := how_to_have(error.name)):
        return hint
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _terminated_politely() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that sessions and the network are left; commands may do better."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Whatever ends the block: when stdout cannot be written, that is how the process ends."""
    try:
        yield
    finally:
        error = streams.broken()
        if error is not None:
            streams.abandon()
            if error.errno == errno.EPIPE:
                sys.exit(128 + signal.SIGPIPE)
            with contextlib.suppress(OSError):
                click.echo(f"error: the output cannot be written: {error.strerror}", err=True)
            sys.exit(1)


def _texts(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_texts(ctx, parameter, each) for each in value)
    try:
        return streams.readable(value, "it") if isinstance(value, str) else value
    except InvalidInput as error:
        raise click.BadParameter(str(error), ctx, parameter) from None


def _version_option() -> click.Parameter:
    @click.version_option(__version__, prog_name="swarm")
    def nothing() -> None: ...

    (option,) = nothing.__click_params__  # type: ignore[attr-defined]
    return option  # type: ignore[no-any-return]
