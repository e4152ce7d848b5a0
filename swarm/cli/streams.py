"""The terminals, files or pipes that a command talks through: of whatever encoding, though they be full or closed."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator

from swarm.errors import InvalidInput


class Output(io.TextIOWrapper):
    """Text that goes out, and why it could not: what failed once is dropped, and a later flush does not say so."""

    error: OSError | None = None

    def write(self, text: str) -> int:
        """As of any stream."""
        with self._remembering():
            return super().write(text)

    def flush(self) -> None:
        """As of any stream."""
        with self._remembering():
            super().flush()

    @contextlib.contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = error
            raise


def prepare() -> None:
    """What the other end's encoding has no character for is written as an escape, and never raises.

    ASCII says no more than that nobody chose an encoding: UTF-8 then, as Python itself does in the C locale. What is
    typed is read as it comes; `readable` tells what was no text. A stream that was closed before is a void.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else stream.encoding
            stream.reconfigure(encoding=encoding, errors="surrogateescape" if name == "stdin" else "backslashreplace")
    stdout = sys.stdout
    if stdout is sys.__stdout__ and isinstance(stdout, io.TextIOWrapper):
        how = {"encoding": stdout.encoding, "errors": stdout.errors, "line_buffering": stdout.line_buffering}
        sys.stdout = sys.__stdout__ = Output(stdout.detach(), **how)  # type: ignore[misc, arg-type]


def readable(text: str, what: str) -> str:
    """Text that came from outside, if it is text. Raises InvalidInput for bytes that are none; `what` names them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # In a C locale even what is fine comes as escaped bytes.
        try:
            return os.fsencode(text).decode()
        except UnicodeError:
            raise InvalidInput(f"{what} is not text in UTF-8: convert it, for instance with iconv") from None
    return text


def broken() -> OSError | None:
    """Why what was written to stdout did not get there; None: it is there."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return getattr(sys.stdout, "error", None)


def abandon() -> None:
    """Write to stdout no more, not even what waits to be written at the end of the process."""
    with contextlib.suppress(OSError, ValueError):
        void = os.open(os.devnull, os.O_WRONLY)
        os.dup2(void, sys.stdout.fileno())
        os.close(void)
    if isinstance(sys.stdout, Output):
        sys.stdout.error = None
