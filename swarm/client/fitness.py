"""Why a server cannot be used for what a session asks, as far as this client knows, in words. Pure.

Some reasons pass: a server is full, loads, leaves or cannot be reached. Others last: it computes otherwise, or one
session may never have so much there. Where all servers of a block have reasons that last, waiting is in vain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from swarm.client.routing import ranges, told
from swarm.client.trust import Excess, Limits, Needs, Trust
from swarm.contract import Contract, without_places
from swarm.errors import ContextTooLong, LimitExceeded, MissingBlocks, NoServerFits, SwarmError
from swarm.types import PeerId, ServerRecord, ServerState, printable

MOST_REASONS = 8
MOST_NAMES = 4
NAME_LENGTH = 40


@dataclass(frozen=True, slots=True)
class Misfit:
    """A server that cannot be used now, and why; `lasting`: nor later. `beyond`: the limit that is exceeded, if one is:
    its name, what it allows and what is asked."""

    record: ServerRecord
    why: str
    lasting: bool = False
    beyond: Excess | None = None


def misfit(
    record: ServerRecord, asked: Contract, needs: Needs, trust: Trust, prints: Mapping[int, bytes], now: float
) -> Misfit | None:
    """Why a server cannot be used; None: it can, for all that is known. `prints`: the fingerprints that count."""
    difference = record.contract.difference(asked.on(record.span))
    if difference is not None:
        return Misfit(record, difference, lasting=True)
    if needs.places > record.contract.places:
        return Misfit(record, without_places(record.contract.places, needs.places), lasting=True)
    if (standing := trust.integrity.of(record.peer_id)).convicted:
        return Misfit(record, standing.convicted, lasting=True)
    if needs.adapted and not record.training:
        return Misfit(record, "takes no adapters", lasting=True)
    beyond = trust.limits.get(record.peer_id, Limits()).exceeded(needs)
    if beyond is not None:
        return Misfit(record, _words_of(*beyond), lasting=True, beyond=beyond)
    if record.state is not ServerState.ONLINE:
        return Misfit(record, "is still loading" if record.state is ServerState.JOINING else "is leaving")
    avoided = trust.peers.active(now).get(record.peer_id)
    if avoided is not None:
        return Misfit(record, f"{avoided.why}; tried again in {max(avoided.spared - now, 0.0):.0f} s")
    wanted = tuple(prints.get(block, b"") for block in record.span)
    other = record.contract.difference(replace(asked.on(record.span), fingerprints=wanted))
    return Misfit(record, other) if other is not None else None


def explained(missing: MissingBlocks, misfits: Sequence[Misfit], asked: Contract) -> MissingBlocks:
    """What is missing, with what is known of the servers that there are. NoServerFits where waiting is in vain."""
    blocks = [block for gap in missing.blocks for block in range(*gap)]
    concerned = [one for one in misfits if any(block in one.record.span for block in blocks)]
    hosted = ranges([block for block in blocks if any(block in one.record.span for one in concerned)])
    if not concerned:
        return missing
    hopeless = _hopeless(blocks, concerned)
    if hopeless is not None:
        text = f"nobody computes blocks {told(hosted)} as is asked here, in {asked.numbers}: {listed(concerned)}"
        return NoServerFits(text, missing.blocks, _beyond(hopeless))
    nobody = ranges([block for block in blocks if not any(block in one.record.span for one in concerned)])
    text = f"no server of blocks {told(hosted)} can be used now: {listed(concerned)}"
    return MissingBlocks(f"no server hosts blocks {told(nobody)}; {text}" if nobody else text, missing.blocks)


def listed(misfits: Iterable[Misfit]) -> str:
    """Which servers there are and why each does not fit; those with the same reason together, and not too many."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for one in misfits:
        reasons[one.why].append(f"{name_of(one.record)} {one.record.span}")
    texts = [f"{_some(names)}: {why}" for why, names in reasons.items()]
    more = len(texts) - MOST_REASONS
    return "; ".join(texts[:MOST_REASONS]) + (f"; and {more} more reasons" if more > 0 else "")


def name_of(record: ServerRecord) -> str:
    """A server's name and the end of its peer id; names are a stranger's, and shown as far as they can be printed."""
    name = printable(record.name)[:NAME_LENGTH].replace("\n", "?").strip()
    return f"{name} ({_short(record.peer_id)})" if name else record.peer_id


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _short(peer_id: PeerId) -> str:
    return peer_id if len(peer_id) <= 8 else f"…{peer_id[-6:]}"


def _hopeless(blocks: Iterable[int], misfits: Sequence[Misfit]) -> list[Misfit] | None:
    """The servers of a block of which all have reasons that last; None: every block may yet have a server."""
    for block in blocks:
        here = [one for one in misfits if block in one.record.span]
        if here and all(one.lasting for one in here):
            return here
    return None


def _beyond(hopeless: Sequence[Misfit]) -> SwarmError | None:
    """The error of asking for more than anybody gives, where that is what is the matter with every server."""
    limits = [one.beyond for one in hopeless if one.beyond is not None]
    if len(limits) < len(hopeless) or len({name for name, _, _ in limits}) > 1:
        return None
    name, allowed, asked = max(limits, key=lambda limit: limit[1])
    text = f"{asked} {_what(name)} are more than any server gives one session: {listed(hopeless)}"
    return ContextTooLong(text) if name == "context" else LimitExceeded(text, name, allowed, asked)


def _words_of(name: str, allowed: int, asked: int) -> str:
    return f"takes at most {allowed} {_what(name)}{'' if name == 'context' else ' in one session'}, not {asked}"


def _what(name: str) -> str:
    return {"context": "positions in one sequence", "cache_bytes": "bytes of KV cache"}.get(name, printable(name))
