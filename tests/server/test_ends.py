"""The ends of a model at servers that lie, fall silent or are fed nonsense: what a client gets is right."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.client.ends import Ends
from swarm.client.view import View
from swarm.config import ClientConfig, ServerConfig
from swarm.errors import InvalidInput, MissingBlocks, StreamClosed
from swarm.net.base import Stream
from swarm.server.ends import HostedEnds
from swarm.server.ends_service import EndsService
from swarm.testing.clock import run
from swarm.testing.network import SimulatedNetwork
from swarm.types import ModelInfo, ServerRecord
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.ends import ENDS_PROTOCOL

INFO = ModelInfo("m" * 32, "model", 2, 2, None)
CONTRACT = INFO.contract("float32", row_bytes=8)
VOCABULARY, MARK = 100, b"f" * 32
SERVED = replace(CONTRACT, fingerprints=(bytes(8),) * 2)


class Arithmetic:
    """Ends whose logits are sums."""

    fingerprint, vocabulary, embeddings_count, hidden_size, row_bytes, head_ms = MARK, VOCABULARY, VOCABULARY, 2, 8, 1.0

    def __init__(self) -> None:
        self.passes = list[int]()

    def logits(self, rows: bytes, best: int) -> tuple[bytes, bytes]:
        self.passes.append(len(rows) // 8)
        found = [logits_of(rows[at : at + 8]) for at in range(0, len(rows), 8)]
        if not best:
            return b"", b"".join(struct.pack(f"<{VOCABULARY}f", *each) for each in found)
        tokens = [sorted(range(VOCABULARY), key=lambda t: -each[t])[:best] for each in found]
        values = [[each[t] for t in chosen] for each, chosen in zip(found, tokens, strict=True)]
        return (
            b"".join(struct.pack(f"<{best}I", *each) for each in tokens),
            b"".join(struct.pack(f"<{best}f", *each) for each in values),
        )

    def embeddings(self, tokens: Sequence[int]) -> bytes:
        return b"".join(struct.pack("<2f", token, -token) for token in tokens)


def row(number: int) -> bytes:
    return struct.pack("<2f", number, 3.0)


def logits_of(data: bytes) -> list[float]:
    first, second = struct.unpack("<2f", data)
    return [(first * token + second) % 17 + token / 128 for token in range(VOCABULARY)]


@dataclass
class Lab:
    """A client, and servers on the simulated network."""

    network: SimulatedNetwork = field(default_factory=lambda: SimulatedNetwork(seed=1))
    served: dict[str, HostedEnds] = field(default_factory=dict)
    clients: int = 0

    async def server(self, name: str, answer: Callable[[Stream], Awaitable[None]] | None = None) -> None:
        """One that has the ends; `answer`: and answers so."""
        host = self.network.host(name)
        served = self.served[name] = HostedEnds(Arithmetic())
        hosted: Any = SimpleNamespace(contract=SERVED, ends=served, draining=False)
        await host.serve(ENDS_PROTOCOL, answer or EndsService(lambda: [hosted], ServerConfig()).serve)
        record = ServerRecord(
            host.peer_id, SERVED.announced, addresses=host.addresses, expires=1e9, ends=served.announced
        )
        await self.network.directory(host).announce(record, INFO)

    def client(self, **config: Any) -> Ends:
        self.clients += 1
        host = self.network.host(f"client{self.clients}")
        view = View(self.network.directory(host), INFO, CONTRACT, ClientConfig(**config))
        return Ends(host, view, VOCABULARY)

    async def over(self) -> None:
        assert not [failure for host in self.network.hosts.values() for failure in host.failures]
        for each in self.served.values():
            await each.close()


async def right(client: Ends) -> None:
    """What comes is right, in all ways to ask."""
    rows, oracle = b"".join(map(row, range(5))), Arithmetic()
    for best in (0, 1, 20):
        assert await client.logits(rows, 5, best) == oracle.logits(rows, best)
    assert await client.embeddings([7, 0, 99]) == oracle.embeddings([7, 0, 99])


def opened(**changes: Any) -> pb.EndsReply:
    told = {"fingerprint": MARK, "vocabulary": VOCABULARY, "hidden_size": 2, **changes}
    return pb.EndsReply(opened=pb.EndsOpened(**told))


def lying(*replies: pb.EndsReply | bytes | None) -> Callable[[Stream], Awaitable[None]]:
    """Says these, one for each thing that it is asked; None: nothing."""

    async def answer(stream: Stream) -> None:
        for reply in replies:
            await stream.receive(1 << 22)
            if reply is None:
                await asyncio.sleep(1000.0)
            else:
                await stream.send(reply if isinstance(reply, bytes) else reply.SerializeToString())

    return answer


LIARS = {
    "leaves": lying(),
    "silent at once": lying(None),
    "silent later": lying(opened(), None),
    "leaves later": lying(opened()),
    "no message": lying(b"\xff\xff"),
    "another fingerprint": lying(opened(fingerprint=b"g" * 32)),
    "another vocabulary": lying(opened(vocabulary=7)),
    "too few": lying(opened(), pb.EndsReply(logits=pb.Logits(values=b"1234"))),
    "another kind": lying(opened(), pb.EndsReply(embedded=b"12345678")),
    "busy": lying(pb.EndsReply(failure=pb.Failure(code=pb.Failure.BUSY, retry_after=1e9))),
    "an error of its own": lying(opened(), pb.EndsReply(failure=pb.Failure(code=pb.Failure.COMPUTE_FAILED))),
}


@pytest.mark.parametrize("how", LIARS)
def test_who_does_not_answer_right_is_left_for_another(how: str) -> None:
    async def main() -> None:
        lab = Lab()
        await lab.server("a", LIARS[how])
        await lab.server("b")
        client = lab.client()
        client._seen_ms["a"] = 0.0  # it is asked first
        await right(client)
        assert client.server is not None and client.server.peer_id == "b"
        await lab.over()

    run(main())


def test_a_server_that_is_killed_and_a_stream_that_was_idle_for_long() -> None:
    async def main() -> None:
        lab = Lab()
        await lab.server("a")
        await lab.server("b")
        client = lab.client()
        await right(client)
        await asyncio.sleep(100.0)  # the server has closed the stream
        first = client.server
        await right(client)
        assert client.server is first and not client._avoided.active(asyncio.get_running_loop().time())
        assert first is not None
        lab.network.kill(first.peer_id)
        await right(client)
        assert client.server is not first
        await lab.over()

    run(main())


def test_rows_of_many_clients_go_through_the_head_together() -> None:
    async def main() -> None:
        lab = Lab()
        await lab.server("a")
        clients = [lab.client() for _ in range(4)]
        oracle = Arithmetic()
        found = await asyncio.gather(*(client.logits(row(i), 1, 3) for i, client in enumerate(clients)))
        assert found == [oracle.logits(row(i), 3) for i in range(4)]
        ends: Any = lab.served["a"].ends
        assert sum(ends.passes) == 4
        await lab.over()

    run(main())


def test_nobody_is_waited_for_longer_than_is_said() -> None:
    async def main() -> None:
        lab = Lab()
        await lab.server("a", LIARS["leaves"])
        began = asyncio.get_running_loop().time()
        with pytest.raises(MissingBlocks, match=r"no server of the head answers.*max_wait"):
            await lab.client(max_wait=5.0).logits(row(1), 1, 1)
        assert asyncio.get_running_loop().time() - began < 20.0
        await lab.server("b")
        with pytest.raises(InvalidInput, match="token 100: there are 100"):
            await lab.client().embeddings([100])
        await lab.over()

    run(main())


OPEN = pb.EndsRequest(open=pb.EndsWanted(model=INFO.key, dtype="float32", fingerprint=MARK[:8]))


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.just(OPEN.SerializeToString()),
            st.builds(
                lambda rows, size, best: pb.EndsRequest(
                    head=pb.HeadWanted(rows=rows, hidden=bytes(size), best=best)
                ).SerializeToString(),
                st.sampled_from([0, 1, 2, 1 << 31]),
                st.sampled_from([0, 7, 8, 16]),
                st.sampled_from([0, 1, 99, 100, 1 << 31]),
            ),
            st.builds(
                lambda ids: pb.EndsRequest(embed=pb.Tokens(ids=ids)).SerializeToString(),
                st.lists(st.sampled_from([0, 99, 100, (1 << 32) - 1]), max_size=3),
            ),
        ),
        max_size=4,
    )
)
def test_nonsense_is_answered_with_an_error_and_harms_nobody(frames: list[bytes]) -> None:
    async def main() -> None:
        lab = Lab()
        await lab.server("a")
        host = lab.network.host("stranger")
        stream = await host.open_stream("a", ENDS_PROTOCOL, lab.network.hosts["a"].addresses)
        try:
            for frame in frames:
                await stream.send(frame)
                async with asyncio.timeout(5.0):
                    messages.decode(pb.EndsReply, await stream.receive(1 << 22))
        except StreamClosed:
            pass
        await right(lab.client())
        await lab.over()

    run(main())
