"""Two peers, each behind the router of its home, reach each other."""

from __future__ import annotations

import pytest

from tests.field.homes import Homes, circuit, impossible

why = impossible()
pytestmark = [pytest.mark.processes, pytest.mark.skipif(why is not None, reason=why or "")]


def test_behind_two_symmetric_nats_megabytes_go_through_a_forwarder() -> None:
    with Homes({"alice": ["symmetric"], "bob": ["symmetric"]}) as homes:
        homes.start_peer("peer", "alice", dialled=True)
        homes.start_call("call", "bob", homes.said("peer", circuit), "echo:5:1000", "take:4e6", "give:4e6")
        _, *done = homes.finished("call")
        assert len(done) == 3
        assert not any("failed" in each for each in done), done
        assert "forwarded" in homes.log("boot").read_text()
