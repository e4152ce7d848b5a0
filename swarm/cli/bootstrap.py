"""swarm-bootstrap: the peer that others join through."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from swarm.cli.common import best_first, identity_option, network_config, network_options, on_signals, verbosity_options
from swarm.cli.identity import identity
from swarm.cli.network import daemon_death, joined
from swarm.config import NetworkConfig

PORT = 31337
LISTEN = (f"/ip4/0.0.0.0/tcp/{PORT}", f"/ip4/0.0.0.0/udp/{PORT}/quic-v1")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@network_options
@identity_option
@click.option(
    "--address-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write this peer's multiaddrs here, one a line, once it is ready.",
)
@verbosity_options
def main(
    initial_peers: tuple[str, ...],
    host_maddrs: tuple[str, ...],
    announce_maddrs: tuple[str, ...],
    identity_path: str | None,
    address_file: Path | None,
) -> None:
    """Run a peer that others join the swarm through.

    It keeps a part of the directory and relays for peers behind NAT; it holds no model and needs little. Its address
    contains its identity: keep the identity file and the port, and the address stays the same. Listens on port 31337
    unless --host-maddrs says otherwise. With no --initial-peers it begins a new swarm.

    Exit codes: 0 stopped by a signal, 1 an error that is printed, 2 wrong usage, 128 + n by a second signal.
    """
    with identity(identity_path, "bootstrap") as path:
        if path is None:
            click.echo("another bootstrap peer of this user is running: this one has a temporary identity")
        config = network_config(initial_peers, host_maddrs or LISTEN, announce_maddrs, path)
        asyncio.run(run(replace(config, relay=True), address_file))


async def run(config: NetworkConfig, address_file: Path | None) -> None:
    """Be a bootstrap peer until a signal comes. Raises DaemonFailed."""
    leaving = asyncio.Event()
    on_signals(leaving.set)
    async with joined(config) as (host, _):
        announce(best_first(host.addresses), address_file)
        ends = [asyncio.ensure_future(end) for end in (leaving.wait(), daemon_death(host))]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not leaving.is_set():
                await ends[1]
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


def announce(addresses: Sequence[str], address_file: Path | None) -> None:
    """Say how to join, and write the addresses for scripts."""
    click.echo("bootstrap peer is ready at")
    for address in addresses:
        click.echo(f"  {address}")
    peers = f"--initial-peers {shlex.quote(addresses[0])}"
    click.echo(f"\nto contribute a machine:  swarm-serve MODEL {peers}")
    click.echo(f"to see what is served:    swarm-status {peers}")
    click.echo(f"to talk to a model:       swarm-chat MODEL {peers}")
    if address_file is not None:
        write_atomically(address_file, "".join(f"{address}\n" for address in addresses))


def write_atomically(path: Path, text: str) -> None:
    """Who waits for the file never reads half of it."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


if __name__ == "__main__":
    main()
