"""Who computes nearly right is found out by those who compute the same, and the text that is returned is right."""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.comparing import Verdict, agreement, errors, judge
from swarm.client.integrity import FIRST_NOISE, HALF_LIFE, LEAST_NOISE, Integrity, audit_rate
from swarm.client.operators import operators, strangers
from swarm.config import ClientConfig
from swarm.contract import Contract
from swarm.errors import NoServerFits, Refuted
from swarm.testing import generate, run
from swarm.types import ServerRecord, Span
from tests.attackers.attacks import Attack, Cautious, Copier, Noisy, Skipper
from tests.attackers.campaign import Outcome, campaign, swarm, text_of
from tests.attackers.numbers import reference

AUDITS = ClientConfig(audits=True)
PROMPT = [3, 1, 4, 1, 5]


# ---- what is compared ---------------------------------------------------------------------------------------------


def rows(count: int, seed: int = 0, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def test_the_error_is_relative_to_what_the_blocks_added() -> None:
    inputs, added = 100.0 * rows(20), rows(20, 1)
    other = inputs + added * 1.1
    assert np.median(errors(inputs, inputs + added, other)) == pytest.approx(0.1, rel=0.05)
    massive = inputs + added
    massive[5, 7] += 5000.0
    skewed = massive.copy()
    skewed[5, 7] *= 1.5
    assert errors(inputs, massive, skewed).max() == 0.0
    assert (
        errors(inputs[:, :], massive, skewed).max() < 60.0
    )  # a part of a massive coordinate may be below the quantile
    other[3, 3] = np.nan
    assert errors(inputs, inputs + added, other)[3] == np.inf


@pytest.mark.parametrize(
    ("off", "verdict", "first"),
    [
        pytest.param([0.02] * 30, Verdict.PASS, None, id="noise"),
        pytest.param([0.02] * 15 + [0.2] + [0.02] * 14, Verdict.PASS, None, id="one odd position"),
        pytest.param([9.0] + [0.02] * 29, Verdict.PASS, None, id="the first position"),
        pytest.param([0.02] * 15 + [0.9] + [0.02] * 14, Verdict.FAIL, 15, id="one that is absurd"),
        pytest.param([0.02] * 20 + [0.1] * 10, Verdict.SUSPECT, 20, id="in between"),
        pytest.param([0.02] * 20 + [0.4] * 10, Verdict.FAIL, 20, id="from some position on"),
        pytest.param([0.02] * 10 + [0.02, 0.4] * 10, Verdict.FAIL, 11, id="every other"),
        pytest.param([0.02, np.inf], Verdict.FAIL, 1, id="no number"),
        pytest.param([0.5], Verdict.PASS, None, id="nothing but the first"),
        pytest.param([], Verdict.PASS, None, id="nothing"),
    ],
)
def test_what_errors_say(off: list[float], verdict: Verdict, first: int | None) -> None:
    found = judge(np.asarray(off), range(len(off)), FIRST_NOISE)
    assert (found.verdict, found.first) == (verdict, first)


def test_what_codecs_are_off_is_known_and_left_out() -> None:
    off = np.full(20, 0.09)
    assert judge(off, range(20), FIRST_NOISE).verdict is Verdict.SUSPECT
    assert judge(off, range(20), FIRST_NOISE, 0.05).verdict is Verdict.PASS
    assert judge(off, range(20), LEAST_NOISE["float32"]).verdict is Verdict.FAIL


P, S, F = Verdict.PASS, Verdict.SUSPECT, Verdict.FAIL


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        pytest.param({(0, 1): F, (0, 2): F, (1, 2): P}, ((1, 2), [0]), id="the first"),
        pytest.param({(0, 1): F, (0, 2): P, (1, 2): F}, ((0, 2), [1]), id="the second"),
        pytest.param({(0, 1): F, (0, 2): F, (1, 2): F}, None, id="all differ"),
        pytest.param({(0, 1): F, (0, 2): S, (1, 2): P}, ((1, 2), []), id="not clearly"),
        pytest.param(
            {(0, 1): F, (0, 2): F, (1, 2): F, (0, 3): F, (1, 3): F, (2, 3): P}, ((2, 3), [0, 1]), id="two of four"
        ),
    ],
)
def test_two_that_agree_speak_against_others(verdicts: Any, expected: Any) -> None:
    assert agreement(verdicts) == expected


@pytest.mark.parametrize(
    ("sides", "lead", "expected"),
    [
        pytest.param("aab", 1, ((0, 1), [2]), id="two to one"),
        pytest.param("aab", 2, None, id="not enough"),
        pytest.param("abaa", 2, ((0, 2), [1]), id="three to one"),
        pytest.param("abab", 1, None, id="two to two"),
        pytest.param("abbaa", 2, None, id="three to two"),
        pytest.param("abbaaa", 2, ((0, 3), [1, 2]), id="four to two"),
        pytest.param("abcaa", 2, ((0, 3), [1, 2]), id="liars who do not agree"),
    ],
)
def test_by_how_many_those_who_agree_are_more(sides: str, lead: int, expected: Any) -> None:
    pairs = [(one, other) for other in range(len(sides)) for one in range(other)]
    assert agreement({(i, j): P if sides[i] == sides[j] else F for i, j in pairs}, lead) == expected


