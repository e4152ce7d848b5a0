"""The checks at load, on the real configuration: whether a span can be served at all, and in which way."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from swarm.errors import UnsupportedModel
from swarm.models.span.attention.base import Attention, Lane, Unbatchable
from swarm.models.span.base_model import BaseModel
from swarm.models.span.kv.base import KeyValueCache
from swarm.models.span.kv.cost import OBJECT_BYTES, Cost, linear_cost
from swarm.models.span.kv.hybrid import HybridCache
from swarm.models.span.kv.library import LibraryCache
from swarm.models.span.passes import Batched, Unbatched
from swarm.models.span.places import proven_places
from swarm.models.span.probe import close, random_states, run_whole
from swarm.models.span.stacked import Stacked
from swarm.span import is_inside
from swarm.types import Span

log = logging.getLogger(__name__)

STRANGERS = (7, 6)
"""Positions of the two sequences of the checks."""
STEPS = 2
"""Positions of each step after the first: a mask of the wrong size goes unseen where a step has one position only."""
NOT_PLAIN = "its blocks keep more than keys and values"
NO_INTERFACE = "its attention does not go through the library's interface"


@dataclass(frozen=True, slots=True)
class Proven:
    """What was found. `batched`: whether several sequences may share a forward pass, else `why_unbatched` not;
    `stacked`: whether decode steps may all the same.

    `can_rollback`: whether single positions can be forgotten. `costs`: what a sequence takes in each block;
    `snapshots`: bytes that it takes there beside, if blocks keep running states and it is to go back all the same.
    `places`: numbers of its own that a position may have at most, as `position_ids` say it; 0: blocks count by
    themselves. `joined`: runs of blocks that hand each other more than hidden states; anywhere else it can be cut.
    `tokens`: blocks look at the tokens, whose ids stand behind the hidden states.
    """

    batched: bool
    why_unbatched: str
    can_rollback: bool
    costs: tuple[Cost, ...]
    places: int = 0
    stacked: bool = False
    snapshots: tuple[int, ...] = ()
    joined: tuple[Span, ...] = ()
    tokens: bool = False


@torch.inference_mode()
def prove(model: BaseModel, attention: Attention, joined: Sequence[Span] = ()) -> Proven:
    """Transparent around its blocks; causal; cut anywhere but within `joined`; then whether strangers can share a row.

    `model` is left with the attention that was found to be right. Raises UnsupportedModel.
    """
    model.check_identity()
    strangers = random_states(model, STRANGERS)
    alone, cache = _check_alone(model, strangers, joined)
    found = _prove_together(model, attention, strangers, alone, cache)
    return replace(found, joined=tuple(run for run in joined if model.span.covers(run)), tokens=model.hands_on_tokens)


def _prove_together(
    model: BaseModel,
    attention: Attention,
    strangers: Sequence[torch.Tensor],
    alone: Sequence[torch.Tensor],
    cache: LibraryCache,
) -> Proven:
    """How several sequences are computed, of which each by itself gives `alone`."""
    why = NOT_PLAIN
    if cache.is_plain:
        try:
            costs = _check_batched(model, attention, strangers, alone)
            return Proven(True, "", True, costs, proven_places(model, Batched(model, attention)))
        except Exception as error:
            why = str(error) if isinstance(error, Unbatchable) else NO_INTERFACE
            log.debug("why not batched: %r", error)
            log.info("every sequence runs by itself: %s", why)
            model.use_own_attention()
    else:
        try:
            costs, snapshots = _check_stacked(model, attention, strangers, alone)
            most = proven_places(model, Stacked(model, attention))
            return Proven(False, why, False, costs, most, stacked=True, snapshots=snapshots)
        except Exception as error:
            log.debug("why not stacked: %r", error)
            model.use_own_attention()
    costs = _costs_alone(model, strangers[0])
    return Proven(False, why, cache.can_rollback, costs, proven_places(model, Unbatched(model)))


def _costs_alone(model: BaseModel, hidden: torch.Tensor) -> tuple[Cost, ...]:
    """What the library's cache keeps in each block: by what it grows with some positions more."""
    passes = Unbatched(model)
    cache = passes.new_cache()
    passes.run_alone(cache, hidden[:, :-STEPS])
    length, held = cache.length, cache.block_bytes()
    passes.run_alone(cache, hidden[:, -STEPS:])
    sizes = list(zip(held, cache.block_bytes(), strict=False))[: len(model.blocks)]
    return tuple(linear_cost(length, size, STEPS, then) for size, then in sizes)


