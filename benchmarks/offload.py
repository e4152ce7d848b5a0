"""A model that does not fit into memory: through two servers, against offloading it to the disk with accelerate."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.decode import decode_rate, generate
from benchmarks.models import llama_250m_in_shards
from benchmarks.pair import two_servers
from benchmarks.results import Result, output_options, ratios, report

CGROUP = Path("/sys/fs/cgroup/memory")
OVERHEAD = 400 << 20
"""Bytes that Python, torch and transformers take themselves, allowed on top of half the model."""


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--tokens", default=16, show_default=True, help="New tokens per generation.")
@output_options
def main(rounds: int, tokens: int, as_json: bool, save: bool) -> None:
    """Decode with a 250M-parameter random Llama in float32 where a process may hold half of it."""
    with two_servers() as (local, swarm, path):
        from swarm import DistributedLlama

        model = DistributedLlama.from_pretrained(str(path), swarm=swarm, dtype="float32", progress=False)
        expected = generate(local, tokens)[0].tolist()
        equal = generate(model, tokens)[0].tolist() == expected
        size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        plain, two, disk = list[float](), list[float](), list[float]()
        capped, shards = True, llama_250m_in_shards()
        for _ in range(rounds):
            plain.append(decode_rate(local, tokens))
            two.append(decode_rate(model, tokens))
            answer = offloaded(shards, size // 2, tokens)
            disk.append(answer["rate"])
            capped &= answer["capped"]
            equal &= answer["ids"] == expected
    how = "in a cgroup, which counts the page cache" if capped else "by accelerate alone: the page cache was NOT capped"
    rate, over = "tokens/s", "× disk offload"
    rows: list[dict[str, Any]] = [
        {"run": "accelerate, half of the model in memory, the rest on disk", rate: disk},
        {"run": "swarm, two one-thread servers with half of it each", rate: two, over: ratios(two, disk)},
        {"run": "plain transformers, the whole model in memory", rate: plain, over: ratios(plain, disk)},
    ]
    megabytes = f"{(size // 2 + OVERHEAD) / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB"
    notes = [
        f"memory of the offloading process: {megabytes}, capped {how}",
        f"tokens equal: {'yes' if equal else 'NO'}; one torch thread each; {rounds} rounds, medians",
    ]
    title = "Half the memory: a swarm of two against offloading to disk"
    report(Result("offload", title, rows, "at least 10 times disk offload", notes, plot=[rate]), as_json, save)


def offloaded(path: Path, budget: int, tokens: int) -> dict[str, Any]:
    """Run `worker` in a process of its own that may hold `budget` bytes of the model.

    The cap is set when the model is loaded, since loading takes more for a moment.
    """
    with control_group() as group, tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.offload", str(path), str(budget), folder, str(tokens)]
        # What accelerate lets go of must go back to the system, or the cap kills the process sooner or later.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        with subprocess.Popen(
            command, preexec_fn=None if group is None else group.enter, env=environment, **pipes
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            capped = group is not None and group.cap(budget + OVERHEAD)
            answer, _ = process.communicate("go\n")
        if process.returncode:
            raise RuntimeError(f"the offloading process ended with {process.returncode}")
        return {**json.loads(answer.splitlines()[-1]), "capped": capped}


class ControlGroup:
    """A control group of processes whose memory and page cache are counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def enter(self) -> None:
        """Move this process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def cap(self, limit: int) -> bool:
        """Limit what its processes hold, in bytes. False where the kernel does not manage."""
        for _ in range(20):
            with contextlib.suppress(OSError):
                (self.folder / "memory.limit_in_bytes").write_text(str(limit))
                return True
            time.sleep(0.5)
        return False


@contextlib.contextmanager
def control_group() -> Iterator[ControlGroup | None]:
    """A new one; None where this user cannot make one."""
    folder = CGROUP / f"swarm-offload-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        yield None
        return
    try:
        yield ControlGroup(folder)
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


def worker(path: str, budget: int, folder: str, tokens: int) -> None:
    """The model with what does not fit on disk; prints its rate and tokens."""
    import torch
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch
    from transformers import AutoConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(path)
    with init_empty_weights():
        model = LlamaForCausalLM(config)
    model = load_checkpoint_and_dispatch(
        model,
        path,
        device_map="auto",
        max_memory={"cpu": budget},
        offload_folder=folder,
        no_split_module_classes=["LlamaDecoderLayer"],
    )
    print("loaded", flush=True)
    sys.stdin.readline()
    ids = generate(model, tokens)[0].tolist()
    rate = decode_rate(model, tokens)
    print(json.dumps({"rate": rate, "ids": ids}))


if __name__ == "__main__":
    worker(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
