"""The soak: what happens to whom and is mended, and what it says where it cannot run."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from click.testing import CliRunner

from scripts import soak
from scripts.soaking.faults import Faults, Kind, Mend


class Things:
    """What is hit, and until when."""

    def __init__(self) -> None:
        self.now = 0.0
        self.down = Counter[str]()
        self.blinks = 0

    def hit(self, name: str) -> Mend:
        assert not self.down[name], "who is down is not hit"
        self.down[name] += 1
        return lambda: self.down.subtract([name])

    def blink(self, name: str) -> None:
        assert not self.down[name]
        self.blinks += 1


@pytest.mark.parametrize("seed", range(5))
def test_who_is_hit_is_mended_in_time_and_not_hit_meanwhile(seed: int) -> None:
    things = Things()
    kinds = {
        "cut": Kind(3, ["a", "b"], things.hit, (20.0, 20.0)),
        "kill": Kind(1, ["b", "c"], things.hit),
        "blink": Kind(1, ["a", "d"], things.blink),
    }
    faults = Faults(kinds, random.Random(seed), lambda: things.now)
    seen = Counter[str]()
    for _ in range(300):
        faults.next()
        seen += things.down
        things.now += 5.0
    assert set(seen) == {"a", "b", "c"}
    assert faults.count["cut"] > faults.count["kill"] > 0
    assert faults.count["blink"] == things.blinks > 0
    faults.restore()
    assert not +things.down


def test_where_there_are_no_namespaces_it_says_so_and_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "impossible", lambda: "root is needed")
    result = CliRunner().invoke(soak.main, ["--field"])
    assert result.exit_code == 0
    assert result.output == "no soak in homes here: root is needed\n"
