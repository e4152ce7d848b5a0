"""What peers say of themselves on a local network, and what is made of what others say there."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.net.addresses import joining_fault
from swarm.net.initial_peers import looks_on_lan
from swarm.net.lan import SERVICE, addresses_of, service_of

PEER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"


def test_what_is_announced_leads_back_to_where_the_peer_listens() -> None:
    listening = [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/192.168.7.2/udp/4001/quic-v1",
        "/ip4/192.168.7.2/tcp/4001",
        "/ip4/10.0.0.7/tcp/4001",
        f"/ip4/192.168.7.9/tcp/31337/p2p/{PEER}/p2p-circuit",
    ]
    service = service_of(PEER, listening)
    assert service is not None and service.name == f"{PEER}.{SERVICE}"
    packed = [ipaddress.ip_address(ip).packed for ip in service.parsed_addresses()]
    assert addresses_of(PEER, packed, service.port) == [
        f"/ip4/192.168.7.2/tcp/4001/p2p/{PEER}",
        f"/ip4/10.0.0.7/tcp/4001/p2p/{PEER}",
    ]


@pytest.mark.parametrize("listening", [[], ["/ip4/127.0.0.1/tcp/1"], ["/ip4/192.168.7.2/udp/1/quic-v1"]])
def test_who_nobody_else_could_dial_is_not_announced(listening: list[str]) -> None:
    assert service_of(PEER, listening) is None


@given(st.text(max_size=80), st.lists(st.binary(max_size=20), max_size=40), st.none() | st.integers())
def test_whatever_is_announced_only_what_can_be_dialled_is_taken(peer: str, ips: list[bytes], port: int | None) -> None:
    found = addresses_of(peer, ips, port)
    assert len(found) <= 16
    assert all(joining_fault(address) is None for address in found)


@pytest.mark.parametrize(("value", "looks"), [(None, True), ("1", True), ("0", False), ("off", False), ("No", False)])
def test_a_variable_turns_it_off(value: str | None, looks: bool) -> None:
    assert looks_on_lan({} if value is None else {"SWARM_LAN": value}) is looks
