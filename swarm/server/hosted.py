"""One span of one model, ready to compute: its engine, its budget, and the sessions on it."""

from __future__ import annotations

import asyncio
import bisect
import functools
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from swarm.accounting.account import Account
from swarm.accounting.stream import Friends
from swarm.config import ServerConfig
from swarm.contract import Contract
from swarm.errors import ContractMismatch, LimitExceeded, ServerBusy
from swarm.jobs import Change, Kind
from swarm.net.base import Host
from swarm.net.flight import Flight
from swarm.net.guard import Guard
from swarm.net.identity import Identity
from swarm.server.budget import CacheBudget
from swarm.server.ends import HostedEnds
from swarm.server.engine import Engine
from swarm.server.given import NOTHING_GIVEN, Given
from swarm.server.prefixes import OWNER, PrefixCache
from swarm.server.receipts import Receipts
from swarm.server.session import Session
from swarm.server.session_context import SessionContext
from swarm.tasks import Tasks
from swarm.types import PeerId, SequenceKey, ServerRecord, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import RAW, Codec, codec_of

log = logging.getLogger(__name__)

SALT_BYTES = 16
MANY = 1 << 20
"""Positions of a sequence so long that what it takes does not depend on where it ends."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What sessions may have beside the contract. `max_positions`: of a sequence, 0 for no limit; `codecs`: how hidden
    states may travel; `verify` checks a signed record and raises RecordRefused; `parameters`: of each block, for what
    computing counts; none: it is not counted."""

    verify: Callable[[bytes], ServerRecord]
    max_positions: int = 0
    codecs: tuple[str, ...] = (RAW,)
    parameters: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HostedStatistics:
    """How busy a span is. `free_positions`: of KV cache for the whole span; `queue`: steps waiting or being computed;
    `opened`: sessions since the start; `budget_bytes`: for all that is held."""

    free_positions: int
    queue: int
    sessions: int
    opened: int
    kv_bytes: int
    history_bytes: int
    prefix_bytes: int
    budget_bytes: int


