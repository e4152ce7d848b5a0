"""What the commands share: options, logging, and errors as one clear line. Imports nothing heavy."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from swarm._version import __version__
from swarm.config import CODEC_CHOICES, QUANTIZATIONS, ClientConfig, EdgeConfig, NetworkConfig
from swarm.errors import InvalidInput, SwarmError
from swarm.net.initial_peers import VARIABLE, initial_peers
from swarm.types import Span

Command = TypeVar("Command", bound=Callable[..., Any])

MULTIADDR = "MULTIADDR"
DTYPES = ("float32", "bfloat16", "float16")
SUBJECT = re.compile(r"session ([0-9a-f]{8}) \((\d+:\d+)\): ")


def network_options(command: Command) -> Command:
    """Options about joining the network, the same for every command."""
    options = (
        click.option(
            "--initial-peers",
            "-p",
            multiple=True,
            metavar=MULTIADDR,
            help=f"Whom to join through; repeat for several. Else {VARIABLE}, else the packaged list.",
        ),
        click.option(
            "--host-maddrs",
            multiple=True,
            metavar=MULTIADDR,
            help="Where to listen; by default TCP and QUIC, any port.",
        ),
        click.option(
            "--announce-maddrs",
            multiple=True,
            metavar=MULTIADDR,
            help="Where others should dial, if that is not where this peer listens (port forwarding).",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def folders(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes MODEL in a shell: a name on the hub is not known here, a folder is."""
    return [CompletionItem(incomplete, type="dir")]


def metrics_option(command: Command) -> Command:
    """Where Prometheus may look."""
    return click.option(
        "--metrics",
        callback=_place,
        metavar="[HOST:]PORT",
        help="Show metrics for Prometheus at http://HOST:PORT/metrics, HOST being 127.0.0.1 unless it is said.",
    )(command)


