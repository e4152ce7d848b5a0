"""What is installed without extras serves and generates; what needs more says what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.cli.extras import PACKAGES, how_to_have

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WITH_EXTRAS = {
    "gateway": (
        "swarm/gateway/http/",
        "swarm/gateway/openai/",
        "swarm/gateway/responses/",
        "swarm/gateway/anthropic/",
        "swarm/gateway/constrained/",
        "swarm/gateway/life.py",
    ),
    "images": ("swarm/models/pictures.py", "swarm/models/picture_parts.py"),
    "adapters": ("swarm/models/ends/adapter_folder.py",),
    "edge": ("swarm/net/edge/", "swarm/net/pure/"),
}
"""Whose code may import what an extra brings."""
PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWSPfVm14AFBKqmwqBxnKhjQyMJDjYc7vKSPj54QZyHkUe"
CALLED = {"PIL": "pillow"}
"""What is installed by another name than it is imported by."""
BROUGHT_ALONG = {"pydantic", "aioice", "aioquic", "aiortc"}
"""Packages that others of the same extra depend on."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_-]", text)[0] for text in requirements}


def test_the_extras_are_those_that_commands_name() -> None:
    extras = PROJECT["optional-dependencies"]
    for extra, packages in PACKAGES.items():
        assert names(extras[extra]) == {CALLED.get(each, each) for each in packages} - BROUGHT_ALONG
        everywhere = [each for each in PROJECT["dependencies"] if "== 'Windows'" not in each]
        assert not names(everywhere) & set(packages)
    assert "swarm-llm[gateway,edge,images,adapters]" in extras["dev"]


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield str(node.module).partition(".")[0]


def test_only_the_code_of_an_extra_imports_its_packages() -> None:
    for file in (ROOT / "swarm").rglob("*.py"):
        place = file.relative_to(ROOT).as_posix()
        for extra, packages in PACKAGES.items():
            if not place.startswith(WITH_EXTRAS[extra]):
                assert not set(imports(file)) & set(packages), place


MISSING = sorted({package for packages in PACKAGES.values() for package in packages} - {"pydantic"})
WITHOUT = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {MISSING!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
"""Forgets what the extras bring, but for what hivemind brings, too."""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=False)


def test_without_extras_everything_else_can_be_imported() -> None:
    modules = ("client.model", "server.server", "net.hivemind.directory", "gateway.map", "gateway.map_metrics", "demo")
    done = run(f"import importlib\nfor name in {modules!r}: importlib.import_module('swarm.' + name)")
    assert done.returncode == 0, done.stderr


def test_a_gateway_without_its_extra_says_how_to_have_it(tmp_path: Path) -> None:
    arguments = [str(ROOT / "models" / "tiny-llama"), "-p", PEER, "--identity-path", str(tmp_path / "key")]
    done = run(f"from swarm.cli.gateway import main\nmain({arguments!r})")
    assert done.returncode == 1
    assert re.fullmatch(r'error: .* needs \w+, .*: pip install "swarm-llm\[gateway\]"\n', done.stderr), done.stderr


@pytest.mark.parametrize("needed", [True, False])
def test_an_edge_without_its_extra_is_missed_only_by_who_asked_for_it(needed: bool) -> None:
    done = run(f"""
import asyncio, logging
from swarm.cli.network import edge_of
from swarm.config import EdgeConfig
from swarm.errors import EdgeFailed
from swarm.net.identity import Identity
logging.basicConfig(format="%(message)s")
async def main():
    try:
        async with edge_of(Identity.generate(), EdgeConfig(), needed={needed}) as edge:
            print(edge)
    except EdgeFailed as error:
        print(error)
asyncio.run(main())
""")
    assert done.returncode == 0, done.stderr
    assert 'pip install "swarm-llm[edge]"' in (done.stdout if needed else done.stderr)
    assert (done.stdout == "None\n") is not needed


def test_other_modules_are_nobodys_extra() -> None:
    assert how_to_have("numpy") is None
    assert how_to_have(None) is None
    assert "[edge]" in str(how_to_have("libp2p.crypto"))
