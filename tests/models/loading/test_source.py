"""A block's file from elsewhere counts by what is in it: right, or refused, whatever the file is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.loading.block_cache import Damaged
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.safetensors import LENGTH
from swarm.models.loading.source import Wanted
from swarm.models.loading.weights import PartialModel, load_part
from swarm.types import Span
from tests import ggufs, quantizing
from tests.checkpoints import save as save_small
from tests.models.conftest import make

SPAN = Span(1, 3)
KINDS = {
    "numbers": ("llama", "none"),
    "experts as numbers": ("qwen2_moe", "none"),
    "int8": ("llama", "int8"),
    "experts in int4": ("qwen3_moe", "int4"),
    "turned experts in int8": ("gpt_oss", "int8"),
    "ordered columns": ("llama gptq-ordered", "file"),
    "levels from a table": ("llama nf4", "file"),
    "levels that are floats": ("llama fp8", "file"),
    "experts in MXFP4": ("gpt_oss mxfp4", "file"),
    "experts of a GGUF file": ("qwen3moe gguf", "file"),
    "scales that count units": ("llama gguf", "file"),
}
"""What is loaded, and what it is computed on."""


def written(folder: Path, kind: str) -> Path:
    """A small checkpoint."""
    model_type, _, layout = kind.partition(" ")
    if layout == "gguf":
        folder.mkdir()
        many = {"hidden_size": 256, "intermediate_size": 256} if model_type == "llama" else {}
        types = ("Q4_K", "Q6_K", "Q4_1") if many else ("Q4_0",)
        config = ggufs.small_config(model_type, num_hidden_layers=3, **many)
        return ggufs.write(folder / "m.gguf", model_type, types, config=config)
    path = save_small(folder, model_type)
    return quantizing.quantize(path, layout)[0] if layout else path


@dataclass
class Copies:
    """A `BlockSource` that copies files of a folder, without a look into them; `wanted`: what it was asked for."""

    folder: Path | None = None
    wanted: list[Wanted] = field(default_factory=list)
    rest: Sequence[int] = ()

    def fetch(self, wanted: Sequence[Wanted], rest: Sequence[int]) -> None:
        self.wanted, self.rest = list(wanted), rest
        for each in wanted if self.folder else ():
            each.path.parent.mkdir(exist_ok=True)
            each.path.write_bytes((self.folder / each.path.name).read_bytes())  # type: ignore[operator]


def load(folder: Path, keep: Path, source: Copies, quantization: str = "int8") -> tuple[PartialModel, set[str]]:
    """The blocks, and the tensors that were read of the checkpoint for them."""
    checkpoint = open_checkpoint(folder)
    assert checkpoint.key
    tensors, read = checkpoint.tensors, set()
    original, original_experts = tensors.read, tensors.experts

    def noted(name: str, rows: slice | None = None) -> Any:
        read.add(name)
        return original(name, rows)

    def noted_experts(name: str, some: range | None = None) -> Any:
        found = original_experts(name, some)
        return None if found is None else (read.add(name) or grid for grid in found)

    tensors.read, tensors.experts = noted, noted_experts  # type: ignore[method-assign]
    how: dict[str, Any] = {"ends": False, "dtype": torch.float32, "progress": False, "quantization": quantization}
    return load_part(checkpoint, SPAN, keep=keep, source=source, **how), read


def numbers(loaded: PartialModel) -> list[torch.Tensor]:
    """All that is computed with, the weights on grids by their digests."""
    blocks = loaded.blocks.layers[SPAN.first : SPAN.last]
    layers = [part for block in blocks for part in block.modules() if isinstance(part, QuantizedLinear)]
    digests = [torch.frombuffer(bytearray(layer.grid.digest()), dtype=torch.uint8) for layer in layers]
    return [*(parameter for block in blocks for parameter in block.parameters()), *digests]


@pytest.mark.parametrize("kind", KINDS)
def test_with_somebody_elses_blocks_nothing_is_read_of_the_checkpoint(tmp_path: Path, kind: str) -> None:
    name, quantization = KINDS[kind]
    folder, asked = written(tmp_path / "model", name), Copies()
    first, read = load(folder, tmp_path / "a", asked, quantization)
    assert read and [each.block for each in asked.wanted] == list(SPAN) and not asked.rest
    for each in asked.wanted:
        assert each.path.stat().st_size <= each.most <= 4 * each.path.stat().st_size + 100_000
        assert each.fingerprint(each.path) == first.fingerprints[each.block]
        each.compare(each.path)
    second, read = load(folder, tmp_path / "b", Copies(tmp_path / "a"), quantization)
    assert not read
    assert second.fingerprints == first.fingerprints
    assert all(torch.equal(*pair) for pair in zip(numbers(first), numbers(second), strict=True))


def test_who_has_the_blocks_asks_nobody(save, tmp_path: Path) -> None:
    folder, _ = save("llama", hidden_size=64, intermediate_size=96)
    load(folder, tmp_path / "a", Copies())
    asked = Copies()
    load(folder, tmp_path / "a", asked)
    assert not asked.wanted and not asked.rest


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Wanted, bytes, bytes]:
    """A block that is wanted, its file, and its fingerprint."""
    root, asked = tmp_path_factory.mktemp("kept"), Copies()
    make("llama", hidden_size=64, intermediate_size=96).save_pretrained(root / "model")
    loaded, _ = load(root / "model", root / "blocks", asked)
    wanted = asked.wanted[0]
    return wanted, wanted.path.read_bytes(), loaded.fingerprints[wanted.block]


def judged(wanted: Wanted, data: bytes, path: Path) -> bytes | None:
    path.write_bytes(data)
    try:
        return wanted.fingerprint(path)
    except Damaged:
        return None


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_file_that_is_changed_or_cut_has_the_right_numbers_or_is_refused(kept, tmp_path: Path, data) -> None:
    wanted, whole, right = kept
    path, at = tmp_path / "file", data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 4000))
    if data.draw(st.booleans()):
        assert judged(wanted, whole[:at], path) is None
    else:
        changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
        assert judged(wanted, changed, path) in (None, right)


def with_header(whole: bytes, change: Any) -> bytes:
    """The file with another header, and the room that it had."""
    length = int.from_bytes(whole[:LENGTH], "little")
    header = json.loads(whole[LENGTH : LENGTH + length])
    change(header)
    return whole[:LENGTH] + json.dumps(header).encode().ljust(length) + whole[LENGTH + length :]


@pytest.mark.parametrize("what", ["shape", "empty", "dtype", "made of", "sums", "missing", "long"])
def test_headers_that_lie_are_refused(kept, tmp_path: Path, what: str) -> None:
    wanted, whole, right = kept

    def change(header: dict[str, Any]) -> None:
        codes = next(name for name in header if name.endswith("|codes"))
        if what == "shape":
            rows, columns = header[codes]["shape"]
            header[codes]["shape"] = [rows // 2, columns * 2]
        elif what == "empty":
            header[codes] = {**header[codes], "shape": [1 << 40, 0]}
        elif what == "dtype":
            header[codes]["dtype"] = "U8"
        elif what == "made of":
            header["__metadata__"]["made_of"] += "0"
        elif what == "sums":
            header["__metadata__"]["sums"] = "{}"
        elif what == "missing":
            del header[codes]

    lie = b"\xff" * 8 + whole[8:] if what == "long" else with_header(whole, change)
    assert judged(wanted, whole, tmp_path / "file") == right
    assert judged(wanted, lie, tmp_path / "file") is None


@pytest.mark.parametrize(("model_type", "scheme"), [("llama", "int8"), ("llama", "none"), ("qwen3_moe", "int4")])
def test_another_models_blocks_do_not_agree_with_the_checkpoint(tmp_path: Path, model_type: str, scheme: str) -> None:
    folder, other, ours, theirs = tmp_path / "model", tmp_path / "other", Copies(), Copies()
    save_small(folder, model_type)
    make_other(folder, other)
    load(folder, tmp_path / "a", ours, scheme)
    load(other, tmp_path / "b", theirs, scheme)
    mine, yours = ours.wanted[0], theirs.wanted[0]
    whole = yours.path.read_bytes()
    said = json.loads(mine.path.read_bytes()[LENGTH:].split(b" " * 20)[0])["__metadata__"]["made_of"]
    forged = tmp_path / "forged"
    forged.write_bytes(with_header(whole, lambda header: header["__metadata__"].update(made_of=said)))
    assert mine.fingerprint(forged) == yours.fingerprint(yours.path)
    with pytest.raises(Damaged):
        mine.compare(forged)


def make_other(folder: Path, other: Path) -> None:
    """The same model with other numbers in its matrices."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(other)
