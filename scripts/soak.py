"""Real processes under random faults, for as long as you like; prints a table of what came of it."""

from __future__ import annotations

import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from swarm.demo.local_swarm import LocalSwarm

MODEL = Path(__file__).parent.parent / "models" / "tiny-llama"
SPANS = {"a1": "0:3", "a2": "0:3", "b1": "3:6", "b2": "3:6", "c1": "6:8", "c2": "6:8"}
FAULTS = {"SIGKILL": 4, "SIGSTOP": 3, "SIGTERM": 3, "bootstrap restarted": 1, "two at once": 2}
"""What happens, and how often beside the others."""
PAUSE = (2.0, 8.0)
"""Seconds between two faults."""
HUNG = 240.0
"""Seconds after which a generation is taken never to end: longer than any block is without a server here."""
WARM = 0.25
"""Of the time; what is held by then is not growth."""


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--clients", default=2, show_default=True, help="That generate at a time.")
@click.option("--seed", type=int, help="Of the faults and prompts; when they come depends on the machine.")
def main(minutes: float, clients: int, seed: int | None) -> None:
    """Six servers of the tiny model, each block twice, under SIGKILL, SIGSTOP and SIGTERM; every answer is compared
    with plain transformers' on the same weights. Exits 1 if one is wrong or hangs, or if something is left over."""
    import torch
    from transformers import AutoModelForCausalLM

    from swarm import connect

    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    seed = random.randrange(1 << 32) if seed is None else seed
    own = tempfile.TemporaryDirectory(prefix="soak-")
    os.environ["TMPDIR"] = tempfile.tempdir = own.name  # what others put there is not counted
    local = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with LocalSwarm(MODEL) as processes:
        processes.start_bootstrap()
        for name, blocks in SPANS.items():
            processes.start_server(name, blocks)
        processes.wait_until_online(*SPANS)
        with connect([processes.peer]) as swarm:
            work = Work(local, swarm, time.monotonic() + minutes * 60)
            threads = [threading.Thread(target=work.run, args=(seed + place,)) for place in range(clients)]
            for thread in threads:
                thread.daemon = True
                thread.start()
            faults = Faults(processes, random.Random(seed))
            while time.monotonic() < work.end:
                time.sleep(faults.random.uniform(*PAUSE))
                faults.next()
                work.look()
            faults.restore()
            for thread in threads:
                thread.join(HUNG)
            hung = sum(thread.is_alive() for thread in threads)
        kept = list(processes.processes.values())
    sweep()
    left = sorted(path.name for path in Path(own.name).iterdir() if not path.name.startswith("torchinductor_"))
    running = [process.pid for process in kept if psutil.pid_exists(process.pid)]
    lines = [
        ("seed", seed),
        ("generations", work.right + work.wrong),
        ("tokens", work.tokens),
        ("faults", ", ".join(f"{count} × {name}" for name, count in sorted(faults.count.items()))),
        ("told", ", ".join(f"{count} × {kind}" for kind, count in sorted(work.notices.items()))),
        ("longest generation", f"{work.longest:.0f} s"),
        ("wrong", work.wrong),
        ("failed", ", ".join(f"{count} × {name}" for name, count in work.failed.items()) or 0),
        ("hung", hung),
        ("client: growth of memory", f"{work.growth(0) / 1e6:.1f} MB"),
        ("client: growth of descriptors", f"{work.growth(1):.0f}"),
        ("client: growth of threads", f"{work.growth(2):.0f}"),
        ("files left over", ", ".join(left) or 0),
        ("processes left over", ", ".join(map(str, running)) or 0),
    ]
    width = max(len(name) for name, _ in lines)
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in lines))
    sys.exit(bool(work.wrong or work.failed or hung or left or running))


def sweep() -> None:
    """Start a peer and let it leave: who starts removes what those left who were killed."""
    with LocalSwarm(MODEL) as processes:
        processes.start_bootstrap()
        processes.signal("bootstrap", signal.SIGTERM)
        processes.processes["bootstrap"].wait(60)


