"""A server gets its blocks from another one, and refuses wrong ones: real processes beside a small hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from swarm import DistributedLlama
from swarm.caches import cache_dir
from swarm.client.swarm import connect
from swarm.demo.local_swarm import LocalSwarm
from swarm.models.loading.safetensors import LENGTH
from tests.hub import Hub, hub_of

pytestmark = pytest.mark.processes

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
NAME, BLOCKS = "org/model", "0:8"
KERNELS = cache_dir() / "kernels"
"""Of all tests: built once."""


def header_bytes() -> int:
    """What must be fetched to know which tensors there are."""
    return 2 * LENGTH + int.from_bytes((MODEL / "model.safetensors").read_bytes()[:LENGTH], "little")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_of(MODEL, monkeypatch, tmp_path / "client") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def start(swarm: LocalSwarm, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    """A server of all blocks with caches of its own; where its blocks are kept."""
    with monkeypatch.context() as own:
        own.setenv("XDG_CACHE_HOME", str(folder / name))
        own.setenv("HF_HOME", str(folder / name / "hf"))
        KERNELS.mkdir(parents=True, exist_ok=True)
        cache_dir().mkdir(parents=True)
        (cache_dir() / "kernels").symlink_to(KERNELS)
        swarm.start_server(name, BLOCKS, "--dtype", "float32", *options)
        swarm.wait_until_online(name)
        return cache_dir() / "blocks"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def text(swarm: LocalSwarm) -> list[int]:
    joined = connect([swarm.peer])
    try:
        model: Any = DistributedLlama.from_pretrained(NAME, swarm=joined, dtype="float32")
        ids = torch.tensor([[1, 20, 300, 40]])
        return list(model.generate(ids, do_sample=False, max_new_tokens=24, attention_mask=torch.ones_like(ids))[0])
    finally:
        joined.close()


def test_blocks_come_from_a_server_and_wrong_ones_are_refused(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    with LocalSwarm(NAME) as swarm:
        swarm.start_bootstrap()
        first = start(swarm, "a", tmp_path, monkeypatch)
        right = text(swarm)

        before = hub.tensors_sent()
        second = start(swarm, "b", tmp_path, monkeypatch, "--blocks-from", "peers")
        assert hub.tensors_sent() - before <= header_bytes()
        assert files(second) == files(first)
        swarm.kill("a")
        assert text(swarm) == right

        for path, whole in files(second).items():  # from now on it gives out what it has not loaded
            (second / path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        before = hub.tensors_sent()
        third = start(swarm, "c", tmp_path, monkeypatch)
        assert "no blocks are taken of" in swarm.log("c").read_text()
        assert hub.tensors_sent() - before > 0.9 * sum(map(len, files(first).values()))  # files have larger headers
        assert files(third) == files(first)