@given(st.lists(st.booleans(), min_size=4, max_size=9).filter(lambda liars: sum(liars) <= 2))
def test_two_who_collude_are_never_believed_where_a_fourth_is_asked(liars: list[bool]) -> None:
    """Whoever is asked first: as long as others can be asked, two that agree are not enough."""
    for asked in range(2, len(liars) + 1):
        pairs = [(one, other) for other in range(asked) for one in range(other)]
        found = agreement({(i, j): P if liars[i] == liars[j] else F for i, j in pairs}, 2)
        assert found is None or not liars[found[0][0]] or not any(not liar for liar in liars[:asked])


# ---- whom and how often -------------------------------------------------------------------------------------------


def test_who_passes_is_audited_less_and_less_and_who_fails_more() -> None:
    integrity, rates = Integrity(), []
    for _ in range(100):
        rates.append(integrity.rate(["a"], 0.0))
        integrity.passed(["a"], 0.0, 0.0)
    assert rates[:3] == [0.5, 0.25, 0.5 / 3] and rates[-1] == 0.01
    assert integrity.rate(["a", "new"], 0.0) == 0.5
    integrity.doubted(["a", "b"], 0.0)
    assert integrity.of("a").failed == 0.5
    assert integrity.rate(["a"], 0.0) > 0.005
    assert integrity.noise == LEAST_NOISE["float32"]
    assert integrity.of("a").faded(HALF_LIFE).passed == pytest.approx(50.0)


@given(st.lists(st.sampled_from(["pass", "doubt"]), max_size=60), st.floats(0, 1e9))
def test_a_rate_is_a_probability_and_nobody_is_exempt(events: list[str], later: float) -> None:
    integrity = Integrity()
    for event in events:
        if event == "pass":
            integrity.passed(["a"], 0.001, 0.0)
        else:
            integrity.doubted(["a"], 0.0)
    assert 0.01 <= audit_rate(integrity.of("a").faded(later)) <= 0.5
    assert not integrity.convicted


def record(peer: str, *addresses: str) -> ServerRecord:
    return ServerRecord(peer, Contract("m", Span(0, 1), (bytes(8),)), addresses=addresses)


def test_operators_are_known_by_their_addresses() -> None:
    one, same = record("one", "/ip4/81.2.3.4/tcp/1"), record("same", "/ip4/81.2.3.200/udp/4/quic-v1")
    home, relayed = record("home", "/ip4/192.168.1.7/tcp/1"), record("relayed", "/ip4/81.2.3.9/tcp/1/p2p/x/p2p-circuit")
    six, near = record("six", "/ip6/2a01:4f8:1:2::1/tcp/1"), record("near", "/ip6/2a01:4f8:1:9::1/tcp/1")
    assert operators(one) == operators(same) == {"81.2.3.0/24"}
    assert operators(six) == operators(near) != operators(one)
    assert operators(home) == operators(relayed) == frozenset()
    everybody = [one, same, home, relayed, six, near]
    assert strangers(everybody, [one, six]) == [home, relayed]


# ---- what follows -------------------------------------------------------------------------------------------------


def play(attacks: dict[tuple[int, int], Attack], texts: int, replicas: int = 4, **options: Any) -> Outcome:
    async def main() -> Outcome:
        world = await swarm(replicas, attacks, noise=options.pop("noise", 0.0))
        names = {f"{place}{index}" for place, index in attacks}
        outcome = await campaign(world, names, texts, options.pop("config", AUDITS), **options)
        await world.close()
        return outcome

    return run(main())


@pytest.mark.parametrize("attack", [Skipper, Noisy, Copier, Cautious])
def test_who_always_computes_wrong_is_found_out(attack: Attack) -> None:
    outcome = play({(1, 0): attack}, 12)
    assert outcome.convicted == {"10"}
    assert outcome.wrong == 0


def test_every_fifth_server_is_wrong_and_no_wrong_token_is_final() -> None:
    outcome = play({(0, 0): Skipper, (1, 1): Noisy, (2, 2): Skipper}, 25, 5)
    assert outcome.convicted and outcome.convicted <= {"00", "11", "22"}
    assert outcome.wrong == 0
    assert outcome.first < 25


def test_honest_servers_with_other_kernels_are_never_accused(caplog: pytest.LogCaptureFixture) -> None:
    outcome = play({}, 12, noise=0.004)
    assert not outcome.convicted and not outcome.refuted
    assert not [line for line in caplog.records if line.levelno >= logging.WARNING]


def test_without_a_third_nobody_is_convicted_and_the_user_is_told() -> None:
    async def main() -> None:
        world = await swarm(2, {(1, 0): Skipper})
        view = None
        for index in range(6):
            world.random.seed(index)
            _, session, again = await text_of(world, view, AUDITS, PROMPT, 70)
            view = session.view
            assert not again
        assert view is not None and not view.trust.integrity.convicted
        assert any(notice.kind == "disputed" for notice in world.notices)
        await world.close()

    run(main())


