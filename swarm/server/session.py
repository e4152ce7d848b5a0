"""One session as a hop serves it: who feeds it and whom it feeds, epoch by epoch, and what the engine does for it.

docs/protocol.md describes the state machine; what is held is in the ledger. Everything here runs on the event loop;
computing happens in the engine.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from swarm.config import FRAME_LIMIT
from swarm.errors import Gap, MalformedFrame, ServerBusy, SwarmError, Unauthorized
from swarm.net.base import Stream
from swarm.net.identity import Identity
from swarm.server import prefixes
from swarm.server.given import NOTHING_GIVEN, Given
from swarm.server.ledger import Ledger, SessionLimits
from swarm.server.onward import Onward
from swarm.server.outbox import Outbox
from swarm.server.prefixes import seed_of
from swarm.server.promises import NO_CHAINS, Chains, Promises
from swarm.server.prompts import Prompts
from swarm.server.receipts import Receipts
from swarm.server.session_context import SessionContext
from swarm.server.steps import Steps
from swarm.types import PeerId, Span
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import RAW
from swarm.wire.places import RowLayout, bare, check_places, placed
from swarm.wire.plausible import Plausible
from swarm.wire.rows import Buffer
from swarm.wire.transcode import decoded

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """Where a session stands: positions of each sequence, and bytes."""

    epoch: int
    received: dict[int, int]
    computed: dict[int, int]
    forwarded: dict[int, int]
    kv_bytes: int
    history_bytes: int
    unsent_bytes: int


class Session:
    """A client's session on `span`, of rows with so many `places`. `tell` puts a reply on the control stream, if there
    is one; `identity`: who signs what is sent, if the client wants that."""

    def __init__(
        self,
        id: bytes,
        client: PeerId,
        span: Span,
        context: SessionContext,
        places: int = 0,
        given: Given = NOTHING_GIVEN,
        identity: Identity | None = None,
    ) -> None:
        self.id = id
        self.client = client
        self.span = span
        self.epoch = 0
        self.closed = False
        self.tell: Callable[[pb.ControlReply], None] = lambda reply: None
        self.last_used = asyncio.get_running_loop().time()
        self._context = context
        self._layout = RowLayout(context.row_bytes, places)
        self._ledger = _ledger(context, span, self._layout.row_bytes)
        self._prompts = _prompts(id, client, span, context, self._ledger, given.digest)
        self._given = given
        contract = replace(context.contract.on(span), places=0)
        self._promises = None if identity is None else Promises(identity, id, contract, self._promise)
        self._steps = Steps(
            id, client, span, context, self._layout, self._ledger, self._prompts, self._promises, self._abandon
        )
        self._onward = Onward(str(self), context, lambda reply: self.tell(reply), self.subject)
        self._upstream: PeerId = client
        self._check: Plausible | None = None
        """What is to be looked at of the inputs, if another server computes them."""
        self._input_codec = self._output_codec = context.codec(RAW)
        self._resumed = asyncio.Event()
        self._outbox: Outbox | None = None
        self._inputs: Stream | None = None

    def __str__(self) -> str:
        return f"session {self.id.hex()[:8]} ({self.span})"

    @property
    def subject(self) -> dict[str, str]:
        """What a line of the log about this session is about, for its `extra`."""
        return {"session": self.id.hex()[:8], "span": str(self.span)}

    @property
    def receipts(self) -> Receipts | None:
        """What the client signs for, where it has an account."""
        return self._steps.receipts

    @receipts.setter
    def receipts(self, receipts: Receipts) -> None:
        self._steps.receipts = receipts

    # ---- epochs -----------------------------------------------------------------------------------------------

    def fence(self, epoch: int) -> bool:
        """Begin a new epoch: from now on nothing of an older one is taken or sent. False if `epoch` is not newer."""
        if epoch <= self.epoch or self.closed:
            return False
        self.epoch = epoch
        self._hang_up()
        return True

    async def prepare(self, message: pb.Prepare) -> pb.Have | None:
        """Hold nothing but what the client says is alive, and say what that is. None: a newer epoch has begun.

        Raises ContractMismatch for a codec that is not spoken here.
        """
        names = message.input_codec, message.output_codec
        input_codec, output_codec = (placed(self._context.codec(name), self._layout.planes) for name in names)
        await self._context.engine.settle(self.id)
        if message.epoch != self.epoch:
            return None
        if message.rollback:
            self._keep_snapshots()
        reach = await self._reach()
        if message.epoch != self.epoch:
            return None
        await self._steps.change(self._ledger.prepare(message.sequences, self._room, reach))
        self._upstream = message.upstream or self.client
        self._onward.direct(message)
        self._steps.tell_kept = self._tell_kept if message.recalls else None
        self._check = Plausible(self._context.contract.dtype, self._context.row_bytes) if message.check_inputs else None
        self._input_codec, self._output_codec = input_codec, output_codec
        return pb.Have(epoch=message.epoch, held=self._ledger.have(await self._reach()))

    def _tell_kept(self, kept: pb.Kept) -> None:
        self.tell(pb.ControlReply(kept=kept))

    def _keep_snapshots(self) -> None:
        """From now on its sequences are to go back, which takes room where blocks keep a running state."""
        runner = self._context.engine.runner
        if self._steps.snapshots or runner.can_rollback or not runner.rollback:
            return
        self._steps.snapshots = True
        beside, plain = runner.snapshot_bytes(self.span), self._ledger.cost
        self._ledger.reprice(lambda length: plain(length) + beside if length else 0)
        if not self._room(0):
            self._steps.forget_all()

    async def _reach(self) -> dict[int, int]:
        """To which length each sequence can go back, where that is not any."""
        if self._ledger.can_rollback:
            return {}
        keys = [(self.id, sequence) for sequence in self._ledger.lengths]
        found = await self._context.engine.reach(self.id, keys)
        return {sequence: length for (_, sequence), length in found.items()}

    def _room(self, wanted: int) -> bool:
        return self._context.budget.make_room(wanted, self, asyncio.get_running_loop().time())

    async def resume(self, message: pb.Resume) -> None:
        """Forget what the client wants computed again, send again what it wants sent again, and go on."""
        if message.epoch != self.epoch or self._resumed.is_set():
            return
        reach = await self._reach()
        if message.epoch != self.epoch:
            return
        await self._steps.change(self._ledger.cut(message.cuts, reach))
        if message.epoch != self.epoch:
            return
        self._ledger.begin()
        self._outbox = outbox = Outbox(
            self._output_codec,
            self._context.config.inbox_bytes,
            flight=self._context.flight,
            client=self.client,
            wanted_only=self._onward.wanted_only,
            on_sent=self._ledger.sent,
            on_given=self._given_out,
        )
        wants = {p.sequence: p.position for p in message.wants}
        for replay in message.replays:
            want_from = wants.get(replay.sequence, messages.MAX_POSITION)
            for rows, output in self._ledger.replay(replay.sequence, replay.position, want_from):
                outbox.put((), (rows,), output, 0, self._promises.chains([rows]) if self._promises else NO_CHAINS)
        self._resumed.set()
        self._onward.begin(self.epoch, outbox)

    # ---- data in ----------------------------------------------------------------------------------------------

    async def feed(self, stream: Stream, epoch: int) -> None:
        """Take steps from the upstream until the stream ends or the epoch does. Errors go to the sender."""
        self._check_upstream(stream, epoch)
        if self._inputs is not None:
            self._inputs.close()
        self._inputs = stream
        await self._resumed.wait()
        # Whoever came while the epoch was being prepared was held against the upstream of the one before.
        self._check_upstream(stream, epoch)
        while epoch == self.epoch:
            data = messages.decode(pb.Data, await stream.receive(FRAME_LIMIT))
            if data.WhichOneof("kind") != "step":
                raise MalformedFrame("only steps may follow the hello")
            step = await decoded(data.step, self._input_codec)
            if self._check is not None:
                self._check.look(bare(step, self._layout))
                self._check.remember()
            if self.receipts is not None:
                await self.receipts.room()
            if epoch == self.epoch:
                await self._accept(step)

    def _check_upstream(self, stream: Stream, epoch: int) -> None:
        if stream.peer_id != self._upstream or epoch != self.epoch:
            raise Unauthorized(f"{stream.peer_id} is not the upstream of this session in epoch {epoch}")

    async def _accept(self, step: pb.Step) -> None:
        """Take what is new of a step, or raise and take nothing."""
        self.last_used = asyncio.get_running_loop().time()
        outbox = self._outbox
        if outbox is None:
            return
        if self._layout.planes:
            check_places(self._layout.part(step.hidden)[1])
        adapter = self._given.get()
        accepted = self._ledger.accept(step.operations, step.rows, self._room_or_busy)
        if accepted is None:
            return
        for sequence, length in accepted.ended.items():
            # Windows of a speculation that turned out wrong need not be computed any more.
            self._context.engine.void((self.id, sequence), length)
        self._steps.take_up(accepted, fresh_hidden(step, accepted.rows, self._layout.row_bytes), outbox, adapter)
        await outbox.room()

    def _room_or_busy(self, wanted: int) -> bool:
        if not self._room(wanted):
            raise ServerBusy("the KV cache is full", retry_after=self._context.config.evict_after)
        return True

    def _abandon(self, error: SwarmError) -> None:
        """A step could not be computed: forget the sequences, tell the client, take nothing more in this epoch."""
        self._hang_up()
        self._steps.forget_all()
        self.tell(pb.ControlReply(failure=messages.failure(error, self.epoch)))

    # ---- data out ---------------------------------------------------------------------------------------------

    async def serve_results(self, stream: Stream, epoch: int) -> None:
        """The client reads here what this hop computes, until the epoch ends. Raises Unauthorized."""
        if stream.peer_id != self.client or epoch != self.epoch or self._onward.downstream is not None:
            raise Unauthorized(f"{stream.peer_id} may not read the results of this session in epoch {epoch}")
        await self._onward.serve(stream)

    # ---- promises ---------------------------------------------------------------------------------------------

    @property
    def commits(self) -> bool:
        """Whether what is sent is signed."""
        return self._promises is not None

    def commit(self) -> None:
        """Sign what was sent so far."""
        if self._promises is not None:
            self._promises.close()

    def _given_out(self, rows: Sequence[pb.Rows], hidden: Buffer, chains: Chains) -> None:
        if self._promises is not None:
            self._promises.gave(rows, hidden, chains)

    def _promise(self, commitment: pb.Commitment) -> None:
        self.tell(pb.ControlReply(commitment=commitment))

    # ---- the rest ---------------------------------------------------------------------------------------------

    @property
    def tallies(self) -> Sequence[pb.Tally]:
        """Where the time of this session's steps went."""
        return self._steps.tallies.told

    @property
    def kv_bytes(self) -> int:
        """What its sequences take, for the budget."""
        return self._ledger.kv_bytes

    @property
    def history_bytes(self) -> int:
        """What can be sent again, for the budget."""
        return self._ledger.history_bytes

    def statistics(self) -> SessionStatistics:
        """As of now."""
        ledger = self._ledger
        return SessionStatistics(
            epoch=self.epoch,
            received=dict(ledger.received),
            computed=dict(ledger.lengths),
            forwarded=dict(ledger.forwarded),
            kv_bytes=ledger.kv_bytes,
            history_bytes=ledger.history_bytes,
            unsent_bytes=self._outbox.unsent if self._outbox is not None else 0,
        )

    def progress(self, nonce: int) -> pb.Progress:
        """How far each sequence has come here."""
        self.last_used = asyncio.get_running_loop().time()
        engine = self._context.engine
        moved = self._ledger.moved()
        return pb.Progress(nonce=nonce, epoch=self.epoch, beat=engine.beat, moved=moved, queue=engine.queue)

    def drop_history(self) -> None:
        """Nothing can be sent again."""
        self._ledger.drop_history()

    def evict(self) -> None:
        """Give up the KV cache. The next step is answered as a gap, and replayed; one under way is answered now."""
        log.info("%s: cache evicted", self, extra=self.subject)
        if self._ledger.idle:
            self._steps.forget_all()
        else:
            self._abandon(Gap("the KV cache was needed for others"))

    def _hang_up(self) -> None:
        if self._outbox is not None:
            self._outbox.close()
        self._outbox = None
        self._resumed.set()
        self._resumed = asyncio.Event()
        self._onward.hang_up()
        if self._inputs is not None:
            self._inputs.close()
        self._inputs = None

    def close(self) -> None:
        """Free everything at once."""
        if not self.closed:
            self.closed = True
            if self.receipts is not None:
                self.receipts.close()
            self._hang_up()
            self._steps.forget_all()
            if self._promises is not None:
                self._promises.end()


