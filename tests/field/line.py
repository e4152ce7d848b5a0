"""A line with delay, loss and a rate: a pair of TAP devices with a process between them. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pickle
import random
import select
import signal
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """Both directions of an access line: seconds and bits per second (None: no limit). `loss` of packets in each
    direction; packets above `mtu` bytes (IP) vanish without a word; `buffer`: seconds of queue before the tail drops.
    `up` is what the host or router sends."""

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    up: float | None = None
    down: float | None = None
    mtu: int | None = None
    buffer: float = 0.2


def possible() -> str | None:
    """Why lines cannot be made here, or None."""
    return None if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "/dev/net/tun cannot be opened"


def tap(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        end, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000)
    )  # TUNSETIFF, TAP without headers
    return end


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Way:
    """One direction."""

    def __init__(self, source: int, target: int, line: Line, rate: float | None, seed: int) -> None:
        self.source, self.target, self.line, self.rate = source, target, line, rate
        self.free = self.last = 0.0
        self.queue: deque[tuple[float, bytes]] = deque()
        self.random = random.Random(seed)

    def change(self, line: Line, rate: float | None) -> None:
        self.line, self.rate, self.free = line, rate, 0.0

    def take(self, now: float) -> None:
        line = self.line
        for _ in range(64):
            try:
                frame = os.read(self.source, 65536)
            except OSError:
                return
            if line.mtu and len(frame) > line.mtu + 14:
                continue
            free = max(now, self.free)
            if self.rate:
                if free - now > line.buffer:
                    continue
                free += len(frame) * 8 / self.rate
            self.free = free
            if line.loss and self.random.random() < line.loss:
                continue
            jitter = self.random.uniform(-line.jitter, line.jitter) if line.jitter else 0.0
            self.last = max(self.last, free + line.delay + jitter)
            self.queue.append((self.last, frame))

    def give(self, now: float) -> None:
        while self.queue and self.queue[0][0] <= now:
            with contextlib.suppress(OSError):
                os.write(self.target, self.queue.popleft()[1])


def start(mine: int, theirs: int, line: Line) -> Shaper:
    """Carry frames between two TAP devices in a process of its own, which takes both over."""
    control, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        try:
            control.close()
            _shape(mine, theirs, line, told)
        finally:
            os._exit(0)
    told.close()
    for end in (mine, theirs):
        os.close(end)
    return Shaper(pid, control)


@dataclass(frozen=True)
class Shaper:
    """The process that a line is."""

    pid: int
    control: socket.socket

    def change(self, line: Line) -> None:
        """From now on it is another line; what is under way arrives as it was to."""
        self.control.send(pickle.dumps(line))

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.control.close()


def _shape(mine: int, theirs: int, line: Line, told: socket.socket) -> None:
    up, down = ways = _Way(mine, theirs, line, line.up, 1), _Way(theirs, mine, line, line.down, 2)
    sources = {mine: up, theirs: down}
    clock = time.monotonic
    while True:
        due = min((way.queue[0][0] for way in ways if way.queue), default=None)
        patience = None if due is None else max(0.0, due - clock())
        readable, _, _ = select.select([*sources, told], [], [], patience)
        if told in readable:
            changed = pickle.loads(told.recv(4096))
            up.change(changed, changed.up)
            down.change(changed, changed.down)
        now = clock()
        for end in readable:
            if end in sources:
                sources[end].take(now)
        now = clock()
        for way in ways:
            way.give(now)
