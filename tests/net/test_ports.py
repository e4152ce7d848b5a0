"""A port that somebody has."""

from __future__ import annotations

import socket

import pytest

from swarm.errors import DaemonFailed
from swarm.net.ports import check_free


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_that_another_program_shares_is_taken_all_the_same(kind: socket.SocketKind) -> None:
    address = "/ip4/127.0.0.1/tcp/{}" if kind is socket.SOCK_STREAM else "/ip4/127.0.0.1/udp/{}/quic-v1"
    with socket.socket(socket.AF_INET, kind) as other:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        other.bind(("127.0.0.1", 0))
        if kind is socket.SOCK_STREAM:
            other.listen()
        address = address.format(other.getsockname()[1])
        with pytest.raises(DaemonFailed, match=f"cannot listen at {address}.*--host-maddrs"):
            check_free(["/ip4/127.0.0.1/tcp/0", address])
    check_free([address])


def test_what_cannot_be_tried_is_left_to_who_listens() -> None:
    check_free(["/ip4/192.0.2.3/tcp/4001", "/dns4/example.org/tcp/1", "/nonsense", "/ip4/127.0.0.1/tcp/0"])
