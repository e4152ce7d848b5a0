"""A process's connection: how it is asked for, and what a process that is forked off makes of its parent's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from swarm.client import swarm as module
from swarm.client.swarm import Swarm, connect
from swarm.config import NetworkConfig
from swarm.errors import InvalidInput
from swarm.net.loop import shared_loop
from swarm.testing import LinkConditions, SimulatedNetwork

PEER = "/ip4/203.0.113.5/tcp/31337/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
OTHER = PEER.replace("31337", "31338")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[NetworkConfig]:
    """How the network was joined; it is one in memory."""
    configs: list[NetworkConfig] = []
    network = SimulatedNetwork(conditions=LinkConditions(delay=0))

    async def join(config: NetworkConfig) -> Swarm:
        configs.append(config)
        return Swarm(network.join(f"client{len(configs)}"), shared_loop())

    monkeypatch.setattr(module, "_join", join)
    return configs


@pytest.mark.parametrize("peers", [PEER, [PEER], (PEER,), f" {PEER} "])
def test_one_peer_may_be_a_text(joined: list[NetworkConfig], peers: Any) -> None:
    with connect(peers) as swarm:
        assert connect([PEER]) is swarm
    assert [config.initial_peers for config in joined] == [(PEER,)]


@pytest.mark.parametrize("peers", [f"{PEER},{OTHER}", f"{PEER} {OTHER}", [PEER, OTHER]])
def test_several_peers(joined: list[NetworkConfig], peers: Any) -> None:
    connect(peers).close()
    assert joined[0].initial_peers == (PEER, OTHER)


@pytest.mark.parametrize("name", ["host_maddrs", "announce_maddrs"])
@pytest.mark.parametrize("given", ["/ip4/127.0.0.1/tcp/0", ["/ip4/127.0.0.1/tcp/0"]])
def test_addresses_too(joined: list[NetworkConfig], name: str, given: Any) -> None:
    connect(PEER, **{name: given}).close()
    assert getattr(joined[0], name) == ("/ip4/127.0.0.1/tcp/0",)


def test_what_is_no_option_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"connect knows no port; there are .*announce_maddrs"):
        connect(PEER, port=1)


@pytest.mark.parametrize("name", ["initial_peers", "host_maddrs", "announce_maddrs"])
def test_a_text_is_no_tuple_of_addresses(name: str) -> None:
    with pytest.raises(InvalidInput, match=f"{name} is a tuple"):
        NetworkConfig(**{name: PEER})


FORK = """
import os, sys, threading
import swarm.client.swarm as module
from swarm.client.swarm import Swarm, connect
from swarm.errors import NetworkError
from swarm.net import loop
from swarm.net.loop import shared_loop
from swarm.testing import SimulatedNetwork

async def join(config):
    return Swarm(network.join(f"peer{os.getpid()}"), shared_loop())

module._join, network = join, SimulatedNetwork()
first = connect("PEER")
first.models()
holding, done = threading.Event(), threading.Event()

def hold():
    with loop._lock, module._lock:
        holding.set()
        done.wait()

threading.Thread(target=hold, daemon=True).start()
holding.wait()
child = os.fork()
if child:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done.set()
    sys.exit(code)
second = connect("PEER")
assert second is not first and connect("PEER") is second
assert second.models() == []
try:
    first.models()
except NetworkError as error:
    assert "connect anew after the fork" in str(error)
else:
    raise AssertionError("the parent's connection was used")
first.end(None)
first.close()
second.close()
print("connected anew")
"""


def test_a_process_that_is_forked_off_connects_anew() -> None:
    """Whatever another thread was doing when it was forked, and it ends without a word."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK.replace("PEER", PEER)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "connected anew\n", "")
