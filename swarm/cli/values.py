"""How what is typed is read: types of options, each of which refuses in a line what it cannot mean."""

from __future__ import annotations

import math
import re
from typing import Any

import click

from swarm.cli.streams import readable
from swarm.errors import InvalidInput
from swarm.types import Span, check_name

MOST = 2**53
"""No count that a user passes is larger: torch, JSON and Prometheus hold those up to here exactly."""
MOST_THREADS = 4096

COUNT = click.IntRange(min=1, max=MOST)
THREADS = click.IntRange(min=1, max=MOST_THREADS)
SHARE = click.FloatRange(min=0.0, max=1.0, min_open=True)
SEED = click.IntRange(min=0, max=MOST)

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_HOST = r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\]|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*"
_ADAPTER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_PLACE = re.compile(rf"(?:(?P<host>{_HOST})?:)?(?P<port>[0-9]{{1,5}})")


class Seconds(click.FloatRange):
    """A time; "nan" and "inf" are none."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Raises click.BadParameter."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds; leave the option out to wait for ever", param, ctx)
        return seconds


class Name(click.types.StringParamType):
    """What others are shown beside a peer."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Raises click.BadParameter."""
        try:
            text = readable(str(value), "it")
        except InvalidInput as error:
            self.fail(str(error), param, ctx)
        try:
            return check_name(text)
        except InvalidInput as error:
            self.fail(str(error), param, ctx)


def place_of(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Callback of an option that holds HOST:PORT, or a port of this machine's own."""
    if value is None:
        return None
    match = _PLACE.fullmatch(value)
    if match is None or int(match["port"]) > 65535:
        raise click.BadParameter(f"{value!r} is not HOST:PORT, for instance 127.0.0.1:8000", context, parameter)
    return (match["host"] or "127.0.0.1").strip("[]"), int(match["port"])


def adapters_of(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Callback of an option that holds NAME=FOLDER, several times."""
    found: dict[str, str] = {}
    for value in values:
        name, _, folder = value.partition("=")
        if not _ADAPTER.fullmatch(name) or not folder:
            words = "is not NAME=FOLDER, with a name of up to 64 letters, digits and ._-"
            raise click.BadParameter(f"{value!r} {words}", context, parameter)
        if name in found:
            raise click.BadParameter(f"there are two adapters {name!r}", context, parameter)
        found[name] = folder
    return found


def span_of(context: click.Context, parameter: click.Parameter, value: str | None) -> Span | None:
    """Callback of an option that holds a span such as 10:20."""
    try:
        return None if value is None else Span.parse(value)
    except InvalidInput as error:
        raise click.BadParameter(str(error), context, parameter) from error


def size_of(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of an option that holds a number of bytes such as 500MB or 12GiB."""
    if value is None:
        return None
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write it as 500MB or 12GiB", context, parameter)
    power = "kmgt".index(match[2].lower()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
