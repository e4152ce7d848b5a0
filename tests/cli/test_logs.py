"""Lines of the log as JSON, and what they are about."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from swarm.cli.logs import JsonLines
from swarm.testing import World, generate, run
from swarm.types import Span


def test_a_line_is_one_object() -> None:
    record = logging.LogRecord("swarm.server", logging.WARNING, "f", 1, "%s is gone", ("it",), None)
    line = json.loads(JsonLines().format(record))
    assert line == {"time": record.created, "level": "warning", "logger": "swarm.server", "message": "it is gone"}
    try:
        raise ValueError("zwei\nZeilen")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "ö", (), sys.exc_info())
    whole = JsonLines().format(record)
    assert "\n" not in whole
    assert "ValueError" in json.loads(whole)["error"]


def test_lines_about_a_session_name_it_and_its_span(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world = World(blocks=3)
        server = await world.add("s", Span(0, 3))
        session = world.session()
        await generate(session, [1, 2, 3], 1)
        names.update(key.hex()[:8] for key in server.hosted.sessions)
        await session.close()
        await world.close()

    names: set[str] = set()
    with caplog.at_level(logging.INFO, logger="swarm.server"):
        run(main())
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    (opened,) = [line for line in lines if "opened by" in line["message"]]
    assert (opened["session"], opened["span"]) == (*names, "0:3")
    assert opened["message"].endswith(opened["peer"])