def _ledger(context: SessionContext, span: Span, row_bytes: int) -> Ledger:
    runner, config = context.engine.runner, context.config
    return Ledger(
        cost=functools.partial(runner.reserved_bytes, span),
        row_bytes=row_bytes,
        can_rollback=runner.can_rollback,
        limits=SessionLimits(config.max_sequences, context.max_positions, context.budget.per_client),
    )


def _prompts(id: bytes, client: PeerId, span: Span, context: SessionContext, ledger: Ledger, adapter: bytes) -> Prompts:
    config = context.config
    seed = seed_of(span, client, shared=config.share_prefixes, salt=context.salt) + adapter
    chains = prefixes.Chains(seed, ledger.row_bytes, config.prefix_chunk)
    # What a running state was at the end of a chunk is gone when the next one has been computed.
    enabled = config.prefix_share > 0 and ledger.can_rollback
    return Prompts(id, chains, context.prefixes, context.budget, ledger, enabled=enabled)


def fresh_hidden(step: pb.Step, fresh: Sequence[pb.Rows], row_bytes: int) -> memoryview:
    """The hidden states of those of a step's rows that are new, the last of each sequence's."""
    hidden, end, pieces = memoryview(step.hidden), 0, list[memoryview]()
    counts = {row.sequence: row.count for row in fresh}
    for row in step.rows:
        end += row.count * row_bytes
        count = counts.get(row.sequence, 0)
        if count:
            pieces.append(hidden[end - count * row_bytes : end])
    if len(pieces) == 1:
        return pieces[0]
    return hidden if sum(map(len, pieces)) == len(hidden) else memoryview(b"".join(pieces))
