"""A query node started from Python, on a simulated network with real blocks."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from swarm.config import GatewayConfig
from swarm.errors import InvalidInput, ModelError
from swarm.gateway.life import Gateway, HttpPlace
from swarm.gateway.loading import LoadedModel, load_model
from swarm.net.loop import shared_loop
from swarm.wire import swarm_pb2 as pb
from swarm.wire.messages import QUERY_PROTOCOL
from tests.checkpoints import Served, make_tokenizer

Serve = Callable[[str, int], Served]


@pytest.fixture(scope="module")
def loaded(served: Serve, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("gateway") / "model"
    shutil.copytree(served("llama", 2).folder, folder)
    make_tokenizer().save_pretrained(folder)
    model = load_model(str(folder), dtype="float32")
    return LoadedModel(served("llama", 2).info, model.texts, model.ends, model.recommended, "none")


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


async def lived(served: Served, loaded: Any, work: Callable[[Gateway], Any], **options: Any) -> None:
    """Run a gateway while `work` runs."""
    ready: asyncio.Future[Gateway] = asyncio.get_running_loop().create_future()
    async with served.network.join("gateway") as network:
        gateway = Gateway(network, loaded, on_ready=ready.set_result, **options)
        running = asyncio.create_task(gateway.run())
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        await work(await ready)
        gateway.leave()
        await running


def test_it_is_ready_when_it_answers_and_is_known(served: Serve, loaded: LoadedModel) -> None:
    servers = served("llama", 2)

    async def work(gateway: Gateway) -> None:
        nodes = await servers.swarm.directory.query_nodes(servers.info.key)
        assert [node.peer_id for node in nodes] == [gateway.network.host.peer_id]
        assert gateway.missing is None
        async with httpx.AsyncClient() as client:
            body = {"model": servers.info.name, "prompt": "abc", "max_tokens": 3}
            answer = (await client.post(f"{gateway.url}/completions", json=body)).json()
        assert answer["usage"]["completion_tokens"] == 3

    async def main() -> None:
        await lived(servers, loaded, work, http=HttpPlace(port=0))
        assert await servers.swarm.directory.query_nodes(servers.info.key) == []

    shared_loop().run(main())
    servers.assert_free()


def test_an_address_that_is_taken_ends_it_before_it_is_ready(served: Serve, loaded: LoadedModel, port: int) -> None:
    async def never(gateway: Gateway) -> None:
        raise AssertionError("it is not ready")

    async def main() -> None:
        with pytest.raises(InvalidInput, match=str(port)):
            await lived(served("llama", 2), loaded, never, http=HttpPlace(port=port))

    shared_loop().run(main())


def test_it_may_answer_peers_alone(served: Serve, loaded: LoadedModel) -> None:
    async def work(gateway: Gateway) -> None:
        assert gateway.url == ""

    shared_loop().run(lived(served("llama", 2), loaded, work))


def test_it_answers_for_several_models_each_by_its_name(served: Serve, loaded: LoadedModel) -> None:
    servers = served("llama", 2)
    other = replace(loaded, info=replace(loaded.info, key="other", name="other"))

    async def ask(gateway: Gateway, model: str) -> pb.QueryReply:
        stream = await servers.swarm.host.open_stream(gateway.network.host.peer_id, QUERY_PROTOCOL)
        asked = pb.Query(id=bytes(16), model=model, text="abc", sampling=pb.Sampling(max_tokens=2))
        await stream.send(asked.SerializeToString())
        last = pb.QueryReply()
        while last.WhichOneof("kind") not in ("finished", "failure"):
            last = pb.QueryReply.FromString(await stream.receive(1 << 20))
        stream.close()
        return last

    async def work(gateway: Gateway) -> None:
        for key in (servers.info.key, "other"):
            assert len(await servers.swarm.directory.query_nodes(key)) == 1
        assert gateway.missing is not None
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            assert [each["id"] for each in (await client.get("/models")).json()["data"]] == [loaded.info.name, "other"]
            body = {"model": loaded.info.name, "prompt": "abc", "max_tokens": 3}
            assert (await client.post("/completions", json=body)).json()["usage"]["completion_tokens"] == 3
            assert (await client.post("/completions", json={**body, "model": "other"})).status_code == 503
            metrics = (await client.get(f"{gateway.url.removesuffix('/v1')}/metrics")).text
        assert f"swarm_request_capacity {2.0 * GatewayConfig().capacity}" in metrics
        assert f"swarm_blocks_missing {loaded.info.blocks:.1f}" in metrics
        assert (await ask(gateway, loaded.info.key)).finished.completion_tokens == 2
        for nobody in ("", "nobody's"):
            failure = (await ask(gateway, nobody)).failure
            assert failure.code == pb.Failure.INVALID
            assert f"{loaded.info.name}, other" in failure.message

    shared_loop().run(lived(servers, [loaded, other], work, http=HttpPlace(port=0)))
    servers.assert_free()
    for wrong in ([], [loaded, loaded]):
        with pytest.raises(InvalidInput, match="a name each"):
            shared_loop().run(lived(servers, wrong, work))


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        load_model(str(tmp_path))
