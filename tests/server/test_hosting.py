"""What a machine decides before it joins, on the tiny model that comes with the project."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from swarm.config import ServerConfig
from swarm.contract import Contract
from swarm.errors import InvalidInput, ModelNotFound
from swarm.server.hosting import Hosting, checked_device
from swarm.server.options import ServeOptions
from swarm.tasks import in_daemon_thread
from swarm.types import ServerRecord, Span
from tests.hub import hub_of

MODEL = str(Path(__file__).parents[2] / "models" / "tiny-llama")
MIB = 1024**2


def hosting(**wishes: object) -> Hosting:
    wishes = {"dtype": "float32", "device": "cpu", **wishes}
    return Hosting(ServeOptions(MODEL, **wishes), ServerConfig(), progress=False)  # type: ignore[arg-type]


def test_the_swarm_sees_the_folders_name_and_not_where_it_is() -> None:
    assert hosting().info.name == "tiny-llama"


def test_as_many_blocks_as_fit_where_nobody_is() -> None:
    host = hosting(memory=8 * MIB, cache_tokens=100)
    record = ServerRecord("peer", Contract(host.info.key, Span(0, 3), (bytes(8),) * 3))
    assert len(host.choose([])) == 5
    assert host.choose([record]) == Span(3, 8)


@pytest.mark.parametrize(
    ("wishes", "complaint"),
    [
        ({"blocks": Span(6, 9)}, "the model has blocks 0:8"),
        ({"blocks": Span(0, 8), "memory": 4 * MIB}, "more than --memory"),
        ({"memory": 1 * MIB}, "no block fits"),
    ],
)
def test_what_cannot_be_hosted_is_refused(wishes: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        hosting(**wishes).choose([])


def test_blocks_that_seem_too_large_are_loaded_when_no_limit_was_set(caplog: pytest.LogCaptureFixture) -> None:
    assert hosting(blocks=Span(0, 8), cache_tokens=10**9).choose([]) == Span(0, 8)
    assert "may be too much" in caplog.text


def test_devices_and_models_that_are_not_there_are_named() -> None:
    with pytest.raises(InvalidInput, match="'tpu9'"):
        checked_device("tpu9")
    with pytest.raises(ModelNotFound, match="/nowhere"):
        Hosting(ServeOptions("/nowhere"), ServerConfig())


def test_a_loaded_span_knows_its_speed_and_its_cache() -> None:
    host = hosting(cache_tokens=100)
    loaded = asyncio.run(host.load(Span(2, 4)))
    assert not host.loading
    assert len(loaded.contract.fingerprints) == 2
    assert {len(fingerprint) for fingerprint in loaded.contract.fingerprints} == {32}
    assert loaded.cache_bytes == loaded.runner.reserved_bytes(Span(2, 4), 100)
    assert loaded.throughput.decode_ms > 0


def test_nobody_waits_for_a_load_that_was_given_up() -> None:
    release = threading.Event()

    async def give_up() -> None:
        async with asyncio.timeout(0.01):
            await in_daemon_thread(release.wait)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    release.set()


def test_what_breaks_a_load_reaches_who_waits() -> None:
    def broken() -> None:
        raise InvalidInput("no")

    with pytest.raises(InvalidInput, match="no"):
        asyncio.run(in_daemon_thread(broken))


def offered(model: str, **wishes: object) -> list[int]:
    """The blocks that a server gives to others."""
    options = ServeOptions(model, **{"device": "cpu", "quantization": "int8", **wishes})  # type: ignore[arg-type]
    return list(Hosting(options, ServerConfig(), progress=False).offered(Span(2, 4)))


def test_blocks_are_given_out_that_everybody_may_have_or_as_it_is_said(tmp_path: Path, monkeypatch) -> None:
    assert offered(MODEL) == []
    assert offered(MODEL, offer_blocks=True) == [2, 3]
    assert offered(MODEL, offer_blocks=True, max_disk=0) == []
    assert offered(MODEL, offer_blocks=True, quantization="none") == [2, 3]
    with hub_of(Path(MODEL), monkeypatch, tmp_path) as hub:
        assert offered("org/model") == [2, 3]
        assert offered("org/model", offer_blocks=False) == []
        hub.token = "secret"
        assert offered("org/model", token="secret") == []
        assert offered("org/model", token="secret", offer_blocks=True) == [2, 3]


def test_blocks_of_peers_are_kept() -> None:
    with pytest.raises(InvalidInput, match="--blocks-from peers"):
        hosting(blocks_from="peers", max_disk=0)


@pytest.mark.parametrize("wishes", [{}, {"offer_blocks": False}, {"max_disk": 0, "offer_blocks": True}])
def test_a_folders_numbers_are_kept_a_second_time_only_for_others(wishes: dict[str, object]) -> None:
    assert hosting(quantization="none", **wishes)._keep is None
    assert hosting(quantization="none", offer_blocks=True)._keep is not None


def test_main_memory_is_no_second_memory_of_a_cpu() -> None:
    with pytest.raises(InvalidInput, match="--cpu-offload: on cpu all blocks are in main memory"):
        hosting(cpu_offload=2)


def test_what_is_moved_when_computed_makes_room_for_more_blocks_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarm.server.hosting.checked_device", lambda wanted: "cuda")
    block = hosting(memory=MIB).sizes.weights[0]
    memory, offload = 4 * block + 1, 3
    assert len(hosting(memory=memory, cache_tokens=0).choose([])) == 4
    assert len(hosting(memory=memory, cache_tokens=0, cpu_offload=offload).choose([])) == 6  # one moves in and out
    asked = hosting(memory=memory, cache_tokens=0, cpu_offload=offload, blocks=Span(1, 7))
    assert asked.choose([]) == Span(1, 7)
    monkeypatch.setattr("swarm.server.hosting.available_memory", lambda device: 2 * block)
    with pytest.raises(InvalidInput, match="--cpu-offload"):
        asked.choose([])
