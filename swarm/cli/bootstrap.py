"""swarm-bootstrap: the peer that others join through."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import click

from swarm.cli.command import Command
from swarm.cli.files import check_output, write_addresses
from swarm.cli.identity import identified
from swarm.cli.network import edge_of, join, kept_written, showing_metrics, until
from swarm.cli.network_options import (
    EdgeOptions,
    edge_options,
    forward_options,
    identity_option,
    limit_options,
    metrics_option,
    network_options,
)
from swarm.cli.signals import on_signals
from swarm.config import ForwardConfig, NetworkConfig, PeerLimits
from swarm.net.addresses import best_first
from swarm.net.guard import GuardedHost

PORT = 31337
LISTEN = (f"/ip4/0.0.0.0/tcp/{PORT}", f"/ip4/0.0.0.0/udp/{PORT}/quic-v1")


@click.command(cls=Command)
@network_options(LISTEN)
@forward_options
@limit_options
@identity_option
@click.option(
    "--address-file",
    type=click.Path(path_type=Path),
    help="Write this peer's multiaddrs here, one a line, once it is ready.",
)
@metrics_option
@edge_options
@click.option(
    "--edge-address-file",
    type=click.Path(path_type=Path),
    help="Write the multiaddrs for browsers here, one a line, whenever they change.",
)
def main(
    network: NetworkConfig,
    forward: ForwardConfig | None,
    limits: PeerLimits,
    identity_path: str | None,
    address_file: Path | None,
    edge: EdgeOptions,
    edge_address_file: Path | None,
    metrics: tuple[str, int] | None,
) -> None:
    """Run a peer that others join the swarm through.

    It keeps a part of the directory, carries between peers behind NAT, and shows the swarm to browsers; it holds no
    model and needs little. Its address contains its identity: keep the identity file and the port, and the address
    stays the same. Listens on port 31337, and on 31338 and 31339 for browsers, unless --host-maddrs and --edge-maddrs
    say otherwise. With no --initial-peers it begins a new swarm.

    Exit codes: 0 stopped by a signal, 1 an error that is printed, 2 wrong usage, 128 + n by a second signal.
    """
    for path, option in ((address_file, "--address-file"), (edge_address_file, "--edge-address-file")):
        if path is not None:
            check_output(path, option)
    with identified(network, identity_path, "bootstrap", "bootstrap peer") as network:
        network = replace(network, public=True, forward=forward, limits=limits)
        asyncio.run(run(network, edge, (address_file, edge_address_file), metrics))


async def run(
    config: NetworkConfig,
    edge: EdgeOptions,
    files: tuple[Path | None, Path | None],
    metrics: tuple[str, int] | None,
) -> None:
    """Be a bootstrap peer until a signal comes, without an edge where that is impossible and nobody asked for one.

    `files`: where addresses are written, for peers and for browsers.
    Raises DaemonFailed, EdgeFailed, InvalidInput.
    """
    from swarm.gateway.map import MapService
    from swarm.gateway.map_metrics import watch_directory

    leaving = asyncio.Event()
    on_signals(leaving.set)
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(await join(config, leaving))
        maps = MapService(network.directory)
        await maps.serve(network.host)
        browsers = await stack.enter_async_context(edge_of(network.identity, edge.beside(config), needed=edge.needed))
        if browsers is not None:
            await maps.serve(GuardedHost(browsers, network.guard))
        streams = lambda: 0 if browsers is None else browsers.statistics().served  # noqa: E731
        watching = lambda registry: watch_directory(registry, network.directory, maps, streams)  # noqa: E731
        await stack.enter_async_context(showing_metrics(metrics, watching))
        # Last, for these say that it is ready.
        await stack.enter_async_context(kept_written(browsers, files[1]))
        announce(
            best_first(network.host.addresses),
            () if browsers is None else best_first(browsers.addresses),
            files[0],
            keyed=config.swarm_key is not None,
        )
        await until(leaving, network.lost())
        network.retire()


def announce(addresses: Sequence[str], edges: Sequence[str], address_file: Path | None, *, keyed: bool = False) -> None:
    """Say how to join, and where browsers can dial; write the addresses for scripts."""
    lines = ["bootstrap peer is ready at", *(f"  {address}" for address in addresses)]
    if edges:
        lines += ["\nbrowsers can dial", *(f"  {address}" for address in edges)]
    peers = f"--initial-peers {shlex.quote(addresses[0])}{' --swarm-key FILE' if keyed else ''}"
    lines += [f"\nto contribute a machine:  swarm-serve MODEL {peers}"]
    lines += [f"to see what is served:    swarm-status {peers}"]
    lines += [f"to talk to a model:       swarm-chat MODEL {peers}"]
    if address_file is not None:
        write_addresses(address_file, addresses)
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
