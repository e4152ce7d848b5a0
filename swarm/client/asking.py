"""One query's life, as a pure function: what has come, who answers, what to do when they fall silent.

The state of an answer is with the asker. When a query node dies another one gets the same query with the tokens so far,
and goes on. `step` decides; what it wants done is in the commands that it returns. The page decides by the same rules
(`web/src/query/session.ts`): both replay the traces in `tests/golden/asker`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from swarm.config import AskerConfig
from swarm.errors import (
    GenerationFailed,
    InvalidInput,
    MalformedFrame,
    PeerUnreachable,
    Refuted,
    ServerBusy,
    SwarmError,
)
from swarm.models.picture_parts import KIND
from swarm.types import PeerId
from swarm.wire import messages
from swarm.wire import swarm_pb2 as pb

REMEMBERED = 60.0
"""Seconds for which a node that failed is asked only where there is no other: so long a dead one stays in the
directory."""
SHORTEST_PAUSE = 0.2
"""Seconds for which a busy node is left alone at least."""


class Phase(Enum):
    """Where a query is: `CHOOSING`: nobody is asked; `ASKING`: nothing came yet; `WAITING`: the node lacks blocks."""

    CHOOSING = "choosing"
    ASKING = "asking"
    ANSWERING = "answering"
    WAITING = "waiting"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Asking:
    """A query as its asker knows it. Times in seconds, by one clock.

    `avoided`: until when a node is left alone; `way`: how the tokens so far were computed, because a node that computes
    otherwise would go on with other words; `attempt`: counts the nodes asked; what an earlier one still says does not
    count; `failures`: nodes that failed one after the other without a token between.
    """

    phase: Phase
    nodes: Sequence[pb.QueryNode]
    avoided: Mapping[PeerId, float]
    heard_at: float
    waiting_patience: float
    choosing_since: float
    node: pb.QueryNode | None = None
    way: str | None = None
    attempt: int = 0
    generated: tuple[int, ...] = ()
    sent_bytes: int = 0
    waiting_since: float | None = None
    failures: int = 0
    error: SwarmError | None = field(default=None, compare=False)

    @property
    def over(self) -> bool:
        """Whether nothing follows any more."""
        return self.phase in (Phase.FINISHED, Phase.FAILED)


@dataclass(frozen=True, slots=True)
class Nodes:
    """The query nodes of the model have been looked up."""

    nodes: Sequence[pb.QueryNode]


@dataclass(frozen=True, slots=True)
class Reply:
    """A node says something."""

    attempt: int
    reply: pb.QueryReply


@dataclass(frozen=True, slots=True)
class Broke:
    """A node cannot be reached, is gone, or talks nonsense."""

    attempt: int
    error: SwarmError


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this node what is still missing."""

    attempt: int
    node: pb.QueryNode


@dataclass(frozen=True, slots=True)
class Drop:
    """Whoever is asked need not answer any more."""


Event = Nodes | Reply | Broke | Tick
Command = Ask | Drop
Step = tuple[Asking, list[Command]]


def begin(nodes: Sequence[pb.QueryNode], avoided: Mapping[PeerId, float], now: float, config: AskerConfig) -> Step:
    """A query that nobody has been asked yet."""
    return _choose(Asking(Phase.CHOOSING, nodes, avoided, now, config.waiting, now), now)


def step(asking: Asking, event: Event, now: float, config: AskerConfig) -> Step:
    """What follows from `event` at the time `now`."""
    if asking.over:
        return asking, []
    match event:
        case Nodes(nodes):
            known = replace(asking, nodes=nodes)
            return _look_on(known, now, config) if known.phase is Phase.CHOOSING else (known, [])
        case Tick():
            return _on_tick(asking, now, config)
        case Reply(attempt, reply) if _counts(asking, attempt):
            return _on_reply(asking, reply, now, config)
        case Broke(attempt, error) if _counts(asking, attempt):
            return _leave(asking, error, now, config)
    return asking, []


def _counts(asking: Asking, attempt: int) -> bool:
    """Whether it comes from the node that is asked now."""
    return asking.node is not None and attempt == asking.attempt


def is_silent(asking: Asking, now: float, config: AskerConfig) -> bool:
    """Whether the node that is asked has said nothing for too long."""
    if asking.phase is Phase.CHOOSING or asking.over:
        return False
    return now - asking.heard_at > (config.open_timeout if asking.phase is Phase.ASKING else config.silence)


def way_of(node: pb.QueryNode) -> str:
    """How a node's answers are computed, as far as that changes them."""
    sent = "" if node.codec in ("", "raw") else f", sent as {node.codec}"
    return messages.contract_of(node.contract).numbers + sent


def can_answer(node: pb.QueryNode, query: pb.Query) -> bool:
    """Whether a node knows all that a query asks for: one that does not would pass it over."""
    formed = query.HasField("tool_choice") or query.sampling.HasField("constraint")
    return node.constrains or not formed


def answering(nodes: Sequence[pb.QueryNode], query: pb.Query) -> list[pb.QueryNode]:
    """Those that can answer a query. Where it shows pictures, those that take some; if none does, one of the others is
    to say so."""
    able = [node for node in nodes if can_answer(node, query)]
    seeing = [node for node in able if node.sees] if KIND in query.messages else []
    return seeing or able


def pick(asking: Asking, now: float) -> pb.QueryNode | None:
    """The node with the most room, of those that did not fail just now; those that failed lately come last."""
    usable = [node for node in _alike(asking) if asking.avoided.get(node.peer_id, 0.0) <= now]
    return min(usable, key=lambda node: _failed_lately(asking, node, now) + _load(node) / 2, default=None)