@dataclass
class Work:
    """Generations, compared; `end`: when no further one is begun, by the monotonic clock."""

    local: Any
    swarm: Any
    end: float
    right: int = 0
    wrong: int = 0
    tokens: int = 0
    notices: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, seed: int) -> None:
        """Generate until the end; what escapes is counted."""
        try:
            self.generate(seed)
        except Exception as error:
            traceback.print_exc()
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self.failed[f"{type(error).__name__}: {error}"[:200]] += 1

    def generate(self, seed: int) -> None:
        """One after the other, each in another way."""
        import torch

        from swarm import DistributedLlama

        rng = random.Random(seed)
        model = DistributedLlama.from_pretrained(
            str(MODEL), swarm=self.swarm, dtype="float32", progress=False, on_notice=self._noted
        )
        while time.monotonic() < self.end:
            ids = torch.tensor([[rng.randrange(3, 2000) for _ in range(rng.randrange(2, 60))]] * rng.choice((1, 1, 2)))
            options = {"max_new_tokens": rng.randrange(8, 96), "do_sample": False, "pad_token_id": 0}
            options |= rng.choice(({}, {}, {"num_beams": 2}))
            ways = {} if "num_beams" in options or len(ids) > 1 else rng.choice(({}, {"speculation": "ngram"}))
            began = time.monotonic()
            try:
                found = model.generate(ids, attention_mask=torch.ones_like(ids), **options, **ways)
            except Exception as error:
                self._fail(error)
                continue
            took = time.monotonic() - began
            with self._lock:
                right = self.local.generate(ids, attention_mask=torch.ones_like(ids), **options)
                same = torch.equal(found, right)
                self.right += same
                self.wrong += not same
                self.tokens += found.numel() - ids.numel()
                self.longest = max(self.longest, took)
                if not same:
                    print(f"WRONG: {ids.tolist()} {options} {ways}: {found.tolist()}", flush=True)

    def _noted(self, notice: Any) -> None:
        with self._lock:
            self.notices[notice.kind] += 1

    def look(self) -> None:
        """Note what this process holds."""
        me = psutil.Process()
        self.samples.append((me.memory_info().rss, me.num_fds(), me.num_threads()))

    def growth(self, what: int) -> float:
        """Of a number in `samples`, from when it was warm to the end, by medians of a quarter each."""
        values = [sample[what] for sample in self.samples]
        quarter = max(len(values) // 4, 1)
        warm = int(len(values) * WARM)
        return statistics.median(values[-quarter:]) - statistics.median(values[warm : warm + quarter])


class Faults:
    """What happens to the processes, and what mends it again."""

    def __init__(self, processes: LocalSwarm, rng: random.Random) -> None:
        self.processes = processes
        self.random = rng
        self.count = Counter[str]()
        self._mending: list[tuple[float, str, Callable[[], None]]] = []

    def next(self) -> None:
        """Mend what is due, and let something happen."""
        now = time.monotonic()
        due = [each for each in self._mending if each[0] <= now]
        self._mending = [each for each in self._mending if each[0] > now]
        for _, _, mend in due:
            mend()
        kind = self.random.choices([*FAULTS], [*FAULTS.values()])[0]
        if kind == "two at once":
            for single in self.random.sample(["SIGKILL", "SIGSTOP", "SIGTERM"], 2):
                self._hit(single)
        elif kind == "bootstrap restarted":
            self._restart_bootstrap()
        else:
            self._hit(kind)

    def _hit(self, kind: str) -> None:
        down = {name for _, name, _ in self._mending}
        up = [name for name in SPANS if name not in down]
        if not up:
            return
        name = self.random.choice(up)
        self.count[kind] += 1
        if kind == "SIGSTOP":
            self.processes.signal(name, signal.SIGSTOP)
            self._later(name, lambda: self.processes.signal(name, signal.SIGCONT))
            return
        if kind == "SIGTERM":
            self.processes.signal(name, signal.SIGTERM)
            self._later(name, lambda: self._start_again(name))
            return
        self.processes.kill(name)
        self._later(name, lambda: self._start_again(name))

    def _start_again(self, name: str) -> None:
        process = self.processes.processes.pop(name, None)
        if process is not None:  # it was asked to leave, and may still hand its sessions on
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.start_server(name, SPANS[name])

    def _restart_bootstrap(self) -> None:
        self.count["bootstrap restarted"] += 1
        self.processes.kill("bootstrap")
        port = self.processes.peer.split("/")[4]
        (self.processes.folder / "addresses").unlink(missing_ok=True)
        self.processes.start_bootstrap("--host-maddrs", f"/ip4/127.0.0.1/tcp/{port}")

    def _later(self, name: str, mend: Callable[[], None]) -> None:
        self._mending.append((time.monotonic() + self.random.uniform(3.0, 20.0), name, mend))

    def restore(self) -> None:
        """Mend everything."""
        for _, _, mend in self._mending:
            mend()
        self._mending = []


if __name__ == "__main__":
    main()
