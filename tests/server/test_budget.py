"""One budget for caches and histories: who gives way, and who never does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.server.budget import CacheBudget


@dataclass(eq=False)
class Held:
    """A session as the budget sees it."""

    kv_bytes: int
    history_bytes: int
    last_used: float
    client: str = ""

    def drop_history(self) -> None:
        self.history_bytes = 0

    def evict(self) -> None:
        self.kv_bytes = self.history_bytes = 0


@dataclass(eq=False)
class Kept:
    """Prefixes as the budget sees them."""

    nbytes: int = 0

    def shrink(self, limit: int) -> None:
        self.nbytes = min(self.nbytes, max(limit, 0))


def budget_of(*holders: Held, total: int = 100, prefixes: int = 0) -> CacheBudget:
    budget = CacheBudget(total, 0.25, evict_after=5.0, prefix_share=0.4, prefixes=Kept(prefixes))
    budget.holders.extend(holders)
    return budget


NOW = 100.0


def test_room_that_is_there_costs_nobody_anything() -> None:
    budget = budget_of(Held(40, 20, 0.0))
    assert budget.make_room(40, None, NOW)
    assert budget.history_bytes == 20


def test_history_goes_first_the_oldest_before_the_newer() -> None:
    old, new = Held(40, 10, 1.0), Held(30, 10, 99.0)
    assert budget_of(new, old).make_room(20, None, NOW)
    assert (old.history_bytes, new.history_bytes) == (0, 10)
    assert (old.kv_bytes, new.kv_bytes) == (40, 30)


def test_prefixes_go_before_anything_of_a_session_does() -> None:
    budget = budget_of(Held(40, 20, 0.0), prefixes=30)
    assert budget.prefixes is not None
    assert (budget.free_bytes, budget.prefix_room) == (60, 40)
    assert budget.make_room(20, None, NOW)
    assert (budget.prefixes.nbytes, budget.history_bytes) == (20, 20)
    assert budget.make_room(50, None, NOW)
    assert (budget.prefixes.nbytes, budget.history_bytes, budget.kv_bytes) == (0, 0, 40)


def test_prefixes_take_what_caches_and_history_leave_and_no_more_than_their_share() -> None:
    holder = Held(60, 20, NOW)
    budget = budget_of(holder, prefixes=20)
    assert budget.prefix_room == 20
    holder.kv_bytes = 70
    budget.trim_history()
    assert budget.prefixes is not None
    assert (budget.prefixes.nbytes, budget.prefix_room, budget.history_bytes) == (10, 10, 20)
    holder.kv_bytes = 10
    assert budget.prefix_room == 40


def test_then_caches_that_idle_the_longest_idle_before_the_others() -> None:
    oldest, older, busy = Held(30, 5, 1.0), Held(30, 5, 2.0), Held(30, 5, 99.0)
    assert budget_of(busy, older, oldest).make_room(30, None, NOW)
    assert (oldest.kv_bytes, older.kv_bytes, busy.kv_bytes) == (0, 30, 30)


def test_whoever_is_at_work_keeps_what_it_has() -> None:
    busy = Held(90, 0, NOW - 4.9)
    assert not budget_of(busy).make_room(20, None, NOW)
    assert busy.kv_bytes == 90


def test_whoever_asks_is_not_evicted_for_itself() -> None:
    asking = Held(90, 0, 0.0)
    budget = budget_of(asking)
    assert not budget.make_room(20, asking, NOW)
    assert budget.make_room(20, None, NOW)


def test_who_has_more_than_its_share_gives_to_who_has_less() -> None:
    greedy = [Held(24, 0, NOW - 1.0 + i / 10, "greedy") for i in range(4)]
    small = Held(4, 0, NOW, "small")
    budget = budget_of(*greedy, small)
    assert budget.make_room(40, small, NOW)
    assert [holder.kv_bytes for holder in greedy] == [0, 0, 24, 24]
    small.kv_bytes += 40
    assert not budget.make_room(10, small, NOW), "it would have more than half itself"
    assert not budget.make_room(10, None, NOW, "greedy")
    assert not budget.make_room(34, None, NOW, "new"), "a third of it is 33"
    assert budget.make_room(33, None, NOW, "new")
    assert [holder.kv_bytes for holder in greedy] == [0, 0, 0, 24]


def test_who_is_the_only_one_has_no_share_to_keep_to() -> None:
    alone = Held(60, 0, NOW, "alone")
    budget = budget_of(alone)
    assert budget.make_room(40, alone, NOW)
    assert not budget.make_room(41, alone, NOW)


def test_nobody_is_evicted_in_vain() -> None:
    idle, busy = Held(20, 0, 0.0), Held(70, 0, NOW)
    assert not budget_of(idle, busy).make_room(50, None, NOW)
    assert idle.kv_bytes == 20


@pytest.mark.parametrize("wanted", [101, 10**12])
def test_what_can_never_fit_disturbs_nobody(wanted: int) -> None:
    holder = Held(50, 20, 0.0)
    budget = budget_of(holder, prefixes=30)
    assert not budget.make_room(wanted, None, NOW)
    assert budget.prefixes is not None
    assert (holder.kv_bytes, holder.history_bytes, budget.prefixes.nbytes) == (50, 20, 30)


def test_history_is_kept_to_its_share_and_to_what_the_caches_leave() -> None:
    old, new = Held(10, 20, 1.0), Held(10, 20, 2.0)
    budget_of(old, new).trim_history()
    assert (old.history_bytes, new.history_bytes) == (0, 20)
    tight = Held(95, 10, 1.0)
    budget_of(tight).trim_history()
    assert tight.history_bytes == 0


HOLDERS = st.lists(st.builds(Held, st.integers(0, 40), st.integers(0, 20), st.floats(0.0, NOW)), max_size=6)


@given(HOLDERS, st.integers(0, 120), st.booleans(), st.integers(0, 40))
def test_room_is_made_if_and_only_if_it_can_be(
    holders: list[Held], wanted: int, first_asks: bool, prefixes: int
) -> None:
    budget = budget_of(*holders, prefixes=prefixes)
    assert budget.prefixes is not None
    asking = holders[0] if holders and first_asks else None
    fixed = sum(h.kv_bytes for h in holders if h is asking or NOW - h.last_used < 5.0)
    made = budget.make_room(wanted, asking, NOW)
    assert made == (wanted <= max(100 - fixed, 0))
    if made and wanted:
        assert budget.kv_bytes + budget.history_bytes + budget.prefixes.nbytes + wanted <= 100


@given(HOLDERS)
def test_trimmed_history_is_within_its_limit(holders: list[Held]) -> None:
    budget = budget_of(*holders)
    caches = budget.kv_bytes
    budget.trim_history()
    assert budget.kv_bytes == caches
    assert budget.history_bytes <= max(min(25, 100 - caches), 0)
