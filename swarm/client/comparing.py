"""Whether two servers came to the same from the same inputs. Pure.

Never tokens: two that differ a little choose another word at the first near tie. What is compared is what the blocks
added to their inputs. Beside the norm of the hidden states the difference would get smaller with every block, and hide
everything. Massive coordinates, which are no function of the text, and the first position are left out.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from swarm.wire.codecs import INT8, Array, codec_of

MASSIVE = 0.999
"""Quantile of magnitudes above which numbers are left out."""
WINDOW = 8
"""Positions of which the median counts: who is wrong at some only is found, one odd position is not a wrong server."""
SINGLE = 4.0
"""A single position may be so many times further off than a window."""
PASSED, FAILED = 3.0, 8.0
"""So many times the usual noise."""
FLOORS = 1.5
"""So many times what the codecs are off."""


class Verdict(enum.Enum):
    """What a comparison says."""

    PASS = "pass"
    SUSPECT = "suspect"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`usual`: the median over all positions, relative to what the blocks added; `worst`: the worst window; `first`:
    the first position that is wrong, where there is one."""

    verdict: Verdict
    usual: float = 0.0
    worst: float = 0.0
    first: int | None = None


def errors(inputs: Array, ours: Array, theirs: Array) -> Array:
    """How far two outputs are from each other, relative to what they added to the inputs: [positions], of each
    [positions, values]. Infinite where something is no number."""
    if not len(ours):
        return np.zeros(0)
    with np.errstate(all="ignore"):
        one, other, given = (np.asarray(rows, np.float64) for rows in (ours, theirs, inputs))
        sizes = np.abs(one)
        ordinary = sizes <= np.quantile(sizes, MASSIVE)
        apart = np.where(ordinary, other - one, 0.0)
        added = np.where(ordinary, one - given, 0.0)
        off = np.sqrt(np.square(apart).sum(axis=1)) / np.maximum(np.sqrt(np.square(added).sum(axis=1)), 1e-30)
    result: Array = np.where(np.isfinite(off), off, np.inf)
    return result


def codec_floor(inputs: Array, outputs: Array, links: int) -> float:
    """What int8 on so many links is off together, relative to what blocks add: by the first outputs [positions, values]
    of these inputs. The errors of links are independent of each other, and add up as squares."""
    codec = codec_of(INT8, "float32", inputs.shape[1])
    few = np.ascontiguousarray(outputs[:WINDOW], np.float32)
    back = np.frombuffer(codec.decode(codec.encode(few.tobytes())), np.float32).reshape(few.shape)
    return float(np.median(errors(inputs[:WINDOW], few, back))) * float(np.sqrt(links))


def judge(
    off: Array, positions: Sequence[int], noise: float, floor: float = 0.0, *, also_first: bool = False
) -> Comparison:
    """What these errors at these positions say. `noise`: the usual error of honest servers like these; `floor`: what
    codecs add, both relative to what the blocks add; `also_first`: the first position counts, too."""
    counted = [index for index, position in enumerate(positions) if position > 0 or also_first]
    if not counted:
        return Comparison(Verdict.PASS)
    values = np.asarray(off)[counted]
    windows = [values[i : i + WINDOW] for i in range(max(len(values) - WINDOW + 1, 1))]
    worst = max(max(float(np.median(window)) for window in windows), float(values.max()) / SINGLE)
    passed, failed = (times * noise + FLOORS * floor for times in (PASSED, FAILED))
    usual = float(np.median(values))
    if worst <= passed:
        return Comparison(Verdict.PASS, usual, worst)
    wrong = next(positions[counted[i]] for i, value in enumerate(values) if value > passed)
    return Comparison(Verdict.FAIL if worst > failed else Verdict.SUSPECT, usual, worst, wrong)


def agreement(verdicts: Mapping[tuple[int, int], Verdict], lead: int = 1) -> tuple[tuple[int, int], list[int]] | None:
    """Of several that computed the same: two of the most that agree, and all whom both contradict.

    None: no two agree, or those that do are not by `lead` more than others who agree. `verdicts`: of each pair, the
    lower number first.
    """
    sides: dict[int, set[int]] = {each: {each} for pair in verdicts for each in pair}
    for (one, other), verdict in verdicts.items():
        if verdict is Verdict.PASS:
            sides[one].add(other)
            sides[other].add(one)
    most = max(sorted(sides), key=lambda each: len(sides[each]))
    rivals = [len(side - sides[most]) for each, side in sides.items() if each not in sides[most]]
    if len(sides[most]) < 2 or len(sides[most]) - max(rivals, default=0) < lead:
        return None
    one, other, *_ = sorted(sides[most])
    contradicted = (each for each in sides if each not in sides[most])
    against = [each for each in contradicted if _contradict(verdicts, each, (one, other))]
    return (one, other), sorted(against)


def _contradict(verdicts: Mapping[tuple[int, int], Verdict], one: int, others: tuple[int, int]) -> bool:
    return all(verdicts[min(one, other), max(one, other)] is Verdict.FAIL for other in others)
