"""From the hub come the bytes that are needed and no others; cut off anywhere, it goes on and gives right blocks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarm.errors import BadCheckpoint, ModelNotFound
from swarm.models.blocks import find_blocks
from swarm.models.ends.load import load_ends
from swarm.models.loading import hub as hub_module
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.cost import describe
from swarm.models.loading.safetensors import read_header
from swarm.models.loading.weights import PartialModel, load_part
from swarm.types import Span
from tests.hub import COMMIT, Hub, hub_of
from tests.quantizing import quantize

SPAN = Span(1, 3)
SIZES = {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 512}


@pytest.fixture(params=["one file", "shards"])
def model(request, save, tmp_path: Path) -> Path:
    shard = "1GB" if request.param == "one file" else "250KB"
    folder, _ = save("llama", shard=shard, tie_word_embeddings=False, **SIZES)
    return folder


@pytest.fixture
def hub(model: Path, monkeypatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(hub_module, "PIECE", 10_000)
    monkeypatch.setattr(hub_module, "WAIT", 0.001)
    with hub_of(model, monkeypatch, tmp_path / "caches") as running:
        yield running


def load(span: Span = SPAN, **options: object) -> PartialModel:
    checkpoint = open_checkpoint("org/model", **options)  # type: ignore[arg-type]
    return load_part(checkpoint, span, ends=False, dtype=torch.float32, progress=False)


def assert_right(loaded: PartialModel, folder: Path, span: Span = SPAN) -> None:
    whole = find_blocks(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)).layers
    for block in span:
        for name, tensor in whole[block].state_dict().items():
            assert torch.equal(loaded.blocks.layers[block].state_dict()[name], tensor)


def stored_bytes(folder: Path, *prefixes: str) -> int:
    """Of the tensors whose names begin so."""
    entries = [entry for file in folder.glob("*.safetensors") for entry in read_header(file).items()]
    return sum(entry.last - entry.first for name, entry in entries if name.startswith(prefixes))


def headers(folder: Path) -> int:
    """Of all files, twice: a file that is then fetched as a whole comes with its header."""
    return 2 * sum(min(entry.first for entry in read_header(file).values()) for file in folder.glob("*.safetensors"))


def test_only_the_tensors_of_the_span_are_fetched(hub: Hub) -> None:
    assert_right(load(), hub.folder)
    needed = stored_bytes(hub.folder, "model.layers.1.", "model.layers.2.")
    assert needed <= hub.tensors_sent() <= needed + headers(hub.folder)
    assert all(COMMIT in path for _, path, asked in hub.asked if asked)


def test_what_was_fetched_is_not_fetched_again_and_the_rest_is_added(hub: Hub) -> None:
    load()
    before = hub.tensors_sent()
    assert_right(load(), hub.folder)
    assert hub.tensors_sent() == before
    assert_right(load(Span(1, 4)), hub.folder, Span(1, 4))
    assert hub.tensors_sent() <= before + stored_bytes(hub.folder, "model.layers.3.") + headers(hub.folder)


def test_ends_are_fetched_without_blocks(hub: Hub) -> None:
    ends, _ = load_ends("org/model", dtype="float32", progress=False)
    whole = AutoModelForCausalLM.from_pretrained(hub.folder, dtype=torch.float32)
    assert torch.equal(ends.lm_head.weight, whole.lm_head.weight)
    assert hub.tensors_sent() <= stored_bytes(hub.folder, "lm_head", "model.embed", "model.norm") + headers(hub.folder)


def test_nothing_but_headers_is_fetched_to_say_what_it_costs(hub: Hub) -> None:
    assert describe("org/model").info.blocks == 4
    assert hub.tensors_sent() <= headers(hub.folder)


def test_a_whole_file_is_fetched_as_one_into_the_librarys_cache(hub: Hub, tmp_path: Path) -> None:
    checkpoint = open_checkpoint("org/model")
    load_part(checkpoint, Span(0, 4), ends=True, dtype=torch.float32, progress=False)
    assert list((tmp_path / "caches/hub").rglob("*.safetensors"))
    before = hub.tensors_sent()
    assert_right(load(), hub.folder)
    assert hub.tensors_sent() == before


def test_a_server_without_ranges_gives_whole_files(hub: Hub) -> None:
    hub.ranges = False
    assert_right(load(), hub.folder)


def test_redirected_elsewhere_and_behind_a_token(hub: Hub) -> None:
    hub.elsewhere, hub.token = True, "secret"
    assert_right(load(token="secret"), hub.folder)
    with pytest.raises(ModelNotFound, match="restricted"):
        open_checkpoint("org/model", token="wrong", force_download=True)


@pytest.mark.parametrize("cuts", [[1] * 6, [0, 9_999, 5_000, 1, 0], [3, 0, 0, 0, 7]], ids=str)
def test_connections_that_end_early_are_made_again(hub: Hub, cuts: list[int]) -> None:
    hub.cuts = cuts
    assert_right(load(), hub.folder)
    assert not hub.cuts
    assert hub.tensors_sent() <= stored_bytes(hub.folder, "model.layers.1.", "model.layers.2.") + headers(hub.folder)


@pytest.mark.parametrize("model", ["one file"], indirect=True)
def test_a_connection_that_ends_always_is_an_error_and_what_came_is_kept(hub: Hub) -> None:
    open_checkpoint("org/model").tensors.names()
    hub.cuts = [10_000] * 3 + [0] * 400
    with pytest.raises(ModelNotFound, match="again and again"):
        load()
    hub.cuts, before = [], hub.tensors_sent()
    assert_right(load(), hub.folder)
    needed = stored_bytes(hub.folder, "model.layers.1.", "model.layers.2.")
    assert hub.tensors_sent() - before < needed


def test_offline_what_was_fetched_loads_and_what_was_not_is_told(hub: Hub, monkeypatch) -> None:
    load()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert_right(load(), hub.folder)
    with pytest.raises(ModelNotFound, match="the hub was not asked"):
        load(Span(0, 1))
    assert len(hub.asked) == asked


def test_a_damaged_header_is_told(hub: Hub) -> None:
    for file in hub.folder.glob("*.safetensors"):
        file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])
    with pytest.raises(BadCheckpoint, match="header"):
        load()


def test_a_file_that_is_shorter_than_its_header_says_is_told(hub: Hub) -> None:
    for file in hub.folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BadCheckpoint, match="tells of"):
        load()


def test_of_a_quantized_checkpoint_all_parts_are_fetched(save, monkeypatch, tmp_path: Path) -> None:
    folder, _ = save("llama", **SIZES)
    quantized, _ = quantize(folder, "gptq-ordered")
    with hub_of(quantized, monkeypatch, tmp_path / "caches") as hub:
        loaded = load_part(
            open_checkpoint("org/model"),
            Span(2, 3),
            ends=False,
            dtype=torch.float32,
            quantization="file",
            progress=False,
        )
        assert sorted(loaded.fingerprints) == [2]
        assert hub.tensors_sent() <= stored_bytes(quantized, "model.layers.2.") + headers(quantized)


KILLED = """
import sys, torch
import huggingface_hub.constants as constants
url, cache = sys.argv[1:]
constants.ENDPOINT, constants.HF_HUB_CACHE = url, cache
constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
from swarm.models.loading import hub
hub.PIECE = 4000
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.weights import load_part
from swarm.types import Span
print("begins", flush=True)
load_part(open_checkpoint("org/model"), Span(1, 3), ends=False, dtype=torch.float32, progress=False)
"""


@pytest.mark.parametrize("model", ["one file"], indirect=True)
def test_killed_it_goes_on_and_gives_the_right_blocks(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, hub.url, str(tmp_path / "caches/hub")]
    with subprocess.Popen(command, env=dict(os.environ), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        deadline = time.monotonic() + 60
        while hub.tensors_sent() < 60_000 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
    before = hub.tensors_sent()
    assert before >= 60_000
    assert_right(load(), hub.folder)
    assert hub.tensors_sent() - before < stored_bytes(hub.folder, "model.layers.1.", "model.layers.2.")


def test_the_index_of_shards_is_read_whole(hub: Hub) -> None:
    index = hub.folder / "model.safetensors.index.json"
    if index.exists():
        files = set(json.loads(index.read_text())["weight_map"].values())
        load(Span(3, 4))
        assert {file for file, count in hub.sent.items() if file.endswith(".safetensors") and count} < files
