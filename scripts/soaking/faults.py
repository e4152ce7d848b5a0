"""What happens while a soak runs, and what mends it again."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

log = logging.getLogger(__name__)

PAUSE = (2.0, 8.0)
"""Seconds between two faults."""
LASTS = (3.0, 20.0)
"""Seconds until what was hit is mended."""

Mend = Callable[[], None]


@dataclass(frozen=True)
class Kind:
    """A fault. `weight`: how often beside the others; `targets`: whom it hits, one of them that is `up`; `happen`
    returns what mends it after so many seconds as `lasts` says, or None where it passes by itself."""

    weight: int
    targets: Sequence[str]
    happen: Callable[[str], Mend | None]
    lasts: tuple[float, float] = LASTS
    up: Callable[[str], bool] = lambda name: True


class Faults:
    """`count`: how often each kind has happened."""

    def __init__(
        self, kinds: dict[str, Kind], rng: random.Random, now: Callable[[], float] = time.monotonic, both: int = 2
    ) -> None:
        self.kinds = kinds
        self.random = rng
        self.count = Counter[str]()
        self._now = now
        self._both = both
        self._mending: list[tuple[float, str, Mend]] = []

    def next(self) -> None:
        """Mend what is due, and let something happen, now and then two things at once."""
        now = self._now()
        self._mend([each for each in self._mending if each[0] <= now])
        weights = [kind.weight for kind in self.kinds.values()]
        chances = self.random.choices([1, 2], [sum(weights), self._both])[0]
        for name in self.random.choices([*self.kinds], weights, k=chances):
            self._hit(name)

    def _hit(self, name: str) -> None:
        kind = self.kinds[name]
        down = {target for _, target, _ in self._mending}
        up = [target for target in kind.targets if target not in down and kind.up(target)]
        if not up:
            return
        target = self.random.choice(up)
        self.count[name] += 1
        log.info("%s: %s", name, target)
        mend = kind.happen(target)
        if mend is not None:
            self._mending.append((self._now() + self.random.uniform(*kind.lasts), target, mend))

    def _mend(self, due: list[tuple[float, str, Mend]]) -> None:
        self._mending = [each for each in self._mending if each not in due]
        for _, target, mend in due:
            log.info("mended: %s", target)
            mend()

    def restore(self) -> None:
        """Mend everything."""
        self._mend(self._mending)


class Members(Protocol):
    """Processes by name, on this machine or in homes."""

    processes: dict[str, subprocess.Popen[bytes]]

    def is_online(self, name: str) -> bool:
        """Whether a server has said that it serves, since it was started."""

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone."""


class Servers:
    """Servers and what happens to them. `start` starts one again; `gave_up`: how many ended that nobody had told to, as
    where no initial peer answers at their start, and were started again, as a supervisor does."""

    def __init__(self, members: Members, names: Sequence[str], start: Callable[[str], None]) -> None:
        self.gave_up = 0
        self._members = members
        self._names = names
        self._start = start
        self._told: set[str] = set()

    def tend(self) -> None:
        """Start again who has given up."""
        for name in self._names:
            if name not in self._told and self._members.processes[name].poll() is not None:
                log.info("gave up, and is started again: %s", name)
                self.gave_up += 1
                self._start(name)

    def kinds(self) -> dict[str, Kind]:
        """Who is started again and again before it serves says nothing of who uses it: only who is online is hit."""
        kinds = {"SIGKILL": (4, self._killed), "SIGSTOP": (3, self._frozen), "SIGTERM": (3, self._asked)}
        up = self._members.is_online
        return {name: Kind(weight, self._names, happen, up=up) for name, (weight, happen) in kinds.items()}

    def _killed(self, name: str) -> Mend:
        self._told.add(name)
        self._members.kill(name)
        return partial(self._again, name)

    def _frozen(self, name: str) -> Mend:
        process = self._members.processes[name]
        process.send_signal(signal.SIGSTOP)
        return partial(process.send_signal, signal.SIGCONT)

    def _asked(self, name: str) -> Mend:
        self._told.add(name)
        self._members.processes[name].send_signal(signal.SIGTERM)
        return partial(self._again, name)

    def _again(self, name: str) -> None:
        process = self._members.processes.pop(name, None)
        if process is not None:  # it was asked to leave, and may still hand its sessions on
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._start(name)
        self._told.discard(name)
