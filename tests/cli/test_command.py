"""How commands end: with a line, with an exit code, and whatever is at the other end of their streams."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from swarm.cli.command import Command
from swarm.errors import InvalidInput, NetworkError


def command(work: Callable[[], object]) -> click.Command:
    @click.command(cls=Command)
    @click.option("--text", default="")
    def main(text: str) -> None:
        click.echo(text)
        work()

    return main


def fails(error: BaseException) -> Callable[[], object]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InvalidInput("pass another"), "error: pass another"),
        (ZeroDivisionError("by zero"), "error: ZeroDivisionError: by zero (-v shows where)"),
        (RuntimeError("one\ntwo"), "error: RuntimeError: one two (-v shows where)"),
        (KeyError(), "error: KeyError (-v shows where)"),
        (PermissionError(13, "Permission denied", "/x/y"), "error: /x/y: Permission denied"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (ExceptionGroup("", [ValueError("1"), ExceptionGroup("", [NetworkError("gone")])]), "error: gone"),
        (InvalidInput("\x1b[2Jcleared"), "error: \\x1b[2Jcleared"),
    ],
)
def test_whatever_happens_is_one_line_and_more_is_shown_to_who_asks(error: Exception, line: str) -> None:
    main = command(fails(error))
    result = CliRunner().invoke(main, [])
    assert (result.exit_code, result.stderr) == (1, line + "\n")


PROGRAM = """
import click
from swarm.cli.command import Command
@click.command(cls=Command)
@click.option("--text", default="")
def main(text):
    click.echo(text)
    {body}
main()
"""


def test_ctrl_c_is_130_without_a_word() -> None:
    result = CliRunner().invoke(command(fails(KeyboardInterrupt())), [])
    assert (result.exit_code, result.stderr.strip()) == (130, "")


def process(
    *arguments: str, body: str = "pass", into: object = subprocess.PIPE, **environment: str
) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body), *arguments],
        stdout=into,  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=os.environ | environment,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_tracebacks_are_for_those_who_ask() -> None:
    assert process(body="1 / 0") == (1, b"\n", b"error: ZeroDivisionError: division by zero (-v shows where)\n")
    code, _, errors = process("-v", body="1 / 0")
    assert code == 1
    assert b"Traceback" in errors
    assert errors.endswith(b"error: ZeroDivisionError: division by zero\n")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]])
def test_a_full_disk_is_one_line(arguments: list[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("wb") as full:
        code, _, errors = process(*arguments, into=full)
    assert (code, errors) == (1, b"error: the output cannot be written: No space left on device\n")


@pytest.mark.parametrize("body", ["pass", "print('more'); 1 / 0", "print('more')"])
@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_a_closed_pipe_is_no_word_at_all(arguments: list[str], body: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        code, _, errors = process(*arguments, body=body, into=writer)
    finally:
        os.close(writer)
    assert (code, errors) == (141, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_once_it_has_cleaned_up(number: signal.Signals, code: int) -> None:
    body = """
    import asyncio
    async def main():
        try:
            click.echo("ready")
            await asyncio.sleep(600)
        finally:
            click.echo("left")
    asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        while running.stdout.readline() != "ready\n":
            pass
        running.send_signal(number)
        out, errors = running.communicate(timeout=60)
    assert (running.returncode, out, errors.strip()) == (code, "left\n", "")


def test_streams_that_are_closed_are_a_void() -> None:
    program = PROGRAM.format(body="import sys; sys.stdin.read()")
    closed = '"$0" -c "$1" <&- >&- 2>&-'
    assert subprocess.run(["/bin/sh", "-c", closed, sys.executable, program], check=False).returncode == 0


C_LOCALE = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("environment", "written"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, b"\xfc \\u2192"),
        ({"PYTHONIOENCODING": "ascii"}, "ü →".encode()),
        ({"PYTHONIOENCODING": "cp1252:strict"}, b"\xfc \\u2192"),
        (C_LOCALE, "ü →".encode()),
        ({"LC_ALL": "C.UTF-8"}, "ü →".encode()),
    ],
)
def test_any_encoding_can_be_written(environment: dict[str, str], written: bytes) -> None:
    assert process("--text", "ü →", **environment) == (0, written + b"\n", b"")


def test_arguments_that_are_no_text_are_wrong_usage() -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-c", PROGRAM.format(body="pass").encode(), b"--text", b"\xff\xfe"],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"--text" in done.stderr
    assert b"not text in UTF-8" in done.stderr
