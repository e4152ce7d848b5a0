"""Products of linear layers on a CPU: weights on grids of 8 and of 4 bits against packed float32, by number of rows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click

from benchmarks.results import Result, output_options, report

SHAPES = ((2048, 5632), (4096, 14336))
ROWS = (1, 4, 8, 32, 256)


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Interleaved; the fastest of each is reported.")
@click.option("--threads", default=1, show_default=True)
@output_options
def main(rounds: int, threads: int, as_json: bool, save: bool) -> None:
    """out x in; times of one product, in ms."""
    import torch

    torch.set_num_threads(threads)
    with torch.inference_mode():
        rows = [row for shape in SHAPES for row in measured(*shape, rounds)]
    goal = "int8 2 and int4 3 times as fast as float32 at 1 row, 1.5 and 2 times at 256"
    notes = [f"{threads} thread(s); {rounds} rounds; a row's result is the same bits at every number of rows"]
    report(Result("linear", "Products with weights on a grid", rows, goal, notes), as_json, save)


def measured(outputs: int, inputs: int, rounds: int) -> list[dict[str, Any]]:
    """A line for each number of rows."""
    import torch
    from torch import nn

    from swarm.models.linear.laid_out import LaidOutLinear
    from swarm.models.linear.quantized import QuantizedLinear
    from swarm.models.linear.schemes import quantize

    plain = nn.Linear(inputs, outputs, bias=False)
    layers = {"float32": LaidOutLinear(plain)}
    layers |= {name: QuantizedLinear(quantize(plain.weight, name)) for name in ("int8", "int4")}
    lines = []
    for count in ROWS:
        x = torch.randn(count, inputs)
        best = dict.fromkeys(layers, float("inf"))
        for _ in range(rounds):
            for name, layer in layers.items():
                best[name] = min(best[name], timed(lambda layer=layer, x=x: layer(x)))  # type: ignore[misc]
        line: dict[str, Any] = {"layer": f"{outputs} x {inputs}", "rows": count}
        line |= {f"{name}, ms": milliseconds for name, milliseconds in best.items()}
        lines.append(line | {f"× {name}": best["float32"] / best[name] for name in ("int8", "int4")})
    return lines


def timed(product: Callable[[], object], least: float = 0.05) -> float:
    """Milliseconds of one call, over `least` seconds of them."""
    product()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < least:
        product()
        calls += 1
    return 1000 * (time.perf_counter() - began) / calls


if __name__ == "__main__":
    main()
