"""swarm-plan: how fast a model would be on machines that are there, or not yet."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarm.cli.command import Command
from swarm.cli.model_options import DTYPES, folders
from swarm.cli.network_options import network_options
from swarm.cli.values import COUNT
from swarm.config import QUANTIZATIONS, NetworkConfig
from swarm.errors import InvalidInput

if TYPE_CHECKING:
    from swarm.net.network import Network
    from swarm.planning.shape import Shape
    from swarm.planning.speed import Line
    from swarm.types import ServerRecord

SESSIONS = (1, 8, 64)


@click.command(cls=Command)
@click.argument("model", shell_complete=folders)
@click.option(
    "--machines",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A TOML file of machines; else those that serve MODEL now.",
)
@click.option("--dtype", type=click.Choice(DTYPES), help="As swarm-serve would have it.")
@click.option("--quantization", type=click.Choice(QUANTIZATIONS), help="As swarm-serve would have it.")
@click.option("--cache-tokens", type=COUNT, default=8192, show_default=True, metavar="N", help="KV cache of a machine.")
@click.option("--prompt", type=COUNT, default=1024, show_default=True, metavar="N", help="Positions of a prompt.")
@click.option(
    "--shared-cores",
    type=click.FloatRange(min=0.1),
    metavar="N",
    help="All servers and the client are on one machine of so many cores, as when a swarm is tried out; 1.4 where two "
    "are threads of one. Else each is on its own.",
)
@network_options()
@click.option("--json", "json_", is_flag=True, help="One JSON document instead of text.")
def main(
    model: str,
    machines: Path | None,
    dtype: str | None,
    quantization: str | None,
    cache_tokens: int,
    prompt: int,
    shared_cores: float | None,
    network: NetworkConfig,
    json_: bool,
) -> None:
    """Say how fast MODEL would be: a folder, a name on the hub, or a config.json without any weights.

    Machines come from a file or, with --initial-peers, from a swarm, whose servers say how fast they are.

    Exit codes: 0 planned, 1 an error that is printed, also when blocks are missing, 2 wrong usage.
    """
    if machines is not None:
        report = imagined(model, machines, dtype, quantization, cache_tokens, prompt, shared_cores)
    elif network.initial_peers:
        report = asyncio.run(real(network, model, dtype, quantization, prompt, shared_cores))
    else:
        raise InvalidInput("pass --machines FILE, or --initial-peers of a swarm that is there")
    click.echo(json.dumps(report, indent=2) if json_ else as_text(report))


def imagined(
    model: str,
    path: Path,
    dtype: str | None,
    quantization: str | None,
    cache_tokens: int,
    prompt: int,
    cores: float | None = None,
) -> dict[str, Any]:
    """The plan for machines of a file. Raises InvalidInput, MissingBlocks, ModelError."""
    from swarm.client.routing import Conditions
    from swarm.planning.arrange import arrange
    from swarm.planning.machines import read
    from swarm.planning.speed import lines

    machines, client = read(path)
    shape = shape_of(model, dtype, quantization)
    placed = arrange(machines, shape, cache_tokens)
    records = [record for _, record in placed]
    rtt = {record.peer_id: 2 * machine.delay_ms for machine, record in placed}
    links = {record.peer_id: shape.row_bytes * 8 / (machine.link_mbit * 1e6) for machine, record in placed}
    head = shape.head_bytes / (client.bandwidth_gbs * 1e9) + client.step_ms / 1000
    every = list(lines(records, shape.blocks, Conditions(rtt_ms=rtt), links, head, cores))
    return as_json(shape.name, records, every, prompt, shape)


async def real(
    config: NetworkConfig,
    model: str,
    dtype: str | None,
    quantization: str | None,
    prompt: int,
    cores: float | None = None,
) -> dict[str, Any]:
    """The plan for servers that are there. Raises as `swarm-status`."""
    from swarm import net

    async with await net.open(config) as network:
        return await of_servers(network, model, dtype, quantization, prompt, cores)


async def of_servers(
    network: Network,
    model: str,
    dtype: str | None,
    quantization: str | None,
    prompt: int,
    cores: float | None = None,
) -> dict[str, Any]:
    """The plan for the servers of a swarm, as far away as they are from here, for a client on this machine; `cores`: as
    in `Line`.

    Raises as `swarm-status`, and MissingBlocks.
    """
    from swarm.cli.status import look
    from swarm.client.routing import Conditions
    from swarm.config import ClientConfig
    from swarm.planning.distances import distances
    from swarm.planning.speed import lines

    info, records = await look(network.directory, model)
    alike = computing_alike(records, dtype, quantization)
    far = await distances(network.host, alike, ClientConfig())
    reached = [record for record in alike if record.peer_id in far]
    rtt = {peer_id: one.rtt_ms for peer_id, one in far.items()}
    rates = ((record, far[record.peer_id].bytes_per_second) for record in reached)
    links = {record.peer_id: record.contract.row_bytes / rate for record, rate in rates if rate}
    head = await asyncio.to_thread(head_seconds, model, alike[0].contract.dtype) if alike else None
    from swarm.models.step import step_seconds

    step = await asyncio.to_thread(step_seconds)
    every = list(lines(reached, info.blocks, Conditions(rtt_ms=rtt), links, (head or 0.0) + step, cores))
    report = as_json(info.name, reached, every, prompt)
    return report if head is not None else {**report, "head_ms": None}


def head_seconds(model: str, dtype: str) -> float | None:
    """What the head of a model takes a token on this machine; None where its files are neither here nor on the hub."""
    from swarm.contract import UNQUANTIZED
    from swarm.errors import SwarmError
    from swarm.models.linear.rate import rate
    from swarm.models.loading.weights import DTYPES as NUMBERS

    if "/" not in model and not Path(model).exists():
        return None  # a name that only the swarm knows
    try:
        shape = shape_of(model, dtype, None)
    except SwarmError:
        return None
    return shape.head_bytes / rate(UNQUANTIZED, NUMBERS[dtype]).bytes_per_second


def computing_alike(records: Sequence[ServerRecord], dtype: str | None, quantization: str | None) -> list[ServerRecord]:
    """The servers that may share a session: of those that are asked for, the numbers that most blocks are served in."""
    from swarm.config import SCHEMES
    from swarm.types import ServerState

    scheme = None if quantization is None else SCHEMES[quantization]
    fit = [
        record
        for record in records
        if record.state is ServerState.ONLINE
        and dtype in (None, record.contract.dtype)
        and scheme in (None, record.contract.quantization)
    ]
    served: Counter[tuple[str, str]] = Counter()
    for record in fit:
        served[record.contract.dtype, record.contract.quantization] += len(record.span)
    most = max(served, key=lambda numbers: served[numbers], default=None)
    return [record for record in fit if (record.contract.dtype, record.contract.quantization) == most]


def shape_of(model: str, dtype: str | None, quantization: str | None) -> Shape:
    """A model in numbers, from its configuration alone. Raises ModelNotFound, BadCheckpoint, UnsupportedModel."""
    from swarm.models.loading.cost import outline
    from swarm.planning.shape import Shape

    found = outline(model, dtype=dtype, quantization=quantization)
    row = found.info.hidden_size * found.dtype.itemsize
    return Shape(
        found.info.name,
        found.parameters,
        found.weight_bytes,
        found.cache_bytes,
        row,
        found.vocabulary * row,
        found.joined,
    )


def as_json(
    name: str, records: Sequence[ServerRecord], every: Sequence[Line], prompt: int, shape: Shape | None = None
) -> dict[str, Any]:
    """A plan as plain data."""
    from swarm.planning.speed import together

    best = every[0]
    what, share = best.bottleneck()
    return {
        "model": name,
        "head_ms": round(best.head * 1000, 3),
        "blocks": best.route.span.last,
        "block_bytes": None if shape is None else max(shape.weight_bytes),
        "machines": [
            {
                "name": record.name or record.peer_id,
                "first": record.span.first,
                "last": record.span.last,
                "decode_ms": round(record.decode_ms, 3),
                "prefill_rate": round(record.prefill_rate, 1),
            }
            for record in records
        ],
        "routes": len(every),
        "hops": len(best.route.hops),
        "tokens_per_second": {str(count): round(together(every, count), 3) for count in SESSIONS},
        "prompt_positions": prompt,
        "prompt_seconds": round(best.prompt(prompt), 3),
        "bottleneck": what,
        "bottleneck_share": round(share, 3),
        "slowest_hop": str(best.slowest()),
    }


def as_text(report: dict[str, Any]) -> str:
    """A plan for people."""
    size = f" of {report['block_bytes'] / 1e9:.2f} GB" if report["block_bytes"] else ""
    rates = "; ".join(f"{count}: {rate:.2f}" for count, rate in report["tokens_per_second"].items())
    return "\n".join(
        [
            f"{report['model']}: {report['blocks']} blocks{size} on {len(report['machines'])} machines",
            *(
                f"  {each['first']}:{each['last']}  {each['name']}  {each['decode_ms']:.2f} ms a block, "
                f"{each['prefill_rate']:.0f} positions/s through one"
                for each in sorted(report["machines"], key=lambda each: each["first"])
            ),
            f"routes side by side: {report['routes']}; hops of the best: {report['hops']}",
            f"tokens/s of so many sessions together: {rates}",
            f"a prompt of {report['prompt_positions']} positions: {report['prompt_seconds']:.1f} s",
            f"one session: {report['bottleneck_share']:.0%} of a token are {report['bottleneck']}",
            f"many sessions: the slowest hop is {report['slowest_hop']}",
            *(["the client's head is left out: the model's files are not here"] if report["head_ms"] is None else []),
        ]
    )


if __name__ == "__main__":
    main()
