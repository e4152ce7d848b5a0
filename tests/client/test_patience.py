"""What ends a waiting, and when it is told."""

from __future__ import annotations

import random

import pytest

from swarm.client.patience import NOTICE_EVERY, Patience, pause
from swarm.config import ClientConfig
from swarm.errors import (
    ContextTooLong,
    DaemonFailed,
    InvalidInput,
    LimitExceeded,
    MissingBlocks,
    NoServerFits,
    PeerUnreachable,
    ServerBusy,
    SwarmError,
)

MISSING = MissingBlocks("no server", [(0, 3)])
BUSY = ServerBusy("full", retry_after=3.0)
UNFIT = NoServerFits("all compute otherwise", [(0, 3)])
TOO_MUCH = NoServerFits("all are small", [(0, 3)], LimitExceeded("257", "sequences", 256, 257))


def patience(max_wait: float | None = None, *, has_run: bool = False) -> Patience:
    return Patience(ClientConfig(max_wait=max_wait), 100.0, has_run=has_run)


@pytest.mark.parametrize("error", [MISSING, BUSY, PeerUnreachable("nobody answers")])
def test_what_may_change_is_borne_for_ever_or_for_max_wait(error: SwarmError) -> None:
    for seconds in (0.0, 1e6):
        patience().bear(error, 100.0 + seconds, "seen")
    bounded = patience(30.0)
    bounded.bear(error, 129.0, "seen")
    with pytest.raises(type(error)) as caught:
        bounded.bear(error, 130.0, "alice is full")
    assert str(caught.value) == "alice is full, since 30 s (max_wait)"


def test_what_is_carried_by_an_error_is_carried_on() -> None:
    with pytest.raises(MissingBlocks) as missing:
        patience(0.0).bear(MISSING, 100.0, "seen")
    assert missing.value.blocks == ((0, 3),)
    with pytest.raises(ServerBusy) as busy:
        patience(0.0).bear(BUSY, 100.0, "seen")
    assert busy.value.retry_after == 3.0


@pytest.mark.parametrize("error", [InvalidInput("no"), ContextTooLong("no"), DaemonFailed("dead")])
def test_what_nobody_can_mend_is_raised_at_once(error: SwarmError) -> None:
    with pytest.raises(type(error)):
        patience(has_run=True).bear(error, 100.0, "seen")


def test_waiting_in_vain_ends_when_two_readings_in_a_row_say_so() -> None:
    vain = patience()
    for error in (UNFIT, MISSING, UNFIT):
        vain.bear(error, 100.0, "seen")
    with pytest.raises(NoServerFits) as caught:
        vain.bear(UNFIT, 100.0, "seen")
    assert caught.value is UNFIT


def test_whoever_may_not_wait_hears_it_at_once() -> None:
    with pytest.raises(NoServerFits) as caught:
        patience(0.0).bear(UNFIT, 100.0, "seen")
    assert caught.value is UNFIT
    with pytest.raises(LimitExceeded):
        patience(0.0, has_run=True).bear(TOO_MUCH, 100.0, "seen")


def test_servers_that_were_there_may_come_back_but_none_grows() -> None:
    bearing = patience(has_run=True)
    for _ in range(5):
        bearing.bear(UNFIT, 100.0, "seen")
    bearing.bear(TOO_MUCH, 100.0, "seen")
    with pytest.raises(LimitExceeded):
        bearing.bear(TOO_MUCH, 100.0, "seen")


def test_waiting_is_told_at_once_where_a_server_is_missing_and_later_where_something_fails() -> None:
    for error, soon in ((MISSING, True), (BUSY, True), (PeerUnreachable("x"), False), (UNFIT, False)):
        telling = patience()
        telling.bear(error, 100.0, "seen")
        assert telling.tells(error, 100.0) is soon
        assert telling.tells(error, 100.0 + NOTICE_EVERY)
        assert not telling.tells(error, 101.0 + NOTICE_EVERY)
        assert telling.tells(error, 100.0 + 2 * NOTICE_EVERY)


def test_pauses_grow_and_are_never_alike() -> None:
    config, rng = ClientConfig(retry_base=0.1, retry_max=5.0), random.Random(0)
    assert [pause(setbacks, config, rng) for setbacks in (0, 1)] == [0.0, 0.0]
    for setbacks in range(2, 99):
        longest = min(0.1 * 2 ** (setbacks - 2), 5.0)
        pauses = {pause(setbacks, config, rng) for _ in range(5)}
        assert len(pauses) == 5
        assert all(longest / 2 <= seconds <= longest for seconds in pauses)
