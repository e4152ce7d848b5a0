"""python -m benchmarks NAME | all"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence

NAMES = (
    "block",
    "budget",
    "churn",
    "codec",
    "compute",
    "concurrent",
    "credit",
    "decode",
    "failover",
    "fetch",
    "gateway",
    "hybrid",
    "linear",
    "offload",
    "peers",
    "plan",
    "prefill",
    "prefix",
    "real",
    "replay",
    "runtimes",
    "scale",
    "speculative",
    "thin",
    "training",
    "transport",
    "trust",
    "wan",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that is named, or all of them; without a name, list them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    if name == "all":
        sys.exit(run_all(_in_a_process))
    if name not in NAMES:
        print(usage())
        sys.exit(2 if arguments else 0)
    importlib.import_module(f"benchmarks.{name}").main(list(arguments[1:]), prog_name=f"benchmarks {name}")


def usage() -> str:
    """What there is to run."""
    lines = [f"  {name:<12}{importlib.import_module(f'benchmarks.{name}').__doc__}" for name in NAMES]
    every = f"  {'all':<12}Each of these in turn, saved to docs/measurements."
    return "\n".join(["usage: python -m benchmarks NAME [options]\n\nbenchmarks:", *lines, every])


def run_all(run: Callable[[str], int], names: Sequence[str] = NAMES) -> int:
    """Run every benchmark, also after one has failed; returns 1 when any has."""
    failed = []
    for name in names:
        print(f"==== {name}", flush=True)
        if run(name):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def _in_a_process(name: str) -> int:
    """In a process of its own: threads and settings of one must not weigh on the next."""
    return subprocess.run([sys.executable, "-m", "benchmarks", name, "--save"], check=False).returncode


if __name__ == "__main__":
    main()
