"""In which order a peer's addresses are tried."""

from __future__ import annotations

from swarm.net.addresses import best_first


def test_addresses_are_tried_from_public_to_relayed_and_tcp_first() -> None:
    relayed = "/ip4/8.8.8.8/tcp/1/p2p/Qm1/p2p-circuit/p2p/Qm2"
    addresses = [
        relayed,
        "/ip4/127.0.0.1/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip4/192.168.1.4/tcp/1",
        "/ip4/8.8.8.8/udp/1/quic-v1",
        "/ip4/8.8.8.8/tcp/1/ws",
        "/ip4/8.8.8.8/tcp/1",
    ]
    assert best_first(addresses) == [
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/8.8.8.8/tcp/1/ws",
        "/ip4/8.8.8.8/udp/1/quic-v1",
        "/ip4/192.168.1.4/tcp/1",
        "/ip4/127.0.0.1/tcp/1",
        "/ip6/::1/tcp/1",
        relayed,
    ]
