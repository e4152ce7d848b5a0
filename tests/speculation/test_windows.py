"""What follows what in flight: tokens that were sent, cut into windows anyhow, in the order in which they come back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarm.speculation.windows import Windows


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_what_follows_a_token_is_the_next_that_was_sent(sizes: list[int]) -> None:
    windows: Windows[int] = Windows(most=len(sizes))
    tokens = [(token, None if token == 0 else 7) for token in range(sum(sizes))]
    for place, size in enumerate(sizes):
        first = sum(sizes[:place])
        assert not windows.full
        windows.sent(tokens[first : first + size], place, float(place))
    assert windows.full
    assert windows.drafts == [token for token, kind in tokens if kind is not None]
    seen = 0
    for place, size in enumerate(sizes):
        window = windows.oldest()
        assert (window.outputs, window.alone, len(window.tokens)) == (place, place == 0, size)
        followers = windows.following(window)
        expected = tokens[seen + 1 : seen + size + 1]
        assert [token for token, _ in followers] == [token for token, _ in expected]
        seen += size
        if windows:
            windows.confirm()
            assert windows.drafts == [token for token, _ in tokens[seen + 1 :]]


def test_what_is_void_is_handed_back() -> None:
    windows: Windows[str] = Windows()
    windows.sent([(1, None), (2, 0)], "a", 0.0)
    windows.sent([(3, 0)], "b", 1.0)
    assert windows.void() == ["a", "b"]
    assert (len(windows), windows.drafts) == (0, [])
    windows.sent([(4, None)], "c", 2.0)
    assert windows.oldest().alone
