"""In whose name a command gives and takes: options, and where the account is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from swarm.accounting.account import KEY_FILE
from swarm.cli.identity import state_dir
from swarm.cli.together import together

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class AccountOptions:
    """What was said of the account."""

    account: str | None = None
    accounting: bool | None = None

    def folder(self, identity_path: str | None = None, *, begins: bool = False) -> str | None:
        """Where it is: beside the identity unless it is said. None: nothing is accounted; also where there is no
        account yet, unless one `begins` here."""
        if self.accounting is False:
            return None
        beside = Path(identity_path).parent if identity_path is not None else state_dir()
        folder = Path(self.account) if self.account is not None else beside
        begins |= self.accounting is True or self.account is not None
        return str(folder) if begins or (folder / KEY_FILE).exists() else None


def account_options(usual: str) -> Callable[[Function], Function]:
    """As `account`, an AccountOptions. `usual`: what is done where nothing is said."""
    return together(
        "account",
        AccountOptions,
        click.option(
            "--account",
            type=click.Path(file_okay=False),
            metavar="FOLDER",
            help="Where the key and the receipts of this account are kept; made when missing. By default beside the "
            "identity, one for all that this user runs on this machine.",
        ),
        click.option(
            "--accounting/--no-accounting",
            default=None,
            help=f"Sign receipts for what is computed, which give priority on busy servers. By default {usual}.",
        ),
    )
