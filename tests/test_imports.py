"""Importing swarm is cheap, and its lazy names are real."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys

import pytest

import swarm

HEAVY = {"torch", "transformers", "hivemind", "libp2p", "numpy"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after `code`."""
    report = f"{code}\nimport sys\nprint(sorted(set(name.partition('.')[0] for name in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(ast.literal_eval(done.stdout.splitlines()[-1]))


def test_importing_swarm_loads_nothing_heavy() -> None:
    assert not modules_after("import swarm, swarm.types, swarm.config") & HEAVY


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="DistributedGpt"):
        swarm.DistributedGpt  # noqa: B018


def test_lazy_names_are_listed_and_promised_to_type_checkers() -> None:
    tree = ast.parse(inspect.getsource(swarm))
    promised = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert promised == swarm._HOMES
    assert set(promised) <= set(swarm.__all__) <= set(dir(swarm))
