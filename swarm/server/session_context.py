"""What all sessions on a span share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from swarm.config import ServerConfig
from swarm.contract import Contract
from swarm.net.base import Host
from swarm.net.flight import Flight
from swarm.server.budget import CacheBudget
from swarm.server.engine import Engine
from swarm.server.prefixes import PrefixCache
from swarm.tasks import Tasks
from swarm.types import ServerRecord
from swarm.wire.codecs import Codec


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What all sessions on a span share. `codec`: that of a name, or ContractMismatch; `tasks`: owns what runs in the
    background; `salt`: of the digests of prompts; `flight`: what all clients have on its way."""

    host: Host
    engine: Engine
    budget: CacheBudget
    config: ServerConfig
    row_bytes: int
    max_positions: int
    verify: Callable[[bytes], ServerRecord]
    contract: Contract
    codec: Callable[[str], Codec]
    prefixes: PrefixCache
    salt: bytes
    tasks: Tasks
    flight: Flight
