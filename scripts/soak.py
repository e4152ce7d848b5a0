"""Real processes under random faults, for as long as you like; prints a table of what came of it."""

from __future__ import annotations

import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))

from scripts.soaking.faults import Faults, Servers
from scripts.soaking.homes import homes, impossible
from scripts.soaking.machine import Scene, machine, sweep
from scripts.soaking.work import Work

HUNG = 240.0
"""Seconds after which a generation is taken never to end: longer than any block is without a server here."""


@click.command()
@click.option("--minutes", default=10.0, show_default=True)
@click.option("--clients", default=2, show_default=True, help="That generate at a time.")
@click.option("--seed", type=int, help="Of the faults and prompts; when they come depends on the machine.")
@click.option("--field", is_flag=True, help="In homes behind NATs, whose lines are cut and changed, too (Linux, root).")
@click.option("--log", is_flag=True, help="Say each fault when it happens, and log as a client does with -v.")
def main(minutes: float, clients: int, seed: int | None, field: bool, log: bool) -> None:
    """Servers of the tiny model, each block twice, under SIGKILL, SIGSTOP and SIGTERM; every answer is compared
    with plain transformers' on the same weights. Exits 1 if one is wrong or hangs, or if something is left over."""
    import torch

    if field and (why := impossible()):
        print(f"no soak in homes here: {why}")
        return
    logging.basicConfig(level=logging.INFO if log else logging.ERROR, format="%(asctime)s %(name)s %(message)s")
    torch.set_num_threads(1)
    seed = random.randrange(1 << 32) if seed is None else seed
    rng = random.Random(seed)
    own = tempfile.TemporaryDirectory(prefix="soak-")
    os.environ["TMPDIR"] = tempfile.tempdir = own.name  # what others put there is not counted
    scene = homes(clients, rng) if field else machine(clients)
    came = soak(scene, minutes * 60, seed, rng)
    sweep()
    left = sorted(path.name for path in Path(own.name).iterdir() if not path.name.startswith("torchinductor_"))
    print(table(seed, came, left))
    sys.exit(bool(came.work.wrong or came.work.failed or came.hung or came.running or left))


@dataclass(frozen=True)
class Outcome:
    """What came of it. `gave_up`: servers that ended by themselves; `hung`: generations that did not; `running`: ids of
    processes that are left."""

    work: Work
    faults: Faults
    gave_up: int
    hung: int
    running: list[int]


def soak(scene: AbstractContextManager[Scene], seconds: float, seed: int, rng: random.Random) -> Outcome:
    """Work and faults for so long."""
    import torch
    from transformers import AutoModelForCausalLM

    with scene as there:
        local = AutoModelForCausalLM.from_pretrained(there.model, dtype=torch.float32)
        work = Work(there.model, local, time.monotonic() + seconds)
        threads = [
            threading.Thread(target=work.run, args=(seed + place, swarm), daemon=True)
            for place, swarm in enumerate(there.swarms)
        ]
        for thread in threads:
            thread.start()
        faults = Faults(there.kinds, rng)
        while time.monotonic() < work.end:
            time.sleep(rng.uniform(*there.pause))
            there.servers.tend()
            faults.next()
            work.look()
        faults.restore()
        hung = waited(threads, there.servers)
        kept = list(there.members.processes.values())
    running = [process.pid for process in kept if psutil.pid_exists(process.pid)]
    return Outcome(work, faults, there.servers.gave_up, hung, running)


def waited(threads: list[threading.Thread], servers: Servers) -> int:
    """Wait for those that generate; how many do not end."""
    over = time.monotonic() + HUNG
    while time.monotonic() < over and any(thread.is_alive() for thread in threads):
        servers.tend()
        time.sleep(1.0)
    return sum(thread.is_alive() for thread in threads)


def table(seed: int, came: Outcome, left: list[str]) -> str:
    """A line each."""
    work = came.work
    lines = [
        ("seed", seed),
        ("generations", work.right + work.wrong),
        ("tokens", work.tokens),
        ("faults", _counted(came.faults.count)),
        ("servers that gave up at their start", came.gave_up),
        ("told", _counted(work.notices)),
        ("longest generation", f"{work.longest:.0f} s"),
        ("wrong", work.wrong),
        ("failed", _counted(work.failed) or 0),
        ("hung", came.hung),
        ("client: growth of memory", f"{work.growth(0) / 1e6:.1f} MB"),
        ("client: growth of descriptors", f"{work.growth(1):.0f}"),
        ("client: growth of threads", f"{work.growth(2):.0f}"),
        ("files left over", ", ".join(left) or 0),
        ("processes left over", ", ".join(map(str, came.running)) or 0),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{count} × {name}" for name, count in sorted(counter.items()))


if __name__ == "__main__":
    main()