def _check_alone(
    model: BaseModel, strangers: Sequence[torch.Tensor], joined: Sequence[Span]
) -> tuple[list[torch.Tensor], LibraryCache]:
    """What each stranger gets alone, and a cache that has seen the first. Raises UnsupportedModel."""
    passes = Unbatched(model)
    try:
        alone, caches = _in_steps(passes, strangers)
        whole = run_whole(passes, strangers[0])
        if not close(alone[0], whole, model.quantized):
            model.singly = True
            alone, caches = _in_steps(passes, strangers)
        pieces = _in_pieces(model, passes, strangers[0], joined)
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise UnsupportedModel(f"its blocks do not run from hidden states and a cache alone: {words}") from error
    if not close(alone[0], whole, model.quantized):
        raise UnsupportedModel("its blocks see later positions, or remember earlier ones outside the cache")
    if not close(pieces, whole, model.quantized):
        raise UnsupportedModel("its blocks hand each other more than hidden states")
    return alone, caches[0]


def _in_steps(passes: Unbatched, strangers: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[LibraryCache]]:
    """A prefill of all but the last positions, then those, with the library's own mask and cache: by turns, as who
    remembers outside the cache would take one for the other."""
    caches = [passes.new_cache() for _ in strangers]
    parts = [
        [passes.run_alone(cache, hidden[:, part]) for cache, hidden in zip(caches, strangers, strict=True)]
        for part in (slice(None, -STEPS), slice(-STEPS, None))
    ]
    return [torch.cat(each, dim=1) for each in zip(*parts, strict=True)], caches


def _in_pieces(model: BaseModel, passes: Unbatched, hidden: torch.Tensor, joined: Sequence[Span]) -> torch.Tensor:
    """The span cut wherever it may be, one piece after the other, as if each were on a machine of its own."""
    span = model.span
    cuts = [place for place in range(span.first, span.last + 1) if not is_inside(place, joined)]
    for first, last in itertools.pairwise(cuts):
        model.narrow(Span(first, last))
        hidden = run_whole(passes, hidden)
    model.narrow(span)
    return hidden


