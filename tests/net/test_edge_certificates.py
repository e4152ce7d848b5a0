"""Certificates that browsers know by their hashes: always a valid one, none too long, and addresses that last."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import InvalidInput
from swarm.net.edge.certificates import DAY, LIFE, SKEW, Certificates, Window, plan

NOW = 1_800_000_000.0
BROWSERS_TAKE = 14 * DAY


@given(st.lists(st.floats(0, 30 * DAY), max_size=40), st.lists(st.floats(-40 * DAY, 40 * DAY), max_size=3))
def test_there_is_always_a_good_one_and_one_that_follows_it(steps: list[float], jumps: list[float]) -> None:
    """Also after a clock was set, and whenever it was looked at before."""
    kept: tuple[Window, ...] = ()
    now = NOW
    for step in [*steps, *jumps]:
        now += step
        kept, present = plan(kept, now)
        assert list(kept) == sorted(kept)
        assert kept[present].good(now)
        assert kept[present + 1].good(kept[present].ends - SKEW)
        assert len(kept) == present + 2 <= 6
        assert all(window.ends - window.begins < BROWSERS_TAKE for window in kept)
        assert plan(kept, now) == (kept, present)


@given(st.lists(st.floats(HOUR := 3600, 11 * DAY), min_size=1, max_size=40))
def test_an_address_can_be_dialled_for_eleven_days(steps: list[float]) -> None:
    kept: tuple[Window, ...] = ()
    now = NOW
    addresses: list[tuple[float, tuple[Window, ...]]] = []
    for step in steps:
        now += step
        kept, present = plan(kept, now)
        addresses.append((now, kept[present:]))
        for given_at, named in addresses:
            if now - given_at <= 11 * DAY - 2 * HOUR:
                assert kept[present] in named
                assert set(named) <= set(kept)  # who dials hears that all of them are ours


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def test_the_hashes_are_renewed_in_time_and_kept_over_restarts(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "key"
    certificates = Certificates(path, clock)
    first, second = certificates.advertised_multibase()
    assert Certificates(path, clock).advertised_multibase() == [first, second]
    clock.now += LIFE - 3 * SKEW
    assert Certificates(path, clock).advertised_multibase() == [first, second]
    clock.now += 2 * SKEW
    again, third = certificates.advertised_multibase()
    assert again == second
    assert third not in (first, second)
    assert len(certificates.advertised_multihash_bytes()) == 3
    assert certificates.webtransport().fingerprint_to_multibase() == second
    assert Certificates(path, clock).advertised_multibase() == [second, third]
    clock.now += 60 * DAY
    assert not {first, second, third} & set(certificates.advertised_multibase())
    assert len(certificates.advertised_multihash_bytes()) == 2


def test_what_is_shown_is_valid_now(tmp_path: Path) -> None:
    clock = Clock()
    certificates = Certificates(None, clock)
    for _ in range(30):
        shown = certificates.webtransport()
        assert shown.not_valid_before.timestamp() + SKEW <= clock.now < shown.not_valid_after.timestamp() - SKEW
        assert shown.fingerprint_to_multibase() == certificates.advertised_multibase()[0]
        clock.now += 1.5 * DAY


def test_the_certificate_of_webrtc_stays(tmp_path: Path) -> None:
    hashes = {Certificates(tmp_path / "key").webrtc.fingerprint for _ in range(3)}
    assert len(hashes) == 1
    assert Certificates(None).webrtc.fingerprint not in hashes


@pytest.mark.parametrize("name", ["key.webrtc.pem", "key.webtransport.pem"])
@pytest.mark.parametrize("content", [b"nonsense", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"])
def test_a_broken_file_is_a_typed_error_that_names_it(tmp_path: Path, name: str, content: bytes) -> None:
    Certificates(tmp_path / "key")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=name):
        Certificates(tmp_path / "key")


def test_certificates_and_keys_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        Certificates(tmp_path / folder / "key")
    one, two = (tmp_path / folder / "key.webrtc.pem" for folder in ("one", "two"))
    begin = b"-----BEGIN CERTIFICATE-----"
    one.write_bytes(one.read_bytes().partition(begin)[0] + begin + two.read_bytes().partition(begin)[2])
    with pytest.raises(InvalidInput, match="belong together"):
        Certificates(tmp_path / "one" / "key")


def test_a_place_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput, match="cannot be kept"):
        Certificates(tmp_path / "file" / "key")