def test_without_anybody_to_compare_with_a_text_goes_on() -> None:
    async def main() -> None:
        world = await swarm(1, {})
        text, session, _ = await text_of(world, None, AUDITS, PROMPT, 70)
        assert text == reference(PROMPT, 70)
        assert session.statistics().setbacks == 0
        await world.close()

    run(main())


def test_others_of_the_client_leave_who_was_convicted_at_once() -> None:
    async def main() -> None:
        world = await swarm(3, {})
        first = world.session(AUDITS)
        await generate(first, PROMPT, 10, arithmetic=world.arithmetic)
        assert first.route is not None
        liar = first.route.hops[1].peer_id
        first.view.trust.integrity.convict(liar, "computed wrong", 0.0)
        with pytest.raises(Refuted) as caught:
            await generate(first, PROMPT, 10, arithmetic=world.arithmetic)
        assert (caught.value.sequence, caught.value.position) == (0, len(PROMPT) - 1)
        with pytest.raises(Refuted):
            await first.settled()
        second = world.session(view=first.view)
        assert await generate(second, PROMPT, 10, arithmetic=world.arithmetic) == reference(PROMPT, 10)
        assert second.route is not None and liar not in {hop.peer_id for hop in second.route.hops}
        await world.close()

    run(main())


def test_where_all_of_a_block_are_convicted_that_is_said() -> None:
    async def main() -> None:
        world = await swarm(1, {})
        session = world.session(AUDITS)
        await session.view.refresh(0.0)
        session.view.trust.integrity.convict("10", "computed wrong, as two others showed", 0.0)
        with pytest.raises(NoServerFits, match=r"10 3:6: computed wrong"):
            await text_of(world, session.view, AUDITS, PROMPT, 5)
        await world.close()

    run(main())


@pytest.mark.soak
def test_two_hundred_texts_in_a_swarm_of_which_every_fifth_server_is_wrong() -> None:
    attacks: dict[tuple[int, int], Attack] = {(0, 0): Skipper, (1, 1): Noisy, (2, 2): Skipper}
    audited, blind = play(attacks, 200, 5), play(attacks, 200, 5, config=ClientConfig(audits=False))
    assert audited.convicted <= {"00", "11", "22"} and audited.first < 200
    assert blind.wrong > 0
    assert audited.wrong < 0.01 * blind.wrong


@pytest.mark.soak
@pytest.mark.parametrize("noise", [0.0, 0.001, 0.005, 0.01])
def test_ten_thousand_audits_of_honest_servers(noise: float) -> None:
    """Errors as two kernels make them, of which each has its own, and a position now and then that is odd."""
    rng, integrity = np.random.default_rng(7), Integrity()
    verdicts: dict[Verdict, int] = {}
    for index in range(10_000):
        pair = [f"{random.Random(index).randrange(20)}", f"{random.Random(-index).randrange(20, 40)}"]
        off = np.abs(rng.normal(noise, 0.2 * noise, 64)) * (1.0 + 3.0 * (rng.random(64) < 0.02))
        found = judge(off, range(64), integrity.noise)
        verdicts[found.verdict] = verdicts.get(found.verdict, 0) + 1
        if found.verdict is Verdict.PASS:
            integrity.passed(pair, found.usual, 0.0)
    assert verdicts == {Verdict.PASS: 10_000}


# ---- a real model -------------------------------------------------------------------------------------------------


class Shortened:
    """A server's runner that leaves out a third of what its blocks add."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def run(self, job: Any) -> Any:
        return job.rows + 0.67 * (self.runner.run(job) - job.rows)


def test_generate_returns_the_right_text_although_a_server_computes_wrong(
    checkpoints: Any, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.checkpoints import Served, spans_of

    monkeypatch.setattr("swarm.client.integrity.HIGHEST", 1.0)
    servers = Served(checkpoints("llama"), [span for span in spans_of(2) for _ in range(3)])
    servers.hosted[3].engine.runner = Shortened(servers.hosted[3].engine.runner)
    inputs, options = {"input_ids": torch.arange(3, 12)[None]}, {"max_new_tokens": 24, "do_sample": True}
    streamed: list[int] = []

    class Streamer:
        ended = 0

        def put(self, value: torch.Tensor) -> None:
            streamed.extend(value.flatten().tolist())

        def end(self) -> None:
            self.ended += 1

    try:
        model, right = servers.model(audits=True, max_wait=20.0), whole("llama")
        for seed in range(20):  # routes are drawn by chance: sooner or later it is on one
            streamed.clear()
            streamer = Streamer()
            torch.manual_seed(seed)
            text = model.generate(**inputs, **options, streamer=streamer)
            torch.manual_seed(seed)
            assert torch.equal(text, right.generate(**inputs, **options))
            assert streamer.ended == 1
            if model.remote_blocks.view.trust.integrity.convicted:
                break
        assert streamed[-4:] == text[0, -4:].tolist()
        assert model.remote_blocks.view.trust.integrity.convicted == {"server3"}
        servers.assert_free()
    finally:
        servers.close()
