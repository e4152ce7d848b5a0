"""What swarm-chat shows, and where: answers as they come, and beside them what happens meanwhile."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from swarm.models.texts import Detokenizer

if TYPE_CHECKING:
    from swarm.client.session import Notice


class Screen:
    """Answers on stdout; on stderr, each on a line of its own, what happens meanwhile. For any thread."""

    def __init__(self, *, talkative: bool = True) -> None:
        self.talkative = talkative
        self._lock = threading.RLock()
        self._inside = False

    def write(self, text: str) -> None:
        """A part of an answer."""
        with self._lock:
            click.echo(text, nl=False)
            sys.stdout.flush()
            self._inside = not text.endswith("\n") if text else self._inside

    def end_line(self) -> None:
        """Whatever comes next begins a line."""
        with self._lock:
            if self._inside:
                self.write("\n")

    def note(self, text: str, *, always: bool = False) -> None:
        """Something that is no answer; with -q only what is said `always`."""
        if not (self.talkative or always):
            return
        with self._lock:
            if self._inside and sys.stdout.isatty():
                self.write("\n")
            # An answer goes on though nobody can be told what happens meanwhile.
            with contextlib.suppress(OSError):
                click.secho(f"[{text}]", dim=True, err=True)

    def hear(self, notice: Notice) -> None:
        """A route, a reroute, or waiting."""
        text = notice.text if notice.kind == "waiting" else f"{notice.kind} {notice.text}"
        self.note(text, always=notice.kind == "waiting")


class Streamer:
    """A streamer of `generate`: hands on text as soon as its characters are whole, and notes when tokens came."""

    def __init__(self, decode: Callable[[Sequence[int]], str], write: Callable[[str], None]) -> None:
        self.decode = decode
        self.write = write
        self.text = ""
        self.times = [time.perf_counter()]
        self._detokenizer: Detokenizer | None = None

    def put(self, value: Any) -> None:
        """Called by the library with the prompt, then with every token."""
        ids = value.flatten().tolist()
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(self.decode, ids)
            return
        self.times.append(time.perf_counter())
        for token in ids:
            self._write(self._detokenizer.add(token))

    def end(self) -> None:
        """Called by the library at the end."""
        if self._detokenizer is not None:
            self._write(self._detokenizer.end())

    def _write(self, text: str) -> None:
        if text:
            self.text += text
            self.write(text)

    def speed(self) -> str:
        """How many tokens came, and how fast."""
        count = len(self.times) - 1
        if count == 0:
            return "no tokens"
        first, rest = self.times[1] - self.times[0], self.times[-1] - self.times[1]
        rate = f"{(count - 1) / rest:.1f} tokens/s, " if count > 1 and rest > 0 else ""
        return f"{count} token{'s' * (count > 1)}, {rate}{first:.2f} s to the first"
