"""Options of how a peer takes part in the network, that several commands share. Imports nothing heavy."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import click

from swarm.cli.together import Function, together
from swarm.cli.values import COUNT, Name, place_of, size_of
from swarm.config import EdgeConfig, ForwardConfig, NetworkConfig, PeerLimits
from swarm.errors import InvalidInput
from swarm.net import initial_peers as joining
from swarm.net.addresses import check, check_edge, is_peer_id
from swarm.net.lists import Lists
from swarm.net.swarm_key import SwarmKey

MULTIADDR = "MULTIADDR"


def network_options(host_maddrs: Sequence[str] = NetworkConfig().host_maddrs) -> Callable[[Function], Function]:
    """How to join, as `network`, a NetworkConfig; `host_maddrs`: where to listen unless it is said.

    The command raises InvalidInput for addresses that cannot work.
    """
    return together(
        "network",
        functools.partial(_network, tuple(host_maddrs)),
        click.option(
            "--initial-peers",
            "-p",
            multiple=True,
            metavar=MULTIADDR,
            help=f"Whom to join through; repeat for several. Else {joining.VARIABLE}, else the packaged list.",
        ),
        click.option(
            "--host-maddrs",
            multiple=True,
            metavar=MULTIADDR,
            help="Where to listen; by default TCP and QUIC, any port.",
        ),
        click.option(
            "--announce-maddrs",
            multiple=True,
            metavar=MULTIADDR,
            help="Where others should dial, if that is not where this peer listens (port forwarding).",
        ),
        click.option(
            "--lan/--no-lan",
            default=True,
            envvar=joining.LAN_VARIABLE,
            help="Where no initial peers are given, look for some on the local network; servers, query nodes and "
            "bootstrap peers are announced there. By default they are.",
        ),
        click.option(
            "--p2pd/--no-p2pd",
            default=True,
            help="Whether p2pd holds the connections, where it is installed, as it does by default. Without it peers "
            "are dialled over TCP only, and the directory is asked of the initial peers.",
        ),
        click.option(
            "--swarm-key",
            type=click.Path(),
            metavar="FILE",
            help="Take part in the swarm that has the key in FILE, 64 hexadecimal digits, as all its peers do: who "
            "lacks it learns nothing of it.",
        ),
    )


def _network(
    listen: tuple[str, ...],
    initial_peers: tuple[str, ...],
    host_maddrs: tuple[str, ...],
    announce_maddrs: tuple[str, ...],
    lan: bool,
    p2pd: bool,
    swarm_key: str | None,
) -> NetworkConfig:
    peers = joining.initial_peers(initial_peers)
    config = NetworkConfig(peers, host_maddrs or listen, announce_maddrs, lan=lan, p2pd=p2pd, swarm_key=swarm_key)
    check(config)
    if swarm_key is not None:
        SwarmKey.load(swarm_key)
    return config


def forward_options(function: Function) -> Function:
    """For whom this peer carries, as `forward`, a ForwardConfig; None: for nobody."""
    usual = ForwardConfig()
    return together(
        "forward",
        _forward,
        click.option(
            "--forward/--no-forward",
            default=True,
            help="Whether to carry between peers that cannot dial each other, where everybody can dial this one. It is "
            "sealed between them. By default it does.",
        ),
        click.option(
            "--forward-limit",
            type=COUNT,
            default=usual.circuits,
            show_default=True,
            metavar="N",
            help="Pairs of peers to carry between at a time.",
        ),
        click.option(
            "--forward-rate",
            callback=size_of,
            metavar="SIZE",
            help="Bytes per second to carry, of all together, e.g. 2MB; by default as many as there are.",
        ),
        click.option(
            "--forward-block",
            multiple=True,
            metavar="PEER_ID",
            help="Carry neither for nor to this peer; repeat for several.",
        ),
    )(function)


def _forward(
    forward: bool, forward_limit: int, forward_rate: int | None, forward_block: tuple[str, ...]
) -> ForwardConfig | None:
    for peer_id in forward_block:
        if not is_peer_id(peer_id):
            raise InvalidInput(f"--forward-block {peer_id}: that is no peer id; it should look like 12D3KooW...")
    limits = ForwardConfig(circuits=forward_limit, rate=float(forward_rate or 0), blocked=forward_block)
    return limits if forward else None


def limit_options(function: Function) -> Function:
    """What one peer may have of this one, as `limits`, a PeerLimits. The command raises InvalidInput."""
    usual = PeerLimits()
    return together(
        "limits",
        _limits,
        click.option(
            "--max-streams-per-peer",
            type=COUNT,
            default=usual.streams,
            show_default=True,
            metavar="N",
            help="Streams of one peer at a time; about three for each session or query.",
        ),
        click.option(
            "--max-frames-per-peer",
            type=COUNT,
            default=int(usual.frames),
            show_default=True,
            metavar="N",
            help="Frames that are read a second of what one peer sends; about one for each token.",
        ),
        click.option(
            "--max-bytes-per-peer",
            callback=size_of,
            metavar="SIZE",
            help="Of one peer's, that have come and not gone on; by default 128MiB. All together may have four times "
            "as many.",
        ),
        click.option(
            "--allow",
            type=click.Path(),
            metavar="FILE",
            help="Serve only the peers in FILE, one peer id a line; read anew when it changes.",
        ),
        click.option(
            "--block",
            type=click.Path(),
            metavar="FILE",
            help="Do not serve the peers in FILE, one peer id a line; read anew when it changes.",
        ),
    )(function)


def _limits(
    max_streams_per_peer: int,
    max_frames_per_peer: int,
    max_bytes_per_peer: int | None,
    allow: str | None,
    block: str | None,
) -> PeerLimits:
    flight = PeerLimits().flight_bytes if max_bytes_per_peer is None else max_bytes_per_peer
    Lists(allow, block)
    return PeerLimits(
        streams=max_streams_per_peer,
        all_streams=4 * max_streams_per_peer,
        frames=float(max_frames_per_peer),
        flight_bytes=flight,
        all_flight_bytes=4 * flight,
        allow=allow,
        block=block,
    )


def check_joins(network: NetworkConfig) -> None:
    """Raises InvalidInput where there is nobody to join through, and nobody is looked for."""
    if not network.initial_peers and not network.lan:
        raise InvalidInput(joining.HOW_TO_BEGIN)


def identity_option(function: Function) -> Function:
    """Where the private key of this peer is kept."""
    return click.option(
        "--identity-path",
        type=click.Path(),
        help="File of the private key; made when missing. By default one per user and command.",
    )(function)


def name_option(whom: str) -> Callable[[Function], Function]:
    """What to call a peer; `whom`: where it is shown."""
    return click.option("--public-name", type=Name(), default="", help=f"A name to show beside {whom}.")


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """Where browsers can dial a peer, as far as it was said."""

    edge_maddrs: tuple[str, ...] = ()
    edge_announce_maddrs: tuple[str, ...] = ()
    no_edge: bool = False

    @property
    def needed(self) -> bool:
        """Whether the peer is to fail where it cannot listen for browsers."""
        return bool(self.edge_maddrs)

    def beside(self, network: NetworkConfig) -> EdgeConfig | None:
        """The rest from how the peer itself listens; None: no edge. Raises InvalidInput for what cannot work."""
        if network.swarm_key is not None and self.needed:
            raise InvalidInput("--edge-maddrs cannot go with --swarm-key: browsers do not have the key")
        if self.no_edge or network.swarm_key is not None:
            return None
        config = EdgeConfig(
            host_maddrs=self.edge_maddrs or edge_beside(network.host_maddrs),
            announce_maddrs=self.edge_announce_maddrs,
            identity_path=network.identity_path,
        )
        check_edge(config)
        return config


def edge_options(function: Function) -> Function:
    """Where browsers can dial, as `edge`, an EdgeOptions."""
    return together(
        "edge",
        EdgeOptions,
        click.option(
            "--edge-maddrs",
            multiple=True,
            metavar=MULTIADDR,
            help="Where to listen for browsers: ending in /webrtc-direct, /quic-v1/webtransport or /ws; repeat for "
            "several. By default all three, at the ports after that of --host-maddrs.",
        ),
        click.option(
            "--edge-announce-maddrs",
            multiple=True,
            metavar=MULTIADDR,
            help="Where browsers should dial, if that is not where this peer listens; without hashes and peer id.",
        ),
        click.option("--no-edge", is_flag=True, help="Do not listen for browsers."),
    )(function)


def edge_beside(host_maddrs: Sequence[str]) -> tuple[str, ...]:
    """Where to listen for browsers beside a peer: its first ip, and the ports after its first (any after 0)."""
    match = next(filter(None, (re.match(r"/(ip[46]/[^/]+)/(?:tcp|udp)/(\d+)", a) for a in host_maddrs)), None)
    ip, port = (match[1], int(match[2])) if match else ("ip4/0.0.0.0", 0)
    one, two = (port + 1, port + 2) if 0 < port < 65534 else (0, 0)
    return f"/{ip}/udp/{one}/webrtc-direct", f"/{ip}/udp/{two}/quic-v1/webtransport", f"/{ip}/tcp/{one}/ws"


def metrics_option(function: Function) -> Function:
    """Where Prometheus may look."""
    return click.option(
        "--metrics",
        callback=place_of,
        metavar="[HOST:]PORT",
        help="Show metrics for Prometheus at http://HOST:PORT/metrics, HOST being 127.0.0.1 unless it is said.",
    )(function)
