"""Whether what a server signed is what its blocks make of their inputs. Pure, but for who computes them.

Inputs can be chosen by who accuses. So it is looked at first how far these blocks carry apart two inputs that differ by
no more than numbers of this kind are rounded: where that is as much as a wrong server's error, nothing can be said.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from swarm.client.comparing import FAILED, PASSED, Verdict, errors, judge
from swarm.client.evidence import Evidence
from swarm.client.integrity import FIRST_NOISE, MOST_NOISE, least_noise
from swarm.wire.codecs import Array, rows_of, values_of

ROUNDED = {"float32": 2.0**-20, "bfloat16": 2.0**-9, "float16": 2.0**-12}
"""By how much, relative to each number, an input is shaken: as rounding would; in float32 as other kernels do."""


class Answer(enum.Enum):
    """What a file comes to."""

    WRONG = "wrong"
    RIGHT = "right"
    UNDECIDED = "cannot decide"


@dataclass(frozen=True, slots=True)
class Judgement:
    """`worst`: how far off it is, relative to what the blocks add, in the worst window; `noise`: what right servers may
    be apart on these inputs; `first`: the first position that is wrong."""

    answer: Answer
    words: str
    worst: float = 0.0
    noise: float = 0.0
    first: int | None = None


def judged(evidence: Evidence, compute: Callable[[bytes], bytes]) -> Judgement:
    """What was signed, held against what `compute`, the blocks of the contract, makes of all the inputs."""
    contract = evidence.contract
    inputs = _values(evidence, evidence.inputs)
    if not np.isfinite(inputs).all():
        return Judgement(Answer.UNDECIDED, "there are inputs that are no numbers")
    shown = slice(evidence.first, None)
    ours = _values(evidence, compute(evidence.inputs))[shown]
    shaken = _values(evidence, compute(_shaken(evidence, inputs)))[shown]
    own = judge(errors(inputs[shown], ours, shaken), evidence.positions, 1.0).worst
    least = least_noise(contract.dtype) if contract.dtype == "float32" else FIRST_NOISE
    noise = max(own, least)
    if not noise <= MOST_NOISE:
        text = f"these inputs carry rounding to {own:.1%} of what the blocks add: right servers would differ, too"
        return Judgement(Answer.UNDECIDED, text, noise=noise)
    off = errors(inputs[shown], ours, _values(evidence, evidence.outputs))
    found = judge(off, evidence.positions, noise)
    told = f"{found.worst:.3%} off, relative to what the blocks add"
    if evidence.length - max(evidence.first, 1) <= 0:
        return Judgement(Answer.UNDECIDED, "the first position alone says nothing", noise=noise)
    if found.verdict is Verdict.PASS:
        return Judgement(Answer.RIGHT, f"{told}; {PASSED * noise:.2%} is noise", found.worst, noise)
    if found.verdict is Verdict.SUSPECT:
        between = f"between noise ({PASSED * noise:.2%}) and wrong ({FAILED * noise:.2%})"
        return Judgement(Answer.UNDECIDED, f"{told}: {between}", found.worst, noise)
    return Judgement(Answer.WRONG, f"{told}; {FAILED * noise:.2%} is wrong", found.worst, noise, found.first)


def _values(evidence: Evidence, rows: bytes) -> Array:
    values = values_of(rows, evidence.contract.dtype, evidence.contract.row_bytes)
    assert values is not None, "evidence of numbers that are not known is refused when it is read"
    return values


def _shaken(evidence: Evidence, inputs: Array) -> bytes:
    """The inputs, each number by chance a little larger or smaller."""
    contract = evidence.contract
    signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0], np.float32), inputs.shape)
    moved = inputs * (1.0 + np.float32(ROUNDED[contract.dtype]) * signs)
    return rows_of(moved, contract.dtype)
