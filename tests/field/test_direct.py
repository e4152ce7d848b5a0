"""Two homes with ordinary routers: a session that began through a forwarder goes directly as soon as it can."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from tests.field import lab
from tests.field.homes import Homes, circuit

why = lab.possible() or (None if os.access("/dev/net/tun", os.R_OK | os.W_OK) else "/dev/net/tun cannot be opened")
pytestmark = [pytest.mark.processes, pytest.mark.soak, pytest.mark.skipif(why is not None, reason=why or "")]

NAT = ["port-restricted"]
PUBLIC = ("one", "two", "three", "four")
MOVED = "a shorter way has come up"


def right(homes: Homes, prompt: int, tokens: int) -> list[int]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(homes.model, dtype=torch.float32)
    torch.manual_seed(0)
    ids = torch.randint(5, 200, (1, prompt))
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return list(out[0, prompt:].tolist())


def test_a_running_session_leaves_the_forwarders() -> None:
    """Both its streams and the link between two servers: it goes on when all forwarders stop."""
    with Homes({"alice": NAT, "bob": NAT}, PUBLIC) as homes:
        homes.start_server("first", "alice", "0:4")
        homes.start_server("second", "bob", "4:8")
        homes.wait_until_online("first")
        homes.wait_until_online("second")
        homes.start_writer("writer", "bob", 20, 150, 0.1)
        homes.wait(lambda: MOVED in homes.log("writer").read_text(), "writer", 90)
        moved = max(line["at"] for line in homes.lines("writer") if "token" in line)
        homes.said("writer", lambda line: line.get("at", 0.0) > moved + 15)
        for name in PUBLIC:
            os.killpg(homes.processes[name].pid, signal.SIGSTOP)
        said = homes.finished("writer", 120)
        assert said[-1]["text"] == right(homes, 20, 150)
        at = [line["at"] for line in said if "token" in line]
        gaps = [after - before for before, after in itertools.pairwise(at)]
        print(f"\nmoved after {moved - at[0]:.1f} s; longest gap {max(gaps):.2f} s, usual {sorted(gaps)[75]:.2f} s")
        assert max(gaps) < 3.0
        assert "reroute" not in homes.log("writer").read_text()


def test_what_follows_goes_through_no_forwarder() -> None:
    with Homes({"alice": NAT, "bob": NAT}, PUBLIC) as homes:
        homes.start_peer("peer", "alice", dialled=True)
        peer = homes.said("peer", circuit)
        homes.start_call("call", "bob", peer, "echo:2:1000", "sleep:15", "take:2e7", "give:2e7")
        homes.said("call", lambda line: line.get("did") == "sleep:15", 120)
        before = sum(sum(homes.lab.bytes_through(name)) for name in PUBLIC)
        *_, take, give = homes.finished("call", 180)
        through = sum(sum(homes.lab.bytes_through(name)) for name in PUBLIC) - before
        print(
            f"\nof 40 MB {through / 1e3:.0f} kB through forwarders; {take['seconds']} s there, {give['seconds']} s back"
        )
        assert "failed" not in {**take, **give}
        assert through < 0.01 * 40e6
