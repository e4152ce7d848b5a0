"""Two peers, each behind the router of its home, reach each other."""

from __future__ import annotations

import os

import pytest

from tests.field import lab
from tests.field.homes import Homes, circuit

why = lab.possible() or (None if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "/dev/net/tun cannot be opened")
pytestmark = [pytest.mark.processes, pytest.mark.skipif(why is not None, reason=why or "")]


@pytest.mark.soak
@pytest.mark.xfail(reason="the relay cuts every circuit after 128 KiB", strict=True)
def test_behind_two_symmetric_nats_twenty_megabytes_go_through() -> None:
    with Homes({"alice": ["symmetric"], "bob": ["symmetric"]}) as homes:
        homes.start_peer("peer", "alice")
        homes.start_call("call", "bob", homes.said("peer", circuit), "echo:5:1000", "take:2e7")
        _, echo, take = homes.finished("call")
        assert "failed" not in echo, echo
        assert "failed" not in take, take