def _place(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    return None if value is None else place_of(context, parameter, value)


def place_of(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, int]:
    """Callback of an option that holds HOST:PORT, or a port of this machine's own."""
    host, _, port = value.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT, for instance 127.0.0.1:8000")
    return host.strip("[]") or "127.0.0.1", int(port)


def edge_options(command: Command) -> Command:
    """Where browsers can dial a peer."""
    options = (
        click.option(
            "--edge-maddrs",
            multiple=True,
            metavar=MULTIADDR,
            help="Where to listen for browsers: ending in /webrtc-direct, /quic-v1/webtransport or /ws; repeat for "
            "several. By default all three, at the ports after that of --host-maddrs.",
        ),
        click.option(
            "--edge-announce-maddrs",
            multiple=True,
            metavar=MULTIADDR,
            help="Where browsers should dial, if that is not where this peer listens; without hashes and peer id.",
        ),
        click.option("--no-edge", is_flag=True, help="Do not listen for browsers."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def edge_config(maddrs: Sequence[str], announce: Sequence[str], off: bool, network: NetworkConfig) -> EdgeConfig | None:
    """What `edge_options` ask for, and the rest from how the peer itself listens; None: no edge."""
    if off:
        return None
    return EdgeConfig(
        host_maddrs=tuple(maddrs) or edge_beside(network.host_maddrs),
        announce_maddrs=tuple(announce),
        identity_path=network.identity_path,
    )


def edge_beside(host_maddrs: Sequence[str]) -> tuple[str, ...]:
    """Where to listen for browsers beside a peer: its first ip, and the ports after its first (any after 0)."""
    match = next(filter(None, (re.match(r"/(ip[46]/[^/]+)/(?:tcp|udp)/(\d+)", a) for a in host_maddrs)), None)
    ip, port = (match[1], int(match[2])) if match else ("ip4/0.0.0.0", 0)
    one, two = (port + 1, port + 2) if 0 < port < 65534 else (0, 0)
    return f"/{ip}/udp/{one}/webrtc-direct", f"/{ip}/udp/{two}/quic-v1/webtransport", f"/{ip}/tcp/{one}/ws"


def model_options(command: Command) -> Command:
    """Which version of a model, and with whose permission."""
    command = click.option(
        "--revision", help="Branch, tag or commit of the model; everybody in a swarm must use the same commit."
    )(command)
    return click.option(
        "--token",
        envvar="HF_TOKEN",
        help="Access token of the Hugging Face hub; else HF_TOKEN, else the one saved by its login.",
    )(command)


def client_options(command: Command) -> Command:
    """Which servers are used, and how. The command gets `dtype`, and the rest as `client`, a ClientConfig."""

    @functools.wraps(command)
    def wrapped(*args: Any, quantization: str, codec: str, max_wait: float | None, **kwargs: Any) -> Any:
        client = ClientConfig(quantization=quantization, codec=codec, max_wait=max_wait)
        return command(*args, client=client, **kwargs)

    options = (
        click.option(
            "--dtype",
            type=click.Choice(("auto", *DTYPES)),
            default="auto",
            help="That of the servers; auto: the checkpoint's.",
        ),
        click.option(
            "--quantization",
            type=click.Choice(QUANTIZATIONS),
            default="none",
            help="That of the servers: only those that compute with it are used.",
        ),
        click.option(
            "--codec",
            type=click.Choice(CODEC_CHOICES),
            default="raw",
            help="How hidden states travel: exactly (raw), as 8-bit integers (int8: a quarter to a half of the bytes, "
            "about half a percent off), or so on slow links only (auto).",
        ),
        click.option(
            "--max-wait",
            type=click.FloatRange(min=0),
            metavar="SECONDS",
            help="How long to wait for blocks that nobody serves; by default for ever.",
        ),
    )
    wrapping: Any = wrapped
    for option in reversed(options):
        wrapping = option(wrapping)
    return wrapping  # type: ignore[no-any-return]


def identity_option(command: Command) -> Command:
    """Where the private key of this peer is kept."""
    return click.option(
        "--identity-path",
        type=click.Path(dir_okay=False),
        help="File of the private key; made when missing. By default one per user and command.",
    )(command)


def verbosity_options(command: Command) -> Command:
    """-v, -q, --log-json and --version. Sets up logging, and turns SwarmError into a line and exit code 1."""

    @functools.wraps(command)
    def wrapped(*args: Any, verbose: int, quiet: bool, log_json: bool, **kwargs: Any) -> Any:
        start_logging(verbose, quiet, as_json=log_json)
        try:
            return command(*args, **kwargs)
        except SwarmError as error:
            if verbose:
                logging.getLogger("swarm").error("failed", exc_info=error)
            click.echo(f"error: {error}", err=True)
            sys.exit(1)

    wrapped = click.version_option(__version__, prog_name="swarm")(wrapped)
    wrapped = click.option("--log-json", is_flag=True, help="Log one JSON object a line.")(wrapped)
    wrapped = click.option("-q", "--quiet", is_flag=True, help="Warnings and errors only; no progress bars.")(wrapped)
    return click.option(  # type: ignore[return-value]
        "-v", "--verbose", count=True, help="More of what happens, and tracebacks; -vv for debugging."
    )(wrapped)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (unix seconds), level, logger, message, and `error` with a traceback.

    What our messages say of sessions and spans at their beginning, `session 1a2b3c4d (0:8): …`, is told apart, too.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        message = record.getMessage()
        fields: dict[str, Any] = {"time": record.created, "level": record.levelname.lower(), "logger": record.name}
        subject = SUBJECT.match(message)
        if subject is not None:
            fields |= {"session": subject[1], "span": subject[2]}
        fields["message"] = message
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def start_logging(verbose: int, quiet: bool, *, as_json: bool = False) -> None:
    """Log to stderr: warnings with -q, what matters by default, more with -v; other libraries one step quieter."""
    level = logging.WARNING if quiet else (logging.INFO, logging.DEBUG)[min(verbose, 1)]
    logging.basicConfig(
        stream=sys.stderr, level=logging.DEBUG if verbose > 1 else logging.WARNING, format="%(asctime)s %(message)s"
    )
    logging.getLogger("swarm").setLevel(level)
    if as_json:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())


def quiet() -> bool:
    """Whether -q was given."""
    return logging.getLogger("swarm").level >= logging.WARNING


def progress_bars() -> bool:
    """Whether somebody sees progress bars: not in a log, not with -q."""
    return sys.stderr.isatty() and not quiet()


def span_of(context: click.Context, parameter: click.Parameter, value: str | None) -> Span | None:
    """Callback of an option that holds a span such as 10:20."""
    try:
        return None if value is None else Span.parse(value)
    except InvalidInput as error:
        raise click.BadParameter(str(error), context, parameter) from error


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def size_of(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that holds a number of bytes such as 500MB or 12GiB."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write it as 500MB or 12GiB", context, parameter)
    power = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def network_config(
    peers: Sequence[str], host_maddrs: Sequence[str], announce_maddrs: Sequence[str], identity_path: str | None = None
) -> NetworkConfig:
    """The defaults, with what was given put in their place. Raises InvalidInput for a broken address."""
    config = NetworkConfig(initial_peers=initial_peers(peers), identity_path=identity_path)
    given = {"host_maddrs": tuple(host_maddrs), "announce_maddrs": tuple(announce_maddrs)}
    return replace(config, **{name: value for name, value in given.items() if value})  # type: ignore[arg-type]


def best_first(addresses: Sequence[str]) -> list[str]:
    """Multiaddrs in the order in which a stranger should try them: public, local network, this machine, relayed.

    Among equals TCP comes first: every implementation speaks it.
    """
    return sorted(addresses, key=lambda address: (_distance(address), "/tcp/" not in address, "/ws" in address))


def _distance(address: str) -> int:
    if "/p2p-circuit" in address:
        return 3
    match = re.match(r"/ip[46]/([^/]+)", address)
    if match is None:
        return 0
    ip = ipaddress.ip_address(match[1])
    return 2 if ip.is_loopback else 1 if ip.is_private or ip.is_link_local else 0


def on_signals(leave: Callable[[], None]) -> None:
    """The first SIGINT or SIGTERM calls `leave`; a second one ends the process at once, with exit code 128 + signal."""
    loop, asked = asyncio.get_running_loop(), False

    def handle(number: int) -> None:
        nonlocal asked
        if asked:
            os._exit(128 + number)
        asked = True
        leave()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle, number)


def write_atomically(path: Path, text: str) -> None:
    """Who waits for the file never reads half of it."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
