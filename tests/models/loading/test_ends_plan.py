"""Where embeddings and head are to be, by what there is of them and how much memory is free."""

from __future__ import annotations

import pytest

from swarm.errors import InvalidInput, NotEnoughMemory, UnsupportedModel
from swarm.models.loading.ends_plan import EndsFiles, Matrix, plan_ends

GIB = 1 << 30
LARGE = Matrix(128256, 16384, 2 * 128256 * 16384, on_grid=False)
"""Of Llama 3.1 405B, in bfloat16."""
FILES = EndsFiles("405B", LARGE, LARGE, tied=False, others=16384)
TIED = EndsFiles("tied", LARGE, LARGE, tied=True, others=16384)
GGUF = EndsFiles("gguf", Matrix(100, 64, 6800, on_grid=True), Matrix(100, 64, 6800, on_grid=True), tied=True, others=64)


@pytest.mark.parametrize(
    ("files", "asked", "scheme", "free", "expected"),
    [
        (FILES, None, "none", 64 * GIB, ("disk", "memory")),
        (FILES, None, "none", 4 * GIB, ("disk", "disk")),
        (FILES, "int8", "none", 4 * GIB, ("disk", "int8")),
        (FILES, "disk", "none", GIB, ("disk", "disk")),
        (TIED, None, "none", 64 * GIB, ("memory", "memory")),
        (TIED, None, "none", GIB, ("disk", "disk")),
        (TIED, "int4", "none", 4 * GIB, ("disk", "int4")),
        (GGUF, None, "file", GIB, ("disk", "file")),
        (GGUF, None, "int8", GIB, ("memory", "memory")),
        (GGUF, "memory", "file", GIB, ("memory", "memory")),
    ],
)
def test_what_is_asked_for_or_fits(
    files: EndsFiles, asked: str | None, scheme: str, free: int, expected: tuple[str, str]
) -> None:
    plan = plan_ends(files, asked, 2, scheme, free)
    assert (plan.embeddings, plan.head) == expected
    assert plan.peak <= free


def test_what_takes_more_than_is_free_is_refused_with_what_would_fit() -> None:
    with pytest.raises(NotEnoughMemory, match=r"as int8.*takes 2\.1 GiB, and 1\.0 GiB may be taken; head='disk' takes"):
        plan_ends(FILES, "int8", 2, "none", GIB)
    with pytest.raises(NotEnoughMemory, match="free some memory"):
        plan_ends(FILES, "disk", 2, "none", 1000)


def test_what_it_takes_is_told_in_a_line() -> None:
    words = plan_ends(FILES, "int4", 2, "none", 4 * GIB).words
    assert words == "ends of 405B: 3.9 GiB stay on disk, 1.2 GiB of memory for the head as int4, 32 KiB for all else"


def test_what_cannot_be_had_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="there is memory, disk, file, int8, int4"):
        plan_ends(FILES, "int3", 2, "none", GIB)
    with pytest.raises(UnsupportedModel, match="on no grid"):
        plan_ends(FILES, "file", 2, "none", GIB)
    odd = Matrix(100, 50, 10000, on_grid=False)
    with pytest.raises(UnsupportedModel, match="do not divide"):
        plan_ends(EndsFiles("odd", odd, odd, tied=False, others=0), "int8", 2, "none", GIB)
    with pytest.raises(UnsupportedModel, match="no plain layer"):
        plan_ends(EndsFiles("odd", None, None, tied=False, others=0), "disk", 2, "none", GIB)
