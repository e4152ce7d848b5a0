"""Which addresses nobody can dial, join through, or listen at; and in which order the others are tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.config import EdgeConfig, NetworkConfig
from swarm.errors import InvalidInput
from swarm.net.addresses import (
    best_first,
    check,
    check_edge,
    components,
    dialling_fault,
    forwarders_of,
    joining_fault,
    own,
    way_to,
    with_ports,
)

# Written down, because names of tests hold them: both workers must find the same ones.
ONE, OTHER = (
    "12D3KooWF2jGWX1MH1hbEearDEveaEbKAPQRYzpG2bJ9ifWD2jiC",
    "12D3KooWAN78g2BA98By53sZ8jLAkZDV58sxgEBSuwmJF3zxx4WG",
)
HERE = "/ip4/203.0.113.5/tcp/31337"

DIALLED = [
    HERE,
    f"{HERE}/p2p/{ONE}",
    "/ip4/203.0.113.5/tcp/31337/ws",
    "/ip4/203.0.113.5/tcp/443/tls/ws",
    "/ip4/203.0.113.5/udp/31337/quic-v1",
    "/ip4/127.0.0.1/tcp/1",
    "/ip6/2001:db8::1/tcp/31337",
    "/ip6/::1/udp/65535/quic-v1",
    "/ip6zone/eth0/ip6/fe80::1/tcp/31337",
    "/dns4/swarm.example.org/tcp/31337",
    "/dns/localhost/tcp/31337",
    f"/dnsaddr/swarm.example.org/p2p/{ONE}",
    f"{HERE}/p2p/{OTHER}/p2p-circuit/p2p/{ONE}",
    f"{HERE}/p2p/{OTHER}/p2p-circuit",
    f"/p2p/{OTHER}/p2p-circuit",
]
NEVER_DIALLED = {
    "/ip4/0.0.0.0/tcp/31337": "stands for all addresses",
    "/ip4/0.0.0.7/tcp/31337": "stands for all addresses",
    "/ip6/::/tcp/31337": "stands for all addresses",
    "/ip6/::ffff:0.0.0.0/tcp/31337": "stands for all addresses",
    "/ip4/255.255.255.255/tcp/31337": "no machine's address",
    "/ip4/250.1.2.3/tcp/31337": "no machine's address",
    "/ip6/fe80::1%eth0/tcp/31337": "/ip6zone/eth0/ip6/fe80::1",
    "/ip4/224.0.0.1/udp/31337/quic-v1": "no machine's address",
    "/ip6/ff02::1/tcp/31337": "no machine's address",
    "/ip4/1.2.3.4": "has no port",
    f"/ip4/1.2.3.4/p2p/{ONE}": "has no port",
    "/ip4/1.2.3.4/tcp/0": "nobody can dial port 0",
    "/ip4/1.2.3.4/tcp/65536": "is no port",
    "/ip4/1.2.3.4/tcp/-1": "is no port",
    "/ip4/1.2.3.4/tcp/http": "is no port",
    "/ip4/1.2.3.4/tcp/\u0661": "is no port",
    "/ip4/1.2.3.4/udp/31337": "nobody speaks",
    "/ip4/1.2.3.4/tcp/31337/quic-v1": "nobody speaks",
    "/ip4/1.2.3.4/udp/31337/ws": "nobody speaks",
    "/ip4/1.2.3.4/sctp/31337": "has no port",
    "/ip4/1.2.3/tcp/31337": "no IPv4 address",
    "/ip4/example.org/tcp/31337": "no IPv4 address",
    "/ip4/::1/tcp/31337": "no IPv4 address",
    "/ip6/1.2.3.4/tcp/31337": "no IPv6 address",
    f"/ip4/1.2.3.4/tcp/{'9' * 5000}": "is no port",
    f"/dns4/{'a' * 64}.example/tcp/1": "no name of a machine",
    f"/dns4/{'a' * 60}!/tcp/1": "no name of a machine",
    "/dns4/not a name/tcp/31337": "not a multiaddr",
    "/dns4/-.example/tcp/31337": "no name of a machine",
    "/unix/socket": "does not begin with a place to dial",
    "/tcp/31337": "does not begin with a place to dial",
    f"/p2p/{ONE}": "does not begin with a place to dial",
    "/p2p-circuit": "names no relay",
    f"{HERE}/p2p-circuit/p2p/{ONE}": "names no relay",
    f"/ip4/0.0.0.0/tcp/1/p2p/{OTHER}/p2p-circuit/p2p/{ONE}": "stands for all addresses",
    f"{HERE}/p2p/{OTHER}/p2p-circuit/tcp/1": "and nothing else",
    f"{HERE}/p2p/12D3": "not a multiaddr",
    "203.0.113.5:31337": "not a multiaddr",
    "http://203.0.113.5:31337": "not a multiaddr",
    "/ip4/203.0.113.5/tcp": "not a multiaddr",
    "/ip4//tcp/31337": "no IPv4 address",
    "//": "not a multiaddr",
    "": "not a multiaddr",
    "/ip4/1.2.3.4/tcp/1\n": "not a multiaddr",
}


@pytest.mark.parametrize("address", DIALLED)
def test_what_somebody_can_dial_may_be_announced(address: str) -> None:
    assert dialling_fault(address) is None
    check(NetworkConfig(announce_maddrs=(address,)))


@pytest.mark.parametrize("address", NEVER_DIALLED)
def test_what_nobody_can_dial_is_refused_with_the_reason(address: str) -> None:
    with pytest.raises(InvalidInput, match="cannot announce") as caught:
        check(NetworkConfig(announce_maddrs=(HERE, address)))
    assert NEVER_DIALLED[address] in str(caught.value)
    with pytest.raises(InvalidInput, match="cannot join through"):
        check(NetworkConfig(initial_peers=(address,)))


def test_who_is_joined_has_a_peer_id() -> None:
    assert joining_fault(f"{HERE}/p2p/{ONE}") is None
    assert joining_fault(f"{HERE}/p2p/{OTHER}/p2p-circuit/p2p/{ONE}") is None
    for address in (HERE, f"{HERE}/p2p/{OTHER}/p2p-circuit"):
        with pytest.raises(InvalidInput, match="peer id"):
            check(NetworkConfig(initial_peers=(address,)))


@pytest.mark.parametrize(
    "address", ["/ip4/0.0.0.0/tcp/0", "/ip6/::/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/4001/ws", "/dns4/localhost/tcp/0"]
)
def test_all_addresses_and_any_port_may_be_listened_at(address: str) -> None:
    check(NetworkConfig(host_maddrs=(address,)))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/ip4/0.0.0.0", "has no port"),
        ("/ip4/0.0.0.0/udp/0", "nobody speaks"),
        ("/ip4/0.0.0.0/tcp/99999", "is no port"),
        ("/ip4/300.0.0.1/tcp/0", "no IPv4 address"),
        (f"/ip4/0.0.0.0/tcp/0/p2p/{ONE}", "without a peer id"),
        ("/tcp/31337", "does not begin with"),
        ("31337", "not a multiaddr"),
    ],
)
def test_where_nobody_can_listen_is_refused(address: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        check(NetworkConfig(host_maddrs=(address,)))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("/ip4/0.0.0.0/udp/31338/webrtc-direct", "stands for all addresses"),
        ("/ip4/203.0.113.5/udp/0/webrtc-direct", "port 0"),
        ("/ip4/203.0.113.5/tcp/31338", "webrtc-direct"),
        (f"/dns4/example.org/tcp/443/wss/p2p/{ONE}", "leave the peer id out"),
    ],
)
def test_what_no_browser_can_dial_is_refused(address: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        check_edge(EdgeConfig(announce_maddrs=(address,)))


def test_the_defaults_are_sound() -> None:
    check(NetworkConfig())
    check_edge(EdgeConfig())


def test_a_peer_announces_itself() -> None:
    assert own(HERE, ONE) == own(f"{HERE}/p2p/{ONE}", ONE) == f"{HERE}/p2p/{ONE}"
    assert own(f"{HERE}/p2p/{OTHER}/p2p-circuit", ONE) == f"{HERE}/p2p/{OTHER}/p2p-circuit/p2p/{ONE}"
    with pytest.raises(InvalidInput, match="another peer"):
        own(f"{HERE}/p2p/{OTHER}", ONE)


@given(st.text(alphabet="/ip46tcudpsn0123456789.:x-", max_size=60))
def test_any_text_is_judged(text: str) -> None:
    assert (components(text) is None) <= (dialling_fault(text) is not None)
    joining_fault(text)


def test_ports_that_were_given_are_listened_at_again() -> None:
    seen = ("/ip4/10.0.0.1/udp/9/quic-v1", f"/ip4/8.8.8.8/tcp/7/p2p/{ONE}/p2p-circuit", "/ip4/10.0.0.1/tcp/8", HERE)
    listening = ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/tcp/0", "/ip4/0.0.0.0/tcp/31337")
    again = ("/ip4/0.0.0.0/tcp/8", "/ip4/0.0.0.0/udp/9/quic-v1", "/ip6/::/tcp/0", "/ip4/0.0.0.0/tcp/31337")
    assert with_ports(listening, seen) == again


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


def test_how_others_reach_a_peer_follows_from_its_addresses() -> None:
    circuit = f"{HERE}/p2p/{OTHER}/p2p-circuit"
    assert way_to((circuit, "/ip4/192.168.1.2/tcp/1")) == "forwarded"
    assert way_to((circuit, "/ip4/8.8.8.8/tcp/1")) == "public"
    assert way_to(("/ip4/192.168.1.2/tcp/1",)) == "local"
    assert way_to(()) == "nowhere"
    assert forwarders_of((circuit, HERE, f"{circuit}/p2p/{ONE}")) == [OTHER]
