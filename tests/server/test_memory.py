"""What a server's memory is, with real blocks: what is counted is what is held, whoever asks for how little."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from survey.configs import HIDDEN, small_config
from survey.reference import build
from swarm.client.session import Session
from swarm.config import MIB, ServerConfig
from swarm.models.span.model import SpanModel
from swarm.testing import Arithmetic, Peer, World, run
from swarm.types import Rows, Span
from swarm.wire import swarm_pb2 as pb

SPAN = Span(0, 3)
# These models are so small that threads would only wait for each other.
torch.set_num_threads(1)
ROW = torch.linspace(0.5, 1.0, HIDDEN).numpy().tobytes()
SEQUENCES = 26_000


def resident() -> int:
    """Bytes of main memory that this process has."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


async def fill(world: World, peer: Peer, good: Session, sessions: int, each: int) -> int:
    """Sessions of `each` sequences of one position beside one that goes on; returns the most bytes that were held."""
    server, most = world.servers["s"], 0
    rows = [pb.Rows(sequence=i, count=1) for i in range(each)]
    for number in range(sessions):
        session = number.to_bytes(16, "big")
        control = await peer.control("s", peer.opening("s", session))
        await control.say(pb.ControlRequest(prepare=pb.Prepare(epoch=1)))
        await control.say(pb.ControlRequest(resume=pb.Resume(epoch=1)))
        data = await peer.data("s", session, 1)
        await data.say(pb.Data(step=pb.Step(rows=rows, hidden=ROW * each)))
        await good.step([Rows(0, ROW, 1)])
        await asyncio.sleep(1.0)
        most = max(most, server.bytes_held())
    return most


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say what a process has")
def test_a_stranger_with_26000_sequences_gets_the_budget_and_no_more() -> None:
    async def main() -> None:
        arithmetic = Arithmetic(
            len(ROW), lambda token, position: ROW, lambda row: 0, lambda span: SpanModel(model, span), "float32", HIDDEN
        )
        server_config = ServerConfig(cache_bytes=128 * MIB, prefix_share=0.0)
        world = World(blocks=len(SPAN), arithmetic=arithmetic, server_config=server_config)
        server = await world.add("s", SPAN)
        good = world.session()
        await fill(world, Peer(world, "first"), good, 1, 256)
        world.network.kill("first")
        await asyncio.sleep(60.0)
        before = resident()
        most = await fill(world, Peer(world, "stranger"), good, SEQUENCES // 256 + 1, 256)
        assert good.reroutes == 0
        assert server_config.cache_bytes * 0.8 < most <= server_config.cache_bytes
        assert server.hosted.statistics().kv_bytes <= server_config.cache_bytes
        assert resident() - before <= 1.1 * server_config.cache_bytes, f"{(resident() - before) / MIB:.0f} MiB"
        await world.close()

    config = small_config("llama")
    config.max_position_embeddings, config.head_dim = 400, 64
    model = build(config)
    run(main())
