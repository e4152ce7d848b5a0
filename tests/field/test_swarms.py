"""Whole swarms in homes: a server in one, who asks it in another; what it takes, and what happens when forwarders go.

Times are printed (`-s`). They are asserted where they are what somebody waits for, with room for a busy machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from tests.field.homes import Homes, circuit, impossible

why = impossible()
pytestmark = [pytest.mark.processes, pytest.mark.soak, pytest.mark.skipif(why is not None, reason=why or "")]

KINDS = {
    "public": [],
    "symmetric": ["symmetric"],
    "port-restricted": ["port-restricted"],
    "carrier": ["port-restricted", "symmetric"],
}

BUSY = 4.0
"""Seconds that a busy machine may take longer for a program's own work."""


def tokens(homes: Homes, name: str) -> list[float]:
    """When each token came, in seconds since the client began to connect."""
    return [line["at"] for line in homes.lines(name) if "token" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_two_homes_are_one_swarm(kind: str) -> None:
    with Homes({"alice": KINDS[kind], "bob": KINDS[kind]}) as homes:
        homes.start_server("server", "alice", "0:8")
        homes.wait_until_online("server")
        for name, prompt, count in (("short", 20, 200), ("long", 2000, 2)):
            homes.start_writer(name, "bob", prompt, count)
            said = homes.finished(name, 180)
            at = tokens(homes, name)
            assert len(said[-1]["text"]) == count, homes.log(name).read_text()
            print(f"\n{kind}: {prompt} positions, first token {at[0]:.1f} s, all {len(at)} {at[-1]:.1f} s", said[0])
            assert at[0] < 6.0 + BUSY
        homes.start_peer("peer", "alice", dialled=True)
        peer = homes.said("peer", circuit if KINDS[kind] else lambda line: "addresses" in line)
        homes.start_call("call", "bob", peer, "echo:20:8192", "take:2e7", "give:2e7")
        _, echo, take, give = homes.finished("call", 120)
        print(f"{kind}: {echo}, 20 MB in {take['seconds']} s there, {give['seconds']} s back")
        assert "failed" not in {**echo, **take, **give}
        assert kind == "public" or max(take["seconds"], give["seconds"]) < 2 * 20e6 * 8 / 50e6 + BUSY


@pytest.mark.parametrize(("forwarders", "back", "patience"), [(("one", "two"), False, 6.0), (("one",), True, 30.0)])
def test_a_forwarder_is_killed_in_the_middle(forwarders: Sequence[str], back: bool, patience: float) -> None:
    nat = ["symmetric"]
    with Homes({"alice": nat, "bob": nat}, forwarders) as homes:
        homes.start_server("server", "alice", "0:8")
        homes.wait_until_online("server")
        homes.start_writer("writer", "bob", 20, 120, 0.1)
        homes.said("writer", lambda line: line.get("token") == 10)
        before = {name: homes.lab.bytes_through(name)[0] for name in forwarders}
        homes.said("writer", lambda line: line.get("token") == 30)
        used = max(forwarders, key=lambda name: homes.lab.bytes_through(name)[0] - before[name])
        homes.kill(used)
        if back:
            homes.start_bootstrap(used)
        said = homes.finished("writer", 180)
        assert len(said[-1]["text"]) == 120
        at = tokens(homes, "writer")
        gap = max(later - earlier for earlier, later in itertools.pairwise(at))
        print(
            f"\none of {len(forwarders)} forwarders killed{', and back' if back else ''}: next token after {gap:.1f} s"
        )
        assert gap < patience
        homes.start_writer("alone", "alice", 20, 120)
        assert homes.finished("alone", 180)[-1]["text"] == said[-1]["text"], "exactly the text"
        assert "no server hosts" not in homes.log("writer").read_text()
