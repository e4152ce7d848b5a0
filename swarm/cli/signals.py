"""What SIGINT and SIGTERM do to a command that runs until it is told to leave."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable


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
