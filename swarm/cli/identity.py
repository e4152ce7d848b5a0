"""Which private key a command runs with. Two peers must not share one, so a key in use is locked."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import click

from swarm.cli.files import check_key
from swarm.config import NetworkConfig
from swarm.errors import InvalidInput


def state_dir(environment: Mapping[str, str] = os.environ, platform: str = sys.platform) -> Path:
    """Where this user's state belongs by the platform's convention."""
    if platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "swarm"
    base = environment.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state") / "swarm"


@contextmanager
def identified(network: NetworkConfig, given: str | None, command: str, who: str) -> Iterator[NetworkConfig]:
    """How to join with a key that no other process has, for as long as the block lasts. `who`: as in "another server".

    Raises InvalidInput when the key that was given is in use.
    """
    with identity(given, command) as path:
        if path is None:
            click.echo(f"another {who} of this user is running: this one has a temporary identity")
        yield replace(network, identity_path=path)


@contextmanager
def identity(given: str | None, command: str) -> Iterator[str | None]:
    """Hold the key file of this process: the one given, else the user's own for `command`.

    Yields its path, or None for a temporary identity when the user's own is in use by another process.
    Raises InvalidInput when the one given is in use, for two peers with one key would be taken for one, and when it
    cannot be kept there.
    """
    path = state_dir() / f"{command}.key" if given is None else check_key(Path(given), "--identity-path")
    with _lock_of(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if given:
                raise InvalidInput(f"the identity {given} is in use by another process; pass another path") from None
            yield None
        else:
            yield str(path)


def _lock_of(path: Path) -> TextIO:
    """A file beside the key, not the key itself: that is written by renaming a finished file over it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path.with_name(path.name + ".lock").open("a")
    except OSError as error:
        raise InvalidInput(
            f"the identity cannot be kept in {path} ({error.strerror}): pass --identity-path with a file in a folder "
            "that can be written to"
        ) from error
