"""A thousand random fault schedules: never a wrong token, never a hang, never a leak."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos import play_seed


@pytest.mark.parametrize("hundred", range(10))
def test_random_faults(hundred: int) -> None:
    ends = Counter(play_seed(seed) for seed in range(hundred * 100, hundred * 100 + 100))
    assert set(ends) <= {"exact", "missing"}
    assert ends["exact"] > 80


def test_the_same_seed_plays_the_same() -> None:
    assert [play_seed(seed) for seed in range(5)] == [play_seed(seed) for seed in range(5)]
