"""When a server that runs should host other blocks. Pure: records in, a span or none out.

A swarm is as fast as its weakest block. A server moves where that takes clearly more blocks out of the weakest than it
leaves weak behind, so that each move brings the swarm nearer to balance and no two servers swap for ever; and never
where a block would be left to nobody.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from swarm.server.placement import ENOUGH, Strength, best_of, boundaries, candidates, strength_of, throughput
from swarm.types import ServerRecord, ServerState, Span

GAIN = 0.25
"""A block is weak below the weakest one's throughput and so much of it more."""
WORTH = 0.5
"""A move pays if so much of the new span was weak and is not any more, and the old one is not weak then."""


def better_span(
    own: ServerRecord,
    others: Sequence[ServerRecord],
    block_bytes: Sequence[int],
    memory: int,
    rng: random.Random,
    joined: Sequence[Span] = (),
) -> Span | None:
    """Where the server of `own` should move; None: it stays. `others`: the records of all other servers of the model.

    `block_bytes`, `memory` and `joined` as in `choose_span`. Raises InvalidInput when not even one block fits.
    """
    spans, without = candidates(block_bytes, memory, joined), strength_of(others, len(block_bytes))
    serving = strength_of((record for record in others if record.state is ServerState.ONLINE), len(block_bytes)).servers
    return better_of(
        spans,
        own.span,
        throughput(own),
        without,
        serving,
        lambda: boundaries(others, len(block_bytes)),
        rng,
    )


def better_of(
    spans: Sequence[Span],
    here: Span,
    speed: float,
    without: Strength,
    serving: NDArray[np.int64],
    meeting: Callable[[], Collection[int]],
    rng: random.Random,
) -> Span | None:
    """As `better_span`: of spans that fit, `here` being its own, `speed` its decode steps a second, `without` the
    strength of each block without it, and `serving` how many other servers of each have loaded it; `meeting`: where
    the spans of others do."""
    if not serving[here.first : here.last].all():
        return None
    now = without.plus(here, speed)
    lack = _lack(now, now)
    if not any(lack[span.first : span.last].any() for span in spans):
        return None
    there = best_of(spans, without, meeting(), rng)
    after = without.plus(there, speed)
    left = _lack(after, now)
    pays = int(left.sum()) <= int(lack.sum()) - max(1.0, WORTH * min(len(there), int((lack > 0).sum())))
    return there if pays and not (left > lack).any() else None


def _lack(strength: Strength, before: Strength) -> NDArray[np.int64]:
    """What each block lacks, by what all have: servers, where some block has fewer than `ENOUGH`; else speed."""
    fewest = int(before.servers.min())
    if fewest < ENOUGH:
        return np.maximum(fewest + 1 - strength.servers, 0)
    limit = float(before.speed.min()) * (1 + GAIN)
    return (strength.speed < limit).astype(np.int64) + (strength.servers < ENOUGH)
