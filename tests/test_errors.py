"""Every error: where it happened, in its message, and across processes."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest

from swarm import errors
from swarm.client.link import HopLink
from swarm.config import ClientConfig
from swarm.errors import (
    ContractMismatch,
    LimitExceeded,
    MissingBlocks,
    NoServerFits,
    PeerUnreachable,
    ServerBusy,
    StreamClosed,
    SwarmError,
)
from swarm.net.base import Stream
from swarm.tasks import Tasks
from swarm.testing import Peer, SimulatedNetwork, World, run
from swarm.types import Hop, Span

WHERE: dict[str, Any] = {"peer": "12D3KooWpeer", "span": Span(4, 8), "session": bytes(range(16))}


def kinds(kind: type[SwarmError] = SwarmError) -> Iterator[type[SwarmError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from kinds(below)


OURS = sorted({kind for kind in kinds() if kind.__module__ == "swarm.errors"}, key=lambda kind: kind.__name__)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    parents: list[tuple[int, str]] = []
    told = {}
    for indent, name in re.findall(r"^([│├└─ ]*)([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE):
        if not hasattr(errors, name):
            continue
        while parents and parents[-1][0] >= len(indent):
            parents.pop()
        told[name] = parents[-1][1] if parents else "Exception"
        parents.append((len(indent), name))
    assert told == {kind.__name__: kind.__mro__[1].__name__ for kind in OURS}


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_any_error_says_where_and_survives_pickling_and_copying(kind: type[SwarmError]) -> None:
    error = kind("it broke").attach(**WHERE)
    for again in (error, pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert (again.peer, again.span, again.session) == tuple(WHERE.values())
        assert str(again) == "it broke (peer 12D3KooWpeer, blocks 4:8, session 00010203)"
        assert again.message == "it broke"


@pytest.mark.parametrize(
    "error",
    [
        ServerBusy("full", 7.0),
        MissingBlocks("gone", [(1, 3)]),
        LimitExceeded("much", "sequences", 4, 9),
        NoServerFits("unlike", [(1, 3)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_an_error_knows_besides_survives_too(error: SwarmError) -> None:
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error) != {}


def test_who_was_nearest_knows_best_and_nothing_is_said_twice() -> None:
    error = StreamClosed("the stream to 12D3KooWpeer is closed").attach(peer="12D3KooWpeer")
    assert str(error) == "the stream to 12D3KooWpeer is closed"
    assert error.attach(peer="another", span=Span(0, 1)).peer == "12D3KooWpeer"
    assert str(error).endswith("(blocks 0:1)")


def test_errors_of_streams_and_of_dialling_carry_the_peer() -> None:
    async def hold(stream: Stream) -> None:
        await stream.receive(8)

    async def main() -> None:
        network = SimulatedNetwork()
        one, two = network.host("one"), network.host("two")
        await two.serve("/t", hold)
        with pytest.raises(PeerUnreachable) as dialled:
            await one.open_stream("two", "/other")
        assert dialled.value.peer == "two"
        stream = await one.open_stream("two", "/t")
        stream.concerns(span=Span(0, 4), session=bytes(16))
        network.kill("two")
        with pytest.raises(StreamClosed) as ended:
            await stream.receive(8)
        assert (ended.value.peer, ended.value.span, ended.value.session) == ("two", Span(0, 4), bytes(16))

    run(main())


def test_what_a_client_hears_of_a_hop_says_hop_and_session() -> None:
    async def main() -> None:
        world = World(blocks=4)
        server = await world.add("a", Span(0, 4))
        tasks = Tasks(logging.getLogger(__name__))
        hop, heard = Hop(server.record, Span(0, 4)), list[Any]()
        link = HopLink(world.network.host("client"), hop, ClientConfig(), lambda link, what: heard.append(what), tasks)
        opening = Peer(world, "stranger").opening("a", b"").open
        await link.open(opening)
        opening.contract.dtype = "another"
        refused = HopLink(world.network.host("other"), hop, ClientConfig(), lambda link, what: None, tasks)
        with pytest.raises(ContractMismatch) as caught:
            await refused.open(opening)
        world.network.kill("a")
        await asyncio.sleep(1.0)
        (lost,) = heard
        for error, session in ((lost, link.session), (caught.value, refused.session)):
            assert (error.peer, error.span, error.session) == ("a", Span(0, 4), session)
        link.drop()
        refused.drop()
        await tasks.close()
        await world.close()

    run(main())
