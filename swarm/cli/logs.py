"""Logging to stderr, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

SUBJECTS = ("session", "span", "peer")
"""What a line may be about, as it is given to a logger in `extra`."""


class JsonLines(logging.Formatter):
    """One JSON object a line: time (unix seconds), level, logger, message, and `error` with a traceback.

    What the line is about comes with it: session, span and peer, as far as `extra` says.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, Any] = {"time": record.created, "level": record.levelname.lower(), "logger": record.name}
        fields |= {name: record.__dict__[name] for name in SUBJECTS if name in record.__dict__}
        fields["message"] = record.getMessage()
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


class Lines(logging.Formatter):
    """A line for people, which names an error; its traceback is for those who asked for more."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__("%(asctime)s %(message)s")
        self.tracebacks = tracebacks

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, or what it ends with."""
        return super().formatException(ei) if self.tracebacks else f"  {ei[0].__name__}: {ei[1]}"


def start_logging(verbose: int, quiet: bool, *, as_json: bool = False) -> None:
    """Log to stderr: warnings with -q, what matters by default, more with -v; other libraries one step quieter."""
    level = logging.WARNING if quiet else (logging.INFO, logging.DEBUG)[min(verbose, 1)]
    ours = logging.StreamHandler(sys.stderr)
    ours.setFormatter(Lines(tracebacks=verbose > 0))
    logging.basicConfig(handlers=[ours], level=logging.DEBUG if verbose > 1 else logging.WARNING)
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
