"""Shares of works to passes of the runner, and outputs back to their works. Called where the runner lives."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from swarm.errors import ComputeFailed, Gap
from swarm.jobs import Afresh, Backward, Copy, Count, Forward, Reach, apply
from swarm.server.runner import Runner
from swarm.server.work import Gradients, Passed, Result, Share, Work

log = logging.getLogger(__name__)


def compute(runner: Runner, shares: Sequence[Share]) -> list[tuple[Share, ComputeFailed | Gap | None]]:
    """One pass for all; when it fails, each alone, so that one session's trouble stays its own."""
    try:
        _run(runner, shares)
        return [(share, None) for share in shares]
    except Exception as error:
        if len(shares) == 1:
            return [(shares[0], _broken(shares[0].work, error))]
        log.warning("a pass over %d sessions failed (%r); each runs alone", len(shares), error)
        return [_compute_alone(runner, share) for share in shares]


def _compute_alone(runner: Runner, share: Share) -> tuple[Share, ComputeFailed | Gap | None]:
    try:
        # The failed pass may have appended to some blocks' caches: back to where the step began.
        for segment in share.segments:
            runner.truncate(segment.sequence, segment.start)
        _run(runner, [share])
        return share, None
    except Exception as error:
        return share, _broken(share.work, error)


def _broken(work: Work, error: Exception) -> ComputeFailed | Gap:
    work.broken, work.running = True, None
    if isinstance(error, Gap):
        return error
    log.error("a step of session %s failed", work.session.hex()[:8], exc_info=error)
    return ComputeFailed(f"the engine failed: {type(error).__name__}: {error}")


def _run(runner: Runner, shares: Sequence[Share]) -> None:
    """What comes before the rows of each share, then what is asked for. Only forward jobs come several at a time."""
    for share in shares:
        if share.work.broken:
            raise RuntimeError("an earlier part of this step failed")
        _prepare(runner, share.work)
    work = shares[0].work
    match work.job:
        case Forward():
            _forward(runner, shares)
        case Afresh() | Backward():
            _advance(runner, shares[0])
        case Count():
            work.result = runner.bytes_held()
        case Reach(sequences):
            work.result = {sequence: runner.reach(sequence) for sequence in sequences}


def _advance(runner: Runner, share: Share) -> None:
    """Some more slices of a job: as many of them as of its positions, and in the end all that are left."""
    work = share.work
    job = work.job
    assert isinstance(job, Afresh | Backward)
    if not work.taken:
        work.running = runner.slices(_put(runner, job))
    work.taken = share.last
    while work.running is not None and (share.ends or work.slices * job.positions < work.parts * share.last):
        try:
            next(work.running)
            work.slices += 1
        except StopIteration as over:
            work.running, work.result = None, _result(runner, job, over.value)


def _put(runner: Runner, job: Afresh[memoryview] | Backward[memoryview]) -> Any:
    inputs = runner.put(job.inputs, job.positions)
    if isinstance(job, Afresh):
        return replace(job, inputs=inputs)
    return replace(job, inputs=inputs, gradients=runner.put(job.gradients, job.positions))


def _result(runner: Runner, job: Afresh[memoryview] | Backward[memoryview], found: Any) -> Result:
    if isinstance(job, Afresh) and job.room:
        rows, activations = found
        return Passed(runner.get(rows), activations)
    if isinstance(job, Backward) and job.adapter is not None:
        rows, of_adapter = found
        return Gradients(runner.get(rows), of_adapter)
    return runner.get(found)


def _prepare(runner: Runner, work: Work) -> None:
    """Change the caches as a work wants it; once, also when the pass is repeated."""
    changes, work.before = work.before, ()
    try:
        apply(changes, runner)
        if isinstance(work.job, Copy):
            apply(work.job.changes, runner)
    except Exception:
        work.broken = True
        raise


def _forward(runner: Runner, shares: Sequence[Share]) -> None:
    job = shares[0].work.job
    assert isinstance(job, Forward)
    segments = [segment for share in shares for segment in share.segments]
    if segments:
        _distribute(runner, shares, runner.run(Forward(job.span, segments, _gather(runner, shares))))


def _gather(runner: Runner, shares: Sequence[Share]) -> Any:
    """The rows of all shares, one behind the other, where they are computed. What is new comes there at once."""
    fresh = [share.work for share in shares if share.work.rows is None]
    if fresh:
        inputs = [work.job.rows for work in fresh if isinstance(work.job, Forward)]
        count = sum(work.job.positions for work in fresh)
        rows = runner.put(inputs[0] if len(inputs) == 1 else b"".join(inputs), count)
        begin = 0
        for work in fresh:
            end = begin + work.job.positions
            work.rows = rows[begin:end]
            begin = end
        if sum(share.positions for share in shares) == count and len(fresh) == len(shares):
            return rows
    parts = [share.work.rows[share.first : share.last] for share in shares]
    return parts[0] if len(parts) == 1 else runner.join(parts)


def _distribute(runner: Runner, shares: Sequence[Share], output: Any) -> None:
    """To each work its rows of `output`; to those that end, the bytes of all that they got."""
    single = all(share.ends and not share.work.outputs for share in shares)
    results = _together(runner, shares, output) if single else _apart(runner, shares, output)
    for share, (parts, result) in zip(shares, results, strict=True):
        share.work.outputs, share.work.result = parts, result
        share.work.taken = share.last


def _together(runner: Runner, shares: Sequence[Share], output: Any) -> list[tuple[list[Any], memoryview]]:
    """All outputs leave in one piece, to be cut as bytes."""
    whole = runner.get(output)
    size, begin, results = len(whole) // len(output), 0, []
    for share in shares:
        end = begin + share.positions
        results.append((list[Any](), whole[begin * size : end * size]))
        begin = end
    return results


def _apart(runner: Runner, shares: Sequence[Share], output: Any) -> list[tuple[list[Any], memoryview]]:
    """Outputs of works that go on stay where they are."""
    begin, results = 0, []
    for share in shares:
        end = begin + share.positions
        parts = [*share.work.outputs, output[begin:end]]
        whole = runner.get(parts[0] if len(parts) == 1 else runner.join(parts)) if share.ends else memoryview(b"")
        results.append((parts, whole))
        begin = end
    return results