def _step_by_step(
    passes: Batched, caches: Sequence[KeyValueCache], counts: Sequence[int], ends: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The last positions of each once more, one position of each in a pass: what a decode step is."""
    for cache, count in zip(caches, counts, strict=True):
        cache.truncate(count)
    steps = []
    for step in range(STEPS):
        lanes = [Lane(count + step, 1, cache) for count, cache in zip(counts, caches, strict=True)]
        steps.append(passes.run_row(lanes, torch.cat([end[:, step : step + 1] for end in ends], dim=1))[0])
    return [torch.cat([step[:, at : at + 1] for step in steps], dim=1) for at in range(len(ends))]


def _check_batched(
    model: BaseModel, attention: Attention, strangers: Sequence[torch.Tensor], alone: Sequence[torch.Tensor]
) -> tuple[Cost, ...]:
    """What a sequence takes in each block.

    Raises Unbatchable (or whatever the model raises) unless a shared row gives what each gets alone.
    """
    model.use_attention(attention)
    passes, blocks = Batched(model, attention), range(len(model.blocks))
    caches = [passes.new_cache() for _ in strangers]
    counts = [hidden.shape[1] - STEPS for hidden in strangers]
    lanes = [Lane(0, count, cache) for count, cache in zip(counts, caches, strict=True)]
    head, row = passes.run_row(lanes, torch.cat([hidden[:, :-STEPS] for hidden in strangers], dim=1))
    if row.calls != dict.fromkeys(blocks, 1):
        raise Unbatchable("its blocks do not call the attention interface exactly once each")
    lanes = [Lane(count, STEPS, cache) for count, cache in zip(counts, caches, strict=True)]
    tail, _ = passes.run_row(lanes, torch.cat([hidden[:, -STEPS:] for hidden in strangers], dim=1))
    singles = _step_by_step(passes, caches, counts, [hidden[:, -STEPS:] for hidden in strangers])
    heads, tails = torch.split(head, counts, 1), torch.split(tail, STEPS, 1)
    for part, ends, right in zip(heads, zip(tails, singles, strict=True), alone, strict=True):
        if not all(close(torch.cat([part, end], dim=1), right, model.quantized) for end in ends):
            raise Unbatchable("strangers in one row do not get what each gets alone")
    return tuple(Cost(OBJECT_BYTES, caches[0].position_bytes(block), rooms=True) for block in blocks)


def _check_stacked(
    model: BaseModel, attention: Attention, strangers: Sequence[torch.Tensor], alone: Sequence[torch.Tensor]
) -> tuple[tuple[Cost, ...], tuple[int, ...]]:
    """What a sequence takes in each block, and what snapshots of it do. Raises Unbatchable (or whatever the model
    raises) unless prompts one by one, then decode steps of all in one pass, and windows of them after they have gone
    back, give what each gets alone."""
    model.use_attention(attention)
    passes = Stacked(model, attention)
    caches = [passes.new_cache() for _ in strangers]
    counts = [hidden.shape[1] - STEPS for hidden in strangers]
    heads = _further(passes, caches, strangers, [0, 0], counts)
    windows = _further(passes, caches, strangers, counts, [STEPS, STEPS])
    for cache, count in zip(caches, counts, strict=True):
        cache.truncate(count + 1)
    again = _further(passes, caches, strangers, [count + 1 for count in counts], [STEPS - 1, STEPS - 1])
    for cache, count in zip(caches, counts, strict=True):
        cache.truncate(count)
    singles = _stacked_steps(passes, caches, strangers, counts)
    for right, head, *tails in zip(alone, heads, windows, singles, strict=True):
        if not all(close(torch.cat([head, tail], dim=1), right, model.quantized) for tail in tails):
            raise Unbatchable("steps of strangers in one pass do not get what each gets alone")
    for right, tail in zip(alone, again, strict=True):
        if not close(tail, right[:, -tail.shape[1] :], model.quantized):
            raise Unbatchable("its states do not go back")
    blocks = range(len(model.blocks))
    return tuple(caches[0].cost(block) for block in blocks), tuple(caches[0].snapshot_bytes(block) for block in blocks)


def _further(
    passes: Stacked,
    caches: Sequence[HybridCache],
    strangers: Sequence[torch.Tensor],
    starts: Sequence[int],
    counts: Sequence[int],
) -> list[torch.Tensor]:
    """`counts` positions of each from `starts` on, in one job."""
    lanes = [Lane(start, n, cache, rollback=True) for start, n, cache in zip(starts, counts, caches, strict=True)]
    rows = [hidden[:, start : start + n] for hidden, start, n in zip(strangers, starts, counts, strict=True)]
    return list(torch.split(passes.run(lanes, torch.cat(rows, dim=1)), list(counts), dim=1))


def _stacked_steps(
    passes: Stacked, caches: Sequence[HybridCache], strangers: Sequence[torch.Tensor], counts: Sequence[int]
) -> list[torch.Tensor]:
    """The last positions of each, one position of each in a pass. Raises Unbatchable."""
    states, blocks, steps = caches[0].states, range(caches[0].blocks), []
    for step in range(STEPS):
        lanes = [Lane(count + step, 1, cache) for count, cache in zip(counts, caches, strict=True)]
        ends = [hidden[:, count + step : count + step + 1] for hidden, count in zip(strangers, counts, strict=True)]
        output, row = passes.run_stacked(lanes, torch.cat(ends))
        if row.calls != {block: 1 for block in blocks if block not in states}:
            raise Unbatchable("its blocks do not call the attention interface exactly once each")
        steps.append(output)
    return [torch.cat([output[at : at + 1] for output in steps], dim=1) for at in range(len(caches))]
