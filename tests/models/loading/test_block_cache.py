"""A second start reads the blocks that the first has quantized: the same numbers, or it makes them anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from swarm.models.linear.quantized import QuantizedLinear
from swarm.models.loading.block_cache import BlockCache
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.kept import Kept, surplus, trim
from swarm.models.loading.weights import PartialModel, load_part
from swarm.types import Span
from tests.hub import hub_of

SPAN = Span(1, 3)


def load(
    folder: Path, keep: Path | None, quantization: str = "int4", span: Span = SPAN
) -> tuple[PartialModel, set[str]]:
    """The blocks, and the tensors that were read of the checkpoint for them."""
    checkpoint = open_checkpoint(folder)
    checkpoint.key  # noqa: B018 - the identity is over all tensors
    tensors, read = checkpoint.tensors, set()
    original = tensors.read

    def noted(name: str, rows: slice | None = None) -> object:
        read.add(name)
        return original(name, rows)

    tensors.read = noted  # type: ignore[method-assign, assignment]
    how = {"ends": False, "dtype": torch.float32, "progress": False}
    return load_part(checkpoint, span, quantization=quantization, keep=keep, **how), read  # type: ignore[arg-type]


def assert_same(one: PartialModel, other: PartialModel) -> None:
    assert one.fingerprints == other.fingerprints
    for left, right in zip(one.blocks.layers[1:3], other.blocks.layers[1:3], strict=True):
        for (name, part), twin in zip(left.named_modules(), right.modules(), strict=True):
            if isinstance(part, QuantizedLinear):
                assert isinstance(twin, QuantizedLinear)
                assert part.grid.digest() == twin.grid.digest(), name
        assert all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_second_start_reads_nothing_of_the_checkpoint(save, tmp_path: Path, quantization: str) -> None:
    folder, _ = save("llama", hidden_size=64, intermediate_size=96)
    plain, _ = load(folder, None, quantization)
    first, read = load(folder, tmp_path / "kept", quantization)
    assert read
    second, read = load(folder, tmp_path / "kept", quantization)
    assert not read
    assert_same(plain, first)
    assert_same(plain, second)
    assert len(list((tmp_path / "kept").iterdir())) == len(SPAN)


def test_blocks_are_kept_one_by_one_and_read_by_everybody(save, tmp_path: Path) -> None:
    folder, _ = save("llama", hidden_size=64, intermediate_size=96)
    load(folder, tmp_path / "kept")
    _, read = load(folder, tmp_path / "kept", span=Span(2, 4))
    assert read and all("layers.3." in name for name in read)
    for path in (tmp_path / "kept").iterdir():
        with safe_open(path, "pt") as file:
            assert {name.partition("|")[2] for name in file.keys()} >= {"codes", "scales", "least"}  # noqa: SIM118


def test_of_another_checkpoint_or_scheme_nothing_is_read(save, tmp_path: Path) -> None:
    for seed in (0, 1):
        folder, _ = save("llama", name=f"model{seed}", seed=seed, hidden_size=64, intermediate_size=96)
        for quantization in ("int8", "int4"):
            assert load(folder, tmp_path / "kept", quantization)[1]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, PartialModel]:
    from tests.models.conftest import make  # here, as what a fixture of another scope gives

    root = tmp_path_factory.mktemp("kept")
    make("llama", hidden_size=64, intermediate_size=96).save_pretrained(root / "model")
    return root / "model", root / "blocks", load(root / "model", root / "blocks")[0]


@given(st.data())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_changed_or_cut_anywhere_it_is_made_anew(kept, data: st.DataObject) -> None:
    folder, blocks, right = kept
    path = data.draw(st.sampled_from(sorted(blocks.iterdir())))
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 4000))
    if data.draw(st.booleans()):
        changed = whole[:at]
    else:
        changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    path.write_bytes(changed)
    assert_same(load(folder, blocks)[0], right)
    load(folder, blocks)  # what was dropped while it was read is kept again by the next
    assert path.exists()


def test_under_another_blocks_name_it_is_not_read(kept) -> None:
    folder, blocks, right = kept
    checkpoint = open_checkpoint(folder)
    cache = BlockCache(blocks, checkpoint.key, "int4-g32-v1")
    one, other = cache.path(1).read_bytes(), cache.path(2)
    other.write_bytes(one.replace(b"layers.1.", b"layers.2."))
    assert_same(load(folder, blocks)[0], right)


def test_interrupted_nothing_is_left(save, tmp_path: Path, monkeypatch) -> None:
    folder, _ = save("llama", hidden_size=64, intermediate_size=96)

    def interrupt(*args: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("swarm.models.loading.reading.QuantizedLinear", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(folder, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_without_room_it_loads_and_keeps_nothing(save, tmp_path: Path, monkeypatch) -> None:
    folder, _ = save("llama", hidden_size=64, intermediate_size=96)
    monkeypatch.setattr("swarm.models.loading.block_cache.LEFT_FREE", 1.0)
    load(folder, tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())
    (tmp_path / "file").write_text("")
    load(folder, tmp_path / "file")


def test_of_kept_blocks_nothing_is_fetched(save, tmp_path: Path, monkeypatch) -> None:
    folder, _ = save("llama", hidden_size=64, intermediate_size=96)
    with hub_of(folder, monkeypatch, tmp_path / "caches") as hub:
        how = {"ends": False, "dtype": torch.float32, "quantization": "int4", "progress": False}
        first = load_part(open_checkpoint("org/model"), SPAN, keep=tmp_path / "kept", **how)  # type: ignore[arg-type]
        trim(tmp_path / "caches/ours/swarm", 0)
        before = hub.tensors_sent()
        second = load_part(open_checkpoint("org/model"), SPAN, keep=tmp_path / "kept", **how)  # type: ignore[arg-type]
        assert hub.tensors_sent() - before < 20_000 < before  # headers
        assert_same(first, second)


# ---- what stays on disk ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 9)), max_size=8), st.integers(0, 300))
def test_what_was_not_used_for_longest_goes_and_no_more(files: list[tuple[int, int]], most: int) -> None:
    kept = [Kept(Path(str(number)), size, used) for number, (size, used) in enumerate(files)]
    going = surplus(kept, most)
    staying = [each for each in kept if each not in going]
    assert sum(each.bytes for each in staying) <= most
    assert not going or max(each.used for each in going) <= min((each.used for each in staying), default=10)
    assert not going or sum(each.bytes for each in [*staying, going[-1]]) > most


def test_what_is_too_much_is_deleted_with_its_journal(tmp_path: Path) -> None:
    for name in ("ranges/a/model", "ranges/a/model.journal", "blocks/b", "kernels/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"0" * 10_000)
    trim(tmp_path, None)
    assert (tmp_path / "ranges/a/model").exists()
    trim(tmp_path, 0)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["c"]
    trim(tmp_path / "absent", 0)


def test_a_block_says_of_what_it_is_made(kept) -> None:
    _, blocks, _ = kept
    with safe_open(next(blocks.iterdir()), "pt") as file:
        said = file.metadata()
    assert "int4-g32-v1" in said["made_of"]
    assert all(len(digest) == 64 for digest in json.loads(said["sums"]).values())
