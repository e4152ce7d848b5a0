"""Checkpoints that many tests share, servers of them, and how random tests are drawn."""

from __future__ import annotations

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

os.environ["SWARM_LAN"] = "0"
"""Nobody else's network is asked; tests of that turn it on."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; commands in tests hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("swarm", derandomize=True, deadline=None)
settings.load_profile("swarm")

ByName = Callable[[str], Path]


class Lanes(LoadScopeScheduling):
    """Swarms of real processes mostly wait, and would disturb each other: one worker has them, one after the other.
    What computes goes file by file to whichever worker is free."""

    def _split_scope(self, nodeid: str) -> str:
        return "processes" if _is_swarm(nodeid) else nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest lane begins first."""
    items.sort(key=lambda item: not _is_swarm(item.nodeid))


def _is_swarm(nodeid: str) -> bool:
    return nodeid.startswith(("tests/processes/", "tests/field/"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Of tests of one name a worker would run one, and say nothing."""
    twice = [name for name, times in Counter(item.nodeid for item in session.items).items() if times > 1]
    assert not twice, f"tests of one name: {twice}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    config.option.loadscopereorder = False  # it would begin with the file of the most tests
    return Lanes(config, log)


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Commands that run inside a test make the log louder or quieter; that ends with the test."""
    logger = logging.getLogger("swarm")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> ByName:
    """`checkpoints("llama")`: the folder of a small checkpoint of that type, written once."""
    from tests.checkpoints import save  # here, because most tests need no torch

    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = save(tmp_path_factory.mktemp("checkpoint") / name, name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def whole(checkpoints: ByName) -> Callable[[str], Any]:
    """`whole("llama")`: the same weights in plain transformers."""
    from tests.checkpoints import reference

    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = reference(checkpoints(name))
        return made[name]

    return get


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct; skips where it cannot be had. For tests marked `realmodel`."""
    from swarm.demo.smollm2 import smollm2
    from swarm.errors import ModelNotFound

    try:
        return smollm2()
    except ModelNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_file() -> Path:
    """The same as its GGUF file, of type Q4_1."""
    from swarm.demo.smollm2 import smollm2_gguf
    from swarm.errors import ModelNotFound

    try:
        return smollm2_gguf()
    except ModelNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def served(checkpoints: ByName) -> Iterator[Callable[[str, int], Any]]:
    """`served("llama", 2)`: servers of that checkpoint in two spans."""
    from tests.checkpoints import Served, spans_of

    running: dict[tuple[str, int], Served] = {}

    def get(name: str, spans: int = 2) -> Served:
        if (name, spans) not in running:
            running[name, spans] = Served(checkpoints(name), spans_of(spans))
        return running[name, spans]

    yield get
    for servers in running.values():
        servers.close()
