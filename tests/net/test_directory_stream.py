"""The directory asked over a stream: what is asked, what is answered, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.config import NetworkConfig
from swarm.errors import NetworkError, SwarmError
from swarm.net import directory_stream, records
from swarm.net.directory_stream import DirectoryDesk, RemoteDirectory
from swarm.net.identity import Identity
from swarm.testing import SimulatedNetwork, run
from swarm.types import ModelInfo, PeerId
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

CONFIG = NetworkConfig()
MINE, OTHER = Identity.generate(), Identity.generate()
KEY = records.MODELS_KEY
MODEL = ModelInfo("k" * 8, "a model", 4, 16, None)


class Shelf:
    """Keeps what it is given, by key and owner."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[PeerId, bytes]] = {}
        self.fails = False
        self.waits = 0.0

    async def read(self, keys: Sequence[str]) -> list[bytes]:
        await asyncio.sleep(self.waits)
        if self.fails:
            raise NetworkError("out of order")
        return [value for key in keys for value in self.kept.get(key, {}).values()]

    async def keep(self, owner: PeerId, values: Mapping[str, tuple[bytes, float]]) -> None:
        for key, (value, _) in values.items():
            self.kept.setdefault(key, {})[owner] = value


def entry(identity: Identity, model: ModelInfo = MODEL) -> bytes:
    return records.sign_model(identity, model, time.time() + 30.0)


def scenario(main: Callable[[SimulatedNetwork, Shelf, RemoteDirectory], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        network, shelf = SimulatedNetwork(), Shelf()
        await DirectoryDesk(shelf, CONFIG).serve(network.host("desk"))
        here = network.host(MINE.peer_id)
        await main(network, shelf, RemoteDirectory(here, ["desk"], MINE, CONFIG))

    run(whole())


async def ask(network: SimulatedNetwork, frame: bytes, who: str = "stranger") -> list[pb.DirectoryReply]:
    stream = await (network.hosts.get(who) or network.host(who)).open_stream("desk", messages.DIRECTORY_PROTOCOL)
    await stream.send(frame)
    replies = []
    with contextlib.suppress(SwarmError):
        while True:
            replies.append(pb.DirectoryReply.FromString(await stream.receive(1 << 20)))
    return replies


def test_more_than_a_frame_comes_in_several() -> None:
    async def main(network: SimulatedNetwork, shelf: Shelf, directory: RemoteDirectory) -> None:
        value = entry(MINE)
        shelf.kept[KEY] = {str(i): value for i in range(3 * directory_stream.FRAME // len(value))}
        assert len(await directory._read([KEY])) == len(shelf.kept[KEY])
        assert await directory.models() == [MODEL]

    scenario(main)


def test_only_what_the_asker_signed_is_stored() -> None:
    async def main(network: SimulatedNetwork, shelf: Shelf, directory: RemoteDirectory) -> None:
        (said,) = await ask(network, pb.DirectoryRequest(records=[entry(OTHER)]).SerializeToString(), MINE.peer_id)
        assert OTHER.peer_id in said.refused
        broken = entry(MINE)[:-1] + b"x"
        (said,) = await ask(network, pb.DirectoryRequest(records=[broken]).SerializeToString(), MINE.peer_id)
        assert said.refused
        assert not shelf.kept
        (said,) = await ask(network, pb.DirectoryRequest(records=[entry(MINE)]).SerializeToString(), MINE.peer_id)
        assert not said.refused
        assert set(shelf.kept[KEY]) == {MINE.peer_id}

    scenario(main)


def test_what_is_too_much_is_not_even_looked_at() -> None:
    async def main(network: SimulatedNetwork, shelf: Shelf, directory: RemoteDirectory) -> None:
        for request in (
            pb.DirectoryRequest(keys=["k"] * (directory_stream.MOST_KEYS + 1)),
            pb.DirectoryRequest(keys=["k" * (directory_stream.LONGEST_KEY + 1)]),
            pb.DirectoryRequest(records=[entry(MINE)] * (directory_stream.MOST_STORED + 1)),
        ):
            assert await ask(network, request.SerializeToString(), MINE.peer_id) == []
        assert not shelf.kept
        shelf.waits = 5.0
        asking = [asyncio.ensure_future(ask(network, pb.DirectoryRequest(keys=[KEY]).SerializeToString()))]
        asking += [
            asyncio.ensure_future(ask(network, pb.DirectoryRequest(keys=[KEY]).SerializeToString(), f"s{i}"))
            for i in range(directory_stream.READINGS)
        ]
        refused = [reply.refused for replies in await asyncio.gather(*asking) for reply in replies]
        assert sum(map(bool, refused)) == 1

    scenario(main)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_is_asked_is_answered_or_refused_by_type(frame: bytes) -> None:
    async def main(network: SimulatedNetwork, shelf: Shelf, directory: RemoteDirectory) -> None:
        await ask(network, frame)
        assert not network.hosts["desk"].failures

    scenario(main)


def test_another_is_asked_where_one_does_not_answer() -> None:
    async def main(network: SimulatedNetwork, shelf: Shelf, directory: RemoteDirectory) -> None:
        failing = Shelf()
        failing.fails = True
        await DirectoryDesk(failing, CONFIG).serve(network.host("broken"))
        several = RemoteDirectory(network.hosts[MINE.peer_id], ["gone", "broken", "desk"], MINE, CONFIG)
        shelf.kept[KEY] = {MINE.peer_id: entry(MINE)}
        assert await several.models() == [MODEL]
        assert several.neighbours()[0] == "desk"
        none = RemoteDirectory(network.hosts[MINE.peer_id], ["broken"], MINE, CONFIG)
        with pytest.raises(NetworkError, match="out of order"):
            await none.models()
        await none.close()
        with pytest.raises(NetworkError, match="nobody to ask"):
            await none.models()

    scenario(main)
