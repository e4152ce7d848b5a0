"""Two homes with ordinary routers: a session that began through a forwarder goes directly as soon as it can."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from tests.field.homes import Homes, circuit, impossible

why = impossible()
pytestmark = [pytest.mark.processes, pytest.mark.soak, pytest.mark.skipif(why is not None, reason=why or "")]

NAT = ["port-restricted"]
PUBLIC = ("one", "two", "three", "four")
TOKENS = 600
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


def test_a_running_session_needs_no_forwarder_after_fifteen_seconds() -> None:
    """Neither its streams nor the link between its servers: all forwarders stop, and it goes on."""
    with Homes({"alice": NAT, "bob": NAT}, PUBLIC) as homes:
        homes.start_server("first", "alice", "0:4")
        homes.start_server("second", "bob", "4:8")
        homes.wait_until_online("first")
        homes.wait_until_online("second")
        homes.start_writer("writer", "bob", 20, 150, 0.1)
        began = homes.said("writer", lambda line: "token" in line)["at"]
        homes.said("writer", lambda line: line.get("at", 0.0) > began + 15)
        for name in PUBLIC:
            os.killpg(homes.processes[name].pid, signal.SIGSTOP)
        said = homes.finished("writer", 120)
        assert said[-1]["text"] == right(homes, 20, 150)
        at = [line["at"] for line in said if "token" in line]
        gaps = [after - before for before, after in itertools.pairwise(at)]
        moved = "moved" if MOVED in homes.log("writer").read_text() else "was direct from its beginning"
        print(f"\nit {moved}; longest gap {max(gaps):.2f} s, usual {sorted(gaps)[75]:.2f} s")
        assert max(gaps) < 3.0
        assert "reroute" not in homes.log("writer").read_text()


def test_a_direct_way_that_dies_is_left_for_a_forwarder_and_found_again() -> None:
    """Only the way between the homes is shut, so that go-libp2p's own try, with the new circuit, comes to nothing."""
    with Homes({"alice": NAT, "bob": NAT}, PUBLIC) as homes:
        homes.start_server("server", "alice", "0:8")
        homes.wait_until_online("server")
        homes.start_writer("writer", "bob", 20, TOKENS, 0.1)
        began = homes.said("writer", lambda line: "token" in line)["at"]
        over = homes.said("writer", lambda line: line.get("at", 0.0) > began + 15)["at"]
        moved = homes.log("writer").read_text().count(MOVED)
        homes.lab.shut(homes.router("alice"), homes.lab.address(homes.router("bob")))
        back = homes.said("writer", lambda line: line.get("at", 0.0) > over + 20.0)["at"]
        homes.lab.open(homes.router("alice"), homes.lab.address(homes.router("bob")))
        homes.wait(lambda: homes.log("writer").read_text().count(MOVED) > moved, "writer", 90)
        found = homes.lines("writer")[-1]["at"]
        for name in PUBLIC:
            os.killpg(homes.processes[name].pid, signal.SIGSTOP)
        said = homes.finished("writer", 180)
        at = [line["at"] for line in said if "token" in line]
        gaps = [(later - earlier, earlier) for earlier, later in itertools.pairwise(at)]
        left = max(gap for gap, when in gaps if when >= over - 1)
        print(f"\nnext token {left:.1f} s after the way was shut; direct again {found - back:.1f} s after it was open")
        assert said[-1]["text"] == right(homes, 20, TOKENS)
        assert left < 15.0
        assert max(gap for gap, when in gaps if when > found) < 3.0, "no forwarder is needed any more"


def test_what_follows_goes_through_no_forwarder() -> None:
    with Homes({"alice": NAT, "bob": NAT}, PUBLIC) as homes:
        homes.start_peer("peer", "alice", dialled=True)
        peer = homes.said("peer", circuit)
        homes.start_call("call", "bob", peer, "outdated", "take:2e7", "give:2e7")
        shortened = homes.said("call", lambda line: line.get("did") == "outdated", 120)
        before = sum(homes.lab.bytes_through(name)[0] for name in PUBLIC)
        *_, take, give = homes.finished("call", 180)
        through = sum(homes.lab.bytes_through(name)[0] for name in PUBLIC) - before
        print(
            f"\nof 40 MB {through / 1e3:.0f} kB through forwarders; {take['seconds']} s there, {give['seconds']} s back"
        )
        assert "failed" not in {**shortened, **take, **give}
        assert shortened["seconds"] < 15
        assert through < 0.01 * 40e6
