"""GGUF files of a repository: the one that is meant comes, and no other; what would be refused does not come at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swarm.errors import UnsupportedModel
from swarm.models.linear.grid import as_dense
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.gguf import remote
from swarm.models.loading.weights import load_part
from swarm.types import Span
from tests.ggufs import write
from tests.hub import COMMIT, hub_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "model"
    inside.mkdir()
    write(inside / "x.gguf")
    write(inside / "other.gguf", kinds=("Q8_0",))
    return inside


@pytest.mark.parametrize("by_name", [True, False])
def test_the_file_that_is_meant_comes_and_no_other(
    by_name: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of(folder, monkeypatch, tmp_path / "caches") as hub:
        far = open_checkpoint("org/model/x.gguf") if by_name else open_checkpoint("org/model", gguf_file="x.gguf")
        near = open_checkpoint(folder / "x.gguf")
        assert far.commit == COMMIT and far.name == "org/model/x.gguf"
        for name in near.tensors.names():
            assert torch.equal(as_dense(far.tensors.read(name)), as_dense(near.tensors.read(name)))
        load_part(far, Span(0, 1), ends=True, dtype=torch.float32, quantization="file", progress=False)
        assert hub.sent.keys() == {"x.gguf"}


def test_what_would_be_refused_does_not_come(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "x.gguf"
    path.write_bytes(path.read_bytes().replace(b"llama", b"lamma"))
    monkeypatch.setattr(remote, "BEGINNING", 512)
    with hub_of(folder, monkeypatch, tmp_path / "caches") as hub:
        with pytest.raises(UnsupportedModel, match="'lamma' are not read"):
            open_checkpoint("org/model/x.gguf")
        assert hub.sent == {"x.gguf": 512}
