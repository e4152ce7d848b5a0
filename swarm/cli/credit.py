"""swarm-credit: what was given, what was taken, and by whom."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from swarm.accounting.account import KEY_FILE, Account
from swarm.accounting.chain import end_of, follows
from swarm.accounting.entries import read_entry
from swarm.cli.accounts import AccountOptions
from swarm.cli.command import Command
from swarm.client.integrity import Standing
from swarm.client.standings import load
from swarm.errors import BookFailed, InvalidInput, MalformedFrame
from swarm.net.identity import name_of

UNIT = 1e9
"""Work is shown in thousands of millions of parameters, times positions."""
PAGE = 1000


@dataclass(frozen=True, slots=True)
class Other:
    """Another account: what was given to it and taken from it, as both have signed, the credit that it has here, and
    whether it was found to cheat."""

    account: str
    given: int
    taken: int
    credit: int
    cheats: bool


@click.command(cls=Command)
@click.option(
    "--account",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Where the account is kept; by default that of this user.",
)
@click.option(
    "--standings",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Where a client keeps what its audits have shown, to show that, too.",
)
@click.option("--verify", is_flag=True, help="Check every signature and every link of this account's chain.")
@click.option("--json", "json_", is_flag=True, help="One JSON document instead of text.")
def main(account: str | None, standings: str | None, verify: bool, json_: bool) -> None:
    """Show what this account has given to others and taken from them. Work is parameters times positions.

    Exit codes: 0 shown, 1 an error that is printed, also where --verify finds one, 2 wrong usage.
    """
    folder = AccountOptions(account, True).folder()
    assert folder is not None
    if not (Path(folder) / KEY_FILE).exists():
        raise InvalidInput(f"there is no account in {folder} yet: swarm-serve begins one")
    mine = Account.open(Path(folder))
    try:
        links = verified(mine) if verify else None
        audits = {} if standings is None else load(standings)
        others = others_of(mine)
        click.echo(
            json.dumps(as_json(mine, others, audits, links), indent=2)
            if json_
            else "\n".join(as_text(mine, others, audits, links))
        )
    finally:
        mine.close()


def others_of(account: Account) -> list[Other]:
    """With whom it has to do, those with most first. Raises BookFailed."""
    book, found = account.book, []
    for other, mine, theirs in book.others(account.key):
        if account.key != other:
            # What was given counts as far as it was signed for, what was taken as it was admitted here.
            given, taken = theirs.taken, mine.taken
            found.append(Other(name_of(other), given, taken, account.credit_of(other), book.cheats(other)))
    return sorted(found, key=lambda other: (-other.given - other.taken, other.account))


def verified(account: Account) -> int:
    """How many links of its own chain are there, and right. Raises BookFailed."""
    count, number, before = 0, 1, None
    while page := account.book.links(account.key, number, PAGE):
        for data in page:
            try:
                link = read_entry(data)
            except MalformedFrame as error:
                raise BookFailed(f"a link behind number {number - 1} is broken: {error}") from error
            # Old ones are thrown away, but for the last of each pair.
            if before is not None and link.number == before.number + 1 and not follows(end_of(before), link):
                raise BookFailed(f"link {link.number} does not follow the one before")
            before, count, number = link, count + 1, link.number + 1
    return count


def as_json(account: Account, others: list[Other], audits: dict[str, Standing], links: int | None) -> dict[str, Any]:
    """The whole report."""
    sums = account.statistics()
    return {
        "account": str(account),
        "given": sums.given,
        "taken": sums.taken,
        "others": [
            {"account": o.account, "given": o.given, "taken": o.taken, "credit": o.credit, "cheats": o.cheats}
            for o in others
        ],
        "audits": [
            {"peer": peer, "passed": each.passed, "failed": each.failed, "convicted": each.convicted}
            for peer, each in sorted(audits.items())
        ],
        **({} if links is None else {"links": links}),
    }


def as_text(account: Account, others: list[Other], audits: dict[str, Standing], links: int | None) -> list[str]:
    """The same for people."""
    sums = account.statistics()
    lines = [f"account  {account}", f"given    {amount(sums.given)}", f"taken    {amount(sums.taken)}"]
    if links is not None:
        lines.append(f"chain    {links} links, all signed, each follows the one before")
    if others:
        lines += ["", f"{'given':>12}  {'taken':>12}  {'credit':>12}  account"]
        for other in others:
            amounts = "  ".join(f"{amount(each):>12}" for each in (other.given, other.taken, other.credit))
            lines.append(f"{amounts}  {other.account}{'  cheats' if other.cheats else ''}")
    if audits:
        lines += ["", f"{'passed':>12}  {'failed':>12}  peer"]
        lines += [f"{a.passed:>12.1f}  {a.failed:>12.1f}  {peer}" for peer, a in sorted(audits.items())]
    return lines


def amount(work: int) -> str:
    """Work, with its unit: a thousand million parameters, times positions."""
    return f"{work / UNIT:,.3f} GP" if work < 1000 * UNIT else f"{work / UNIT:,.0f} GP"


if __name__ == "__main__":
    main()
