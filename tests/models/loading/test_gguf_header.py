"""A GGUF file that is damaged, cut or made to do harm is refused in words, in little time and memory."""

from __future__ import annotations

import contextlib
import resource
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm.errors import BadCheckpoint, UnsupportedModel
from swarm.models.linear.grid import as_dense
from swarm.models.loading.checkpoint import open_checkpoint
from swarm.models.loading.gguf.header import MOST_BYTES, architecture_of, read_header
from tests.ggufs import write

FLOAT, STRING, ARRAY = 6, 8, 9
QUICK = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("gguf") / "m.gguf", kinds=("Q4_0", "Q4_K", "Q6_K")).read_bytes()


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(*entries: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, count: int | None = None) -> bytes:
    counts = struct.pack("<4sIQQ", b"GGUF", version, len(tensors) if count is None else count, len(entries))
    return counts + b"".join(entries) + b"".join(tensors)


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ALIGNED = bytes(96)
LARGE = 1 << 62
BAD = {
    "empty": (b"", "ends within"),
    "of another kind": (b"PK\x03\x04" + bytes(100), "begin with GGUF"),
    "of a version that is not read": (header(version=1), "version 1"),
    "of the other byte order": (b"GGUF\x00\x00\x00\x03" + bytes(16), "version"),
    "many tensors": (header(count=LARGE), "tensors"),
    "a text that is longer than the file": (header(struct.pack("<Q", LARGE)), "text of"),
    "a text in no UTF-8": (header(struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<I", 0)), "UTF-8"),
    "a value of no type": (header(text("a") + struct.pack("<I", 99)), "type 99"),
    "an array that is longer than the file": (
        header(text("a") + struct.pack("<IIQ", ARRAY, FLOAT, LARGE)), "array of"),
    "texts that are longer than the file": (
        header(text("a") + struct.pack("<IIQ", ARRAY, STRING, LARGE)), "texts"),
    "arrays in arrays": (header(text("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1)), "array of type 9"),
    "a key that is said twice": (header(*[text("a") + struct.pack("<IB", 0, 1)] * 2), "twice"),
    "no alignment": (header(text("general.alignment") + struct.pack("<II", 4, 0)) + ALIGNED, "aligns"),
    "an odd alignment": (header(text("general.alignment") + struct.pack("<II", 4, 24)) + ALIGNED, "aligns"),
    "an alignment of letters": (header(text("general.alignment") + struct.pack("<I", STRING) + text("x")), "aligns"),
    "five dimensions": (header(tensors=(tensor("a", (1,) * 5),)) + ALIGNED, "5 dimensions"),
    "many dimensions": (header(tensors=(text("a") + struct.pack("<I", 1 << 31),)), "dimensions"),
    "no numbers": (header(tensors=(tensor("a", (0,)),)) + ALIGNED, "shape"),
    "more numbers than there are": (header(tensors=(tensor("a", (1 << 40, 1 << 40)),)) + ALIGNED, "shape"),
    "rows that are no groups": (header(tensors=(tensor("a", (33,), 2),)) + ALIGNED, "rows of"),
    "numbers of no type": (header(tensors=(tensor("a", (32,), 77),)) + ALIGNED, "type 77"),
    "numbers of a type that is gone": (header(tensors=(tensor("a", (32,), 4),)) + ALIGNED, "type 4"),
    "a tensor twice": (header(tensors=(tensor("a", (4,)),) * 2) + ALIGNED, "twice"),
    "tensors that overlap": (
        header(tensors=(tensor("a", (16,)), tensor("b", (4,), offset=32))) + bytes(200), "overlaps"),
    "a tensor that begins anywhere": (header(tensors=(tensor("a", (4,), offset=3),)) + ALIGNED, "may be"),
    "a tensor behind the end": (header(tensors=(tensor("a", (4,), offset=LARGE),)) + ALIGNED, "ends within 'a'"),
    "a tensor that is cut": (header(tensors=(tensor("a", (400,)),)) + ALIGNED, "ends within 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_is_refused(what: str, tmp_path: Path) -> None:
    content, words = BAD[what]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=rf"m\.gguf.*{words}"):
        read_header(tmp_path / "m.gguf")


@pytest.mark.parametrize(("of", "each", "count"), [(STRING, 8, 1 << 20), (0, 1, 1 << 25)])
def test_a_header_without_end_takes_little_memory_and_time(of: int, each: int, count: int, tmp_path: Path) -> None:
    """Millions of texts without letters, or of numbers."""
    path = tmp_path / "m.gguf"
    arrays = [text(f"a{number}") + struct.pack("<IIQ", ARRAY, of, count) + bytes(count * each) for number in range(3)]
    path.write_bytes(header(*arrays))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadCheckpoint, match=r"allowed|more than"):
        read_header(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 2.5 * MOST_BYTES


def test_a_file_that_is_cut_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for length in [*range(400), *range(400, len(whole) - 64, 997)]:
        path.write_bytes(whole[:length])
        with pytest.raises(BadCheckpoint):
            read_header(path)


@QUICK
@given(st.data())
def test_a_file_with_other_bytes_is_refused_or_is_another_model(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    content, path = bytearray(whole), tmp_path / "m.gguf"
    end = len(whole) if data.draw(st.booleans()) else 4000
    for at in data.draw(st.lists(st.integers(0, end - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.sampled_from((0, 1, 2, 3, 8, 9, 0x7F, 0x80, 0xFF)))
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
        tensors = checkpoint.tensors
        for name in tensors.names():
            numbers = as_dense(tensors.read(name))
            assert tuple(numbers.shape) == tensors.shape(name)
            assert tensors.on_grid(name) is False or bool(torch.isfinite(numbers).all())
    except (BadCheckpoint, UnsupportedModel) as error:
        assert len(str(error)) < 1000


@QUICK
@given(st.binary(max_size=300))
def test_bytes_that_begin_like_a_file(rest: bytes) -> None:
    with contextlib.suppress(BadCheckpoint):
        assert architecture_of(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + rest) is None or rest


def test_the_architecture_is_known_from_the_beginning(whole: bytes) -> None:
    assert architecture_of(whole[:200]) == "llama"
    assert architecture_of(whole[:30]) is None
