"""How much of a pass is kept for its gradients, and of whom."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.server.activations import GUESS, MARGIN, STALE, KeptActivations
from swarm.server.kept import ITEM_BYTES

TOTAL, SHARE = 10_000_000, 5_000_000


@dataclass(frozen=True)
class Some:
    nbytes: int
    whole_nbytes: int


def room(kept: KeptActivations, client: str, given: int = 1000, now: float = 0.0, model: str = "m") -> int:
    with kept.room(client, model, given, now) as found:
        return found


def test_what_the_last_pass_took_is_what_the_next_gets() -> None:
    kept = KeptActivations(TOTAL, SHARE)
    assert room(kept, "a") == int(1000 * GUESS * MARGIN)
    kept.put("a", b"1", Some(70_000, 70_000), "m", 1000, 0.0)
    assert room(kept, "a") == int(70_000 * MARGIN)
    assert room(kept, "a", model="another") == int(1000 * GUESS * MARGIN)


def test_nobody_gets_more_than_a_share_and_what_is_under_way_counts() -> None:
    kept = KeptActivations(TOTAL, SHARE)
    kept.put("a", b"1", Some(4_000_000, 4_000_000), "m", 100_000, 0.0)
    free = SHARE - 4_000_000 - 2 * ITEM_BYTES
    with kept.room("a", "m", 100_000, 0.0) as some:
        assert some == free
        assert room(kept, "a", 100_000) == 0  # there is nothing left
        assert room(kept, "b", 100_000) == int(4_000_000 * MARGIN)
    assert kept.nbytes == 4_000_000 + ITEM_BYTES
    assert kept.take("a", b"1") == Some(4_000_000, 4_000_000)
    assert kept.take("a", b"1") is None
    assert kept.nbytes == 0


def test_what_nobody_asks_for_gives_way_after_a_while_and_not_before() -> None:
    kept = KeptActivations(TOTAL, SHARE)
    kept.put("a", b"1", Some(4_900_000, 4_900_000), "m", 1_000_000, 0.0)
    assert room(kept, "a", 1_000_000, STALE - 1) == 0
    assert room(kept, "a", 1_000_000, STALE + 1) == int(4_900_000 * MARGIN) - max(
        int(4_900_000 * MARGIN) - (SHARE - ITEM_BYTES), 0
    )
    assert kept.nbytes == 0


def test_without_a_budget_nothing_is_kept() -> None:
    assert room(KeptActivations(0, 0), "a") == 0
