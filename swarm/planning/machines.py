"""Machines that nobody has yet, out of a TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from swarm.errors import InvalidInput
from swarm.files import read_small

ENOUGH = "enough"
SIZE = 1 << 20
"""Bytes of a file."""
MOST = 4096
"""Machines in one plan, and characters of a name."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine. `memory_gb`: free, in 10^9 bytes, of which a server takes its usual share; `bandwidth_gbs`: of that
    memory, in 10^9 bytes a second; or, measured, `decode_ms`: of one block and token. `overhead_ms`: of a block beyond
    reading its weights. `tflops`: in products, 10^12 a second; or, measured, `prefill_rate`: positions per second
    through one block. `delay_ms`: to the client, one way; `link_mbit`: 10^6 bits a second. `enough`: as many of it as
    the model needs."""

    name: str
    memory_gb: float
    bandwidth_gbs: float | None = None
    decode_ms: float | None = None
    overhead_ms: float = 0.3
    tflops: float | None = None
    prefill_rate: float | None = None
    delay_ms: float = 25.0
    link_mbit: float = 100.0
    enough: bool = False


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: `bandwidth_gbs` of the memory that the head of the model is in; `step_ms`: of a token, what the library
    does beside its numbers."""

    bandwidth_gbs: float = 20.0
    step_ms: float = 4.0


MAY_BE_ZERO = ("overhead_ms", "delay_ms", "step_ms")
NUMBERS = tuple(each.name for each in fields(Machine) if each.name not in ("name", "enough"))


def read(path: Path) -> tuple[list[Machine], Client]:
    """The machines of a file, in its order. Raises InvalidInput, OSError."""
    text = read_small(path, SIZE)
    try:
        return parse(text)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error


def parse(text: str) -> tuple[list[Machine], Client]:
    """Machines and the client out of TOML. Raises InvalidInput, in a line."""
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise InvalidInput(f"this is not TOML: {' '.join(str(error).split())[:200]}") from error
    _known(found, ("machines", "client"), "the file")
    tables = found.get("machines")
    if not isinstance(tables, list) or not tables:
        raise InvalidInput("there are no machines; begin each with a line [[machines]]")
    machines = [machine for place, table in enumerate(tables) for machine in _machines(table, f"machine {place + 1}")]
    if len(machines) > MOST:
        raise InvalidInput(f"there are {len(machines)} machines; at most {MOST} are planned")
    return machines, _client(found.get("client", {}))


def _machines(table: object, where: str) -> list[Machine]:
    if not isinstance(table, dict):
        raise InvalidInput(f"{where} is not a table; begin it with a line [[machines]]")
    _known(table, ("name", "count", *NUMBERS), where)
    name, count = table.get("name", where), table.get("count", 1)
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 64:
        raise InvalidInput(f"{where}: name is not a text of 1 to 64 characters that can be shown")
    numbers = {key: _number(table[key], f"{where}: {key}", key in MAY_BE_ZERO) for key in NUMBERS if key in table}
    if "memory_gb" not in numbers:
        raise InvalidInput(f"{where}: memory_gb is missing")
    if ("bandwidth_gbs" in numbers) == ("decode_ms" in numbers):
        raise InvalidInput(f"{where}: say one of bandwidth_gbs and decode_ms")
    if ("tflops" in numbers) == ("prefill_rate" in numbers):
        raise InvalidInput(f"{where}: say one of tflops and prefill_rate")
    machine = Machine(name, **numbers)  # type: ignore[arg-type]
    if count == ENOUGH:
        return [replace(machine, enough=True)]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise InvalidInput(f'{where}: count is neither 1 to {MOST} nor "{ENOUGH}"')
    return [machine] * count


def _client(table: object) -> Client:
    if not isinstance(table, dict):
        raise InvalidInput("client is not a table; begin it with a line [client]")
    _known(table, ("bandwidth_gbs", "step_ms"), "client")
    return Client(**{key: _number(value, f"client: {key}", key in MAY_BE_ZERO) for key, value in table.items()})


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            raise InvalidInput(f"{where}: {key[:40]!r} is not one of {', '.join(keys)}")


def _number(value: object, where: str, zero: bool = False) -> float:
    """A finite number that a plan can be made with."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{where} is not a number")
    if not (math.isfinite(value) and (1e-6 <= value <= 1e9 or (zero and value == 0))):
        raise InvalidInput(f"{where} is not between {0 if zero else '0.000001'} and 1000000000")
    return float(value)