class Hosted:
    """Serves sessions on what `contract` (with fingerprints of 32 bytes a block) says, with an engine and a budget of
    their own. `flight`: where its clients' bytes on their way are counted; `offered`: files of blocks that other
    servers may have; `ends`: of the model, where they are served, too."""

    def __init__(
        self,
        *,
        host: Host,
        engine: Engine,
        contract: Contract,
        limits: Limits,
        config: ServerConfig,
        flight: Flight | None = None,
        offered: Mapping[int, Path] | None = None,
        ends: HostedEnds | None = None,
    ) -> None:
        self.engine = engine
        self.contract = contract
        self.limits = limits
        self.offered: Mapping[int, Path] = offered or {}
        self.ends = ends
        self.config = config
        self.prefixes = PrefixCache(config.prefix_chunk, self._free_prefix)
        self.budget = CacheBudget(
            config.cache_bytes,
            config.history_share,
            config.evict_after,
            config.prefix_share,
            self.prefixes,
            config.cache_share_per_peer,
        )
        self.draining = False
        """Whether no session is taken any more."""
        self.sessions: dict[bytes, Session] = {}
        self.opened = 0
        self._excess = 0
        self._tasks = Tasks(log)
        self._context = SessionContext(
            host=host,
            engine=engine,
            budget=self.budget,
            config=config,
            row_bytes=contract.row_bytes,
            max_positions=limits.max_positions,
            verify=limits.verify,
            contract=contract,
            codec=self._codec,
            prefixes=self.prefixes,
            salt=os.urandom(SALT_BYTES),
            tasks=self._tasks,
            flight=flight or Guard().flight,
        )

    def __str__(self) -> str:
        return f"blocks {self.contract.span} of model {self.contract.model[:12]}"

    @property
    def trains(self) -> bool:
        """Whether it gives gradients."""
        return self.config.training_bytes > 0 and self.engine.runner.trains

    def statistics(self) -> HostedStatistics:
        """As of now."""
        cost = functools.partial(self.engine.runner.reserved_bytes, self.contract.span)
        return HostedStatistics(
            free_positions=positions_in(self.budget.free_bytes, cost),
            queue=self.engine.queue,
            sessions=len(self.sessions),
            opened=self.opened,
            kv_bytes=self.budget.kv_bytes,
            history_bytes=self.budget.history_bytes,
            prefix_bytes=self.prefixes.nbytes,
            budget_bytes=self.budget.total,
        )

    # ---- sessions ---------------------------------------------------------------------------------------------

    def open(
        self,
        id: bytes,
        client: PeerId,
        asked: Contract,
        positions: int,
        given: Given = NOTHING_GIVEN,
        identity: Identity | None = None,
    ) -> Session:
        """Begin a session of a client. Raises ServerBusy, and LimitExceeded for what will never be had here.

        `identity`: who signs what is sent; None: nobody.
        """
        self._check_admission(positions, asked.span, client)
        session = self.sessions[id] = Session(id, client, asked.span, self._context, asked.places, given, identity)
        self.opened += 1
        self.budget.holders.append(session)
        return session

    def _check_admission(self, positions: int, span: Span, client: PeerId) -> None:
        wanted, most = self.engine.runner.reserved_bytes(span, positions), self._most_positions(span)
        if positions > most:
            text = f"{positions} positions in one session; there is room for {most}"
            raise LimitExceeded(text, "positions", most, positions)
        if not self.budget.make_room(
            min(wanted, self.budget.per_client), None, asyncio.get_running_loop().time(), client
        ):
            raise ServerBusy("the KV cache has no room for this session", retry_after=self.config.evict_after)

    def _most_positions(self, span: Span) -> int:
        """Positions that all sequences of one session on `span` may have together, if nobody else has any; fewer,
        where many are short."""
        return self.budget.per_client * MANY // max(self.engine.runner.reserved_bytes(span, MANY), 1)

    def bill(self, session: Session, account: Account, friends: Friends | None, payer: bytes) -> None:
        """From now on `payer` is to sign for what is done in a session, where it is known what that counts for."""
        blocks = zip(self.contract.span, self.limits.parameters, strict=False)
        parameters = sum(count for block, count in blocks if block in session.span)
        if parameters:
            tell: Callable[[pb.ControlReply], None] = lambda reply: session.tell(reply)  # noqa: E731 - it changes
            session.receipts = Receipts(
                account, friends, payer, session.client, session.id, parameters, self._tasks, tell
            )

    def greeting(self, session: Session) -> pb.Opened:
        """What a client is told of its session."""
        bill = None if session.receipts is None else session.receipts.greeting(self._context.host.peer_id)
        return pb.Opened(
            accounting=bill,
            session=session.id,
            can_rollback=self.engine.runner.can_rollback,
            rollback=self.engine.runner.rollback,
            max_positions=self.limits.max_positions,
            fingerprints=self.contract.on(session.span).fingerprints,
            codecs=self.limits.codecs,
            max_sequences=self.config.max_sequences,
            max_total_positions=self._most_positions(session.span),
            prefix_chunk=self.config.prefix_chunk,
            commits=session.commits,
        )

    def end(self, session: Session) -> None:
        """Free all that a session holds."""
        del self.sessions[session.id]
        self.budget.holders.remove(session)
        session.close()

    async def close(self) -> None:
        """Wait until nothing of its sessions, which have ended, runs any more."""
        await self._tasks.close()
        if self.ends is not None:
            await self.ends.close()

    def _codec(self, name: str) -> Codec:
        """The codec of this name; an empty name is raw. Raises ContractMismatch for one that is not offered."""
        if name not in ("", RAW, *self.limits.codecs):
            raise ContractMismatch(f"this server speaks {', '.join(self.limits.codecs)}, not {name}")
        contract = self.contract
        return codec_of(name, contract.dtype, contract.hidden_size, contract.row_bytes)

    # ---- what expires -----------------------------------------------------------------------------------------

    async def keep_house(self) -> None:
        """Drop caches that nobody has used for long, and see whether those that are held are those that are counted."""
        while True:
            await asyncio.sleep(min(self.config.idle_expiry / 4, 5.0))
            await self._audit()
            horizon = asyncio.get_running_loop().time() - self.config.idle_expiry
            for session in self.sessions.values():
                if session.last_used < horizon and (session.kv_bytes or session.history_bytes):
                    session.evict()

    async def _audit(self) -> None:
        """Compare what is counted with what the runner holds; twice more is held by mistake, and not to be had."""
        counted = self._counted
        excess = await self.engine.bytes_held(OWNER) - max(counted, self._counted)
        # Once may be a session's that ended in between.
        self.budget.excess, self._excess = max(min(excess, self._excess), 0), excess
        if self.budget.excess:
            log.error("the KV caches hold %d bytes more than the %d that are counted", excess, self._counted)
            self.budget.make_room(0, None, asyncio.get_running_loop().time())

    @property
    def _counted(self) -> int:
        return self.budget.kv_bytes + self.prefixes.kv_bytes

    def _free_prefix(self, key: SequenceKey) -> None:
        self.engine.change(OWNER, [Change(Kind.FREE, key)])


def positions_in(room: int, cost: Callable[[int], int]) -> int:
    """Positions of the longest sequence that takes at most `room` bytes, by what each length costs."""
    return bisect.bisect_right(range(messages.MAX_POSITION + 1), room, key=cost) - 1
