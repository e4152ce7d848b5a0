"""Where an account is kept, and what swarm-credit says of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from swarm.accounting.account import Account
from swarm.accounting.entries import check_entry
from swarm.cli import credit
from swarm.cli.accounts import AccountOptions
from swarm.client.integrity import Standing
from swarm.client.standings import save
from swarm.net.identity import name_of


def made(folder: Path) -> Account:
    return Account.open(folder)


def test_where_an_account_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("swarm.cli.accounts.state_dir", lambda: tmp_path / "state" / "swarm")
    usual, here = tmp_path / "state" / "swarm", str(tmp_path / "here")
    # Who never had one gets none by asking, and one by serving.
    assert AccountOptions().folder() is None
    assert AccountOptions().folder(begins=True) == str(usual)
    assert AccountOptions(accounting=True).folder() == str(usual)
    made(usual).close()
    assert AccountOptions().folder() == str(usual)
    assert AccountOptions(account=here).folder() == here
    assert AccountOptions().folder(str(tmp_path / "keys" / "one.key"), begins=True) == str(tmp_path / "keys")
    for options in (AccountOptions(accounting=False), AccountOptions(here, False)):
        assert options.folder(begins=True) is None


def test_what_was_given_and_taken_is_told(tmp_path: Path) -> None:
    mine, other = made(tmp_path / "mine"), made(tmp_path / "other")

    async def trade() -> None:
        for taker, giver, work in ((mine, other, 2_500_000_000), (other, mine, 7_000_000_000)):
            taken = check_entry(await taker.take(giver.key, work, bytes(16)))
            await taker.answered(taken, check_entry(await giver.answer(taken)))

    asyncio.run(trade())
    save(str(tmp_path / "standings"), {"12D3peer": Standing(3.0, 1.0, 5.0, "computed wrong")})
    options = ["--account", str(tmp_path / "mine"), "--standings", str(tmp_path / "standings"), "--verify"]
    told = json.loads(CliRunner().invoke(credit.main, [*options, "--json"]).output)
    assert told == {
        "account": str(mine),
        "given": 7_000_000_000,
        "taken": 2_500_000_000,
        "others": [
            {
                "account": name_of(other.key),
                "given": 7_000_000_000,
                "taken": 2_500_000_000,
                "credit": 0,
                "cheats": False,
            }
        ],
        "audits": [{"peer": "12D3peer", "passed": 3.0, "failed": 1.0, "convicted": "computed wrong"}],
        "links": 2,
    }
    text = CliRunner().invoke(credit.main, options).output
    assert "given    7.000 GP" in text and "12D3peer" in text and "chain    2 links" in text
    mine.close()
    other.close()
