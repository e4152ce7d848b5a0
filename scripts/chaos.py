"""Play random failure scenarios on the simulated network; print every seed that does not end as it must."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.chaos import outcome


@click.command()
@click.option("--scenarios", default=1000, show_default=True, help="How many.")
@click.option("--first", default=0, show_default=True, help="The first seed.")
@click.option("--jobs", default=2, show_default=True, help="Processes.")
def main(scenarios: int, first: int, jobs: int) -> None:
    """Play SCENARIOS random failure scenarios. Exits 1 if any ends with a wrong token, a hang or a leak."""
    logging.disable(logging.ERROR)
    began, ends = time.perf_counter(), Counter[str]()
    with ProcessPoolExecutor(jobs) as pool:
        futures = [pool.submit(outcome, seed) for seed in range(first, first + scenarios)]
        for future in tqdm(as_completed(futures), total=scenarios, unit="scenario"):
            seed, end = future.result()
            ends[end if end in ("exact", "missing") else "WRONG"] += 1
            if end not in ("exact", "missing"):
                tqdm.write(f"seed {seed}:\n{end}")
    print(f"{scenarios} scenarios in {time.perf_counter() - began:.0f} s: {dict(ends)}")
    sys.exit(ends["WRONG"] > 0)


if __name__ == "__main__":
    main()
