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

from swarm.models.loading.block_cache import Damaged
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.safetensors import LENGTH
from swarm.models.loading.source import Wanted
from swarm.models.loading.weights import PartialModel, load_part
from swarm.types import Span
from tests.models.conftest import make

SPAN = Span(1, 3)


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
    original = tensors.read

    def noted(name: str, rows: slice | None = None) -> Any:
        read.add(name)
        return original(name, rows)

    tensors.read = noted  # type: ignore[method-assign]
    how: dict[str, Any] = {"ends": False, "dtype": torch.float32, "progress": False, "quantization": quantization}
    return load_part(checkpoint, SPAN, keep=keep, source=source, **how), read


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_with_somebody_elses_blocks_nothing_is_read_of_the_checkpoint(save, tmp_path: Path, quantization: str) -> None:
    folder, _ = save("llama", hidden_size=64, intermediate_size=96)
    asked = Copies()
    first, read = load(folder, tmp_path / "a", asked, quantization)
    assert read and [each.block for each in asked.wanted] == list(SPAN)
    for each in asked.wanted:
        assert each.path.stat().st_size <= each.most <= 1.5 * each.path.stat().st_size + 40_000
        assert each.fingerprint(each.path) == first.fingerprints[each.block]
        each.compare(each.path)
    second, read = load(folder, tmp_path / "b", Copies(tmp_path / "a"), quantization)
    assert not read
    assert second.fingerprints == first.fingerprints


def test_who_has_the_blocks_asks_nobody_and_experts_are_told_apart(save, tmp_path: Path) -> None:
    folder, _ = save("llama", hidden_size=64, intermediate_size=96)
    load(folder, tmp_path / "a", Copies())
    asked = Copies()
    load(folder, tmp_path / "a", asked)
    assert not asked.wanted and not asked.rest
    experts, _ = save("qwen2_moe", name="moe", hidden_size=64, intermediate_size=96, moe_intermediate_size=32)
    load(experts, tmp_path / "b", asked)
    assert sorted([*asked.rest, *(each.block for each in asked.wanted)]) == list(SPAN) and asked.rest


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


def test_another_models_blocks_do_not_agree_with_the_checkpoint(save, tmp_path: Path) -> None:
    (folder, _), (other, _) = (
        save("llama", name=f"model{seed}", seed=seed, hidden_size=64, intermediate_size=96) for seed in (0, 1)
    )
    ours, theirs = Copies(), Copies()
    load(folder, tmp_path / "a", ours)
    load(other, tmp_path / "b", theirs)
    mine, yours = ours.wanted[0], theirs.wanted[0]
    whole = yours.path.read_bytes()
    said = json.loads(mine.path.read_bytes()[LENGTH:].split(b" " * 20)[0])["__metadata__"]["made_of"]
    forged = tmp_path / "forged"
    forged.write_bytes(with_header(whole, lambda header: header["__metadata__"].update(made_of=said)))
    assert mine.fingerprint(forged) == yours.fingerprint(yours.path)
    with pytest.raises(Damaged):
        mine.compare(forged)
