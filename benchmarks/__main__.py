"""python -m benchmarks NAME"""

from __future__ import annotations

import importlib
import sys

NAMES = ("decode",)


def main() -> None:
    """Run the benchmark that is named; without a name, list them."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print("usage: python -m benchmarks NAME [options]\n\nbenchmarks:")
        for name in NAMES:
            print(f"  {name:<12}{importlib.import_module(f'benchmarks.{name}').__doc__}")
        sys.exit(0 if len(sys.argv) < 2 else 2)
    importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:], prog_name=f"benchmarks {sys.argv[1]}")


if __name__ == "__main__":
    main()
