"""What somebody has done for me, himself or through one whom I owe: the two-hop maximum flow of BarterCast. Pure.

Meulpolder, Pouwelse, Epema, Sips: BarterCast, a practical approach to prevent lazy freeriding in P2P networks, 2009.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Account = bytes
Flows = Mapping[tuple[Account, Account], int]
"""How much work (giver, taker) is, as the taker has admitted: a giver's own word counts for nothing."""


def owed(flows: Flows, debtor: Account, creditor: Account) -> int:
    """What `debtor` had from `creditor` and has not given back."""
    return max(flows.get((creditor, debtor), 0) - flows.get((debtor, creditor), 0), 0)


@dataclass(slots=True)
class Debts:
    """What I owe, and how much of it is used up: `left` to each whom I owe; `charged` of that to (debtor, creditor),
    for what the debtor had of me, and was owed by the creditor; `uncovered`: what others had beyond all of that."""

    left: dict[Account, int]
    charged: dict[tuple[Account, Account], int] = field(default_factory=dict)
    uncovered: dict[Account, int] = field(default_factory=dict)


def debts(me: Account, flows: Flows, accounts: Iterable[Account]) -> Debts:
    """Settle what others had of me with what I owe those who owe them, in a fixed order.

    Without this, what I owe one would be credit for all its friends at a time, of which there can be any number.
    """
    others = sorted(set(accounts) - {me})
    found = Debts({other: amount for other in others if (amount := owed(flows, me, other))})
    had = dict[Account, list[Account]]()
    for giver, taker in flows:
        if taker in found.left:
            had.setdefault(giver, []).append(taker)
    for debtor in others:
        if not (debt := owed(flows, debtor, me)):
            continue
        for creditor in sorted(had.get(debtor, ())):
            part = min(debt, found.left[creditor], owed(flows, creditor, debtor))
            if part and creditor != debtor:
                found.left[creditor] -= part
                found.charged[debtor, creditor] = part
                debt -= part
        if debt:
            found.uncovered[debtor] = debt
    return found


def credit(flows: Flows, mine: Debts, account: Account) -> int:
    """What `account` may still have of me for what was done for me, by itself and by those who owe it."""
    through = 0
    for creditor, left in mine.left.items():
        if creditor != account:
            open_there = owed(flows, creditor, account) - mine.charged.get((account, creditor), 0)
            through += min(left, max(open_there, 0))
    return max(mine.left.get(account, 0) + through - mine.uncovered.get(account, 0), 0)