def _alike(asking: Asking) -> list[pb.QueryNode]:
    return [node for node in asking.nodes if asking.way is None or way_of(node) == asking.way]


def _failed_lately(asking: Asking, node: pb.QueryNode, now: float) -> bool:
    return asking.avoided.get(node.peer_id, -2 * REMEMBERED) > now - REMEMBERED


def _load(node: pb.QueryNode) -> float:
    return min(1.0, node.running / node.capacity) if node.capacity else 1.0


def _choose(asking: Asking, now: float) -> Step:
    node = pick(asking, now)
    if node is None:
        since = asking.choosing_since if asking.phase is Phase.CHOOSING else now
        return replace(asking, phase=Phase.CHOOSING, node=None, choosing_since=since), []
    attempt = asking.attempt + 1
    chosen = replace(asking, phase=Phase.ASKING, node=node, attempt=attempt, heard_at=now, waiting_since=None)
    return chosen, [Ask(attempt, node)]


def _look_on(asking: Asking, now: float, config: AskerConfig) -> Step:
    """Choose, or give up where nobody could be chosen for too long."""
    chosen, commands = _choose(asking, now)
    if chosen.node is not None or config.max_wait is None or now - asking.choosing_since < config.max_wait:
        return chosen, commands
    alike = "" if asking.way is None else f" that computes in {asking.way}"
    return _fail(
        asking, PeerUnreachable(f"no query node of this model{alike} has answered for {config.max_wait:.0f} s")
    )


def _on_tick(asking: Asking, now: float, config: AskerConfig) -> Step:
    if asking.phase is Phase.CHOOSING:
        return _look_on(asking, now, config)
    if is_silent(asking, now, config):
        return _leave(asking, PeerUnreachable("it has fallen silent"), now, config)
    if asking.waiting_since is not None and now - asking.waiting_since > asking.waiting_patience:
        return _elsewhere(asking, now)
    return asking, []


def _elsewhere(asking: Asking, now: float) -> Step:
    """Another node may know a way around the blocks that this one waits for; alone, it goes on waiting."""
    assert asking.node is not None
    longer = replace(asking, waiting_patience=2 * asking.waiting_patience, waiting_since=now)
    here = asking.node.peer_id
    able = [node for node in asking.nodes if node.peer_id != here and not _failed_lately(asking, node, now)]
    others = replace(longer, nodes=able)
    if pick(others, now) is None:
        return longer, []
    chosen, commands = _choose(others, now)
    return replace(chosen, nodes=asking.nodes), [Drop(), *commands]


def _leave(asking: Asking, error: SwarmError, now: float, config: AskerConfig, pause: float | None = None) -> Step:
    """Go on with another node; the answer so far goes with the query. `pause`: of one that has not failed."""
    assert asking.node is not None
    failures = asking.failures + (pause is None)
    if pause is None:
        pause = config.avoid * 2**asking.failures
    avoided = {**asking.avoided, asking.node.peer_id: now + pause}
    avoiding = replace(asking, failures=failures, avoided=avoided)
    if failures >= config.failures:
        words = f"{failures} query nodes failed one after the other, the last one with: {error}"
        return _fail(avoiding, GenerationFailed(words))
    chosen, commands = _choose(avoiding, now)
    return chosen, [Drop(), *commands]


def _fail(asking: Asking, error: SwarmError) -> Step:
    return replace(asking, phase=Phase.FAILED, error=error), [Drop()]


def _on_reply(asking: Asking, reply: pb.QueryReply, now: float, config: AskerConfig) -> Step:
    heard = replace(asking, heard_at=now)
    match reply.WhichOneof("kind"):
        case "accepted":
            return replace(heard, phase=Phase.ANSWERING), []
        case "delta":
            return _on_delta(heard, reply.delta, now, config)
        case "route":
            return replace(heard, phase=Phase.ANSWERING, waiting_since=None), []
        case "waiting":
            since = now if asking.waiting_since is None else asking.waiting_since
            return replace(heard, phase=Phase.WAITING, waiting_since=since), []
        case "finished":
            return replace(heard, phase=Phase.FINISHED), [Drop()]
        case "failure":
            assert asking.node is not None
            return _on_failure(heard, messages.error_of(reply.failure, asking.node.peer_id), now, config)
    return heard, []


def _on_delta(asking: Asking, delta: pb.Delta, now: float, config: AskerConfig) -> Step:
    if delta.sent_bytes < asking.sent_bytes:
        return _leave(asking, MalformedFrame("the text of an answer cannot become shorter"), now, config)
    if not delta.tokens and not delta.text:
        return asking, []
    assert asking.node is not None
    moved = replace(
        asking,
        phase=Phase.ANSWERING,
        way=asking.way if asking.way is not None else way_of(asking.node),
        generated=(*asking.generated, *delta.tokens),
        sent_bytes=delta.sent_bytes,
        waiting_since=None,
        waiting_patience=config.waiting,
        failures=0,
    )
    return moved, []


def _on_failure(asking: Asking, error: SwarmError, now: float, config: AskerConfig) -> Step:
    if isinstance(error, InvalidInput | Refuted):
        # What another node would say, too.
        return _fail(asking, error)
    if isinstance(error, ServerBusy):
        return _leave(asking, error, now, config, max(SHORTEST_PAUSE, error.retry_after))
    return _leave(asking, error, now, config)
