"""Servers that compute wrong, one kind after the other, against a client of the simulated network.

Prints the table of docs/trust.md: what is noticed, when, and at what cost. Of four servers a span (six, where a Sybil
needs more) every route is drawn by chance; the wrong ones are at the middle span.
"""

from __future__ import annotations

import logging
import sys
from functools import partial

from swarm.config import ClientConfig
from swarm.testing import run
from tests.attackers.attacks import BLATANT, Attack, Cautious, Copier, Noisy, Skipper
from tests.attackers.campaign import Outcome, campaign, swarm

TEXTS, COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 30, 64


def noisy(share: float) -> Attack:
    """Noise of so much of what each block adds."""
    return partial(Noisy, noise=share)


KINDS: dict[str, tuple[Attack, int, int, int]] = {
    "nothing computed": (BLATANT["zeros"], 1, 4, 0),
    "numbers that are none": (BLATANT["no numbers"], 1, 4, 0),
    "an old output": (BLATANT["an old output"], 1, 4, 0),
    "a million times too large": (BLATANT["inflated"], 1, 4, 0),
    "a copy of the input": (Copier, 1, 4, 0),
    "leaves out a block": (Skipper, 1, 4, 0),
    "leaves it out when it decodes": (Cautious, 1, 4, 0),
    "noise of 10 %": (noisy(0.1), 1, 4, 0),
    "noise of 3 %": (noisy(0.03), 1, 4, 0),
    "noise of 1 %": (noisy(0.01), 1, 4, 0),
    "two that agree, of two operators": (Skipper, 2, 4, 0),
    "three of one operator that agree": (Skipper, 3, 6, 3),
}


def play(attack: Attack, count: int, replicas: int, operators: int, config: ClientConfig) -> tuple[Outcome, set[str]]:
    """One campaign; what came of it, and who was wrong."""
    places = range(replicas - count, replicas) if operators else range(count)
    attacks = {(1, index): attack for index in places}
    wrong = {f"1{index}" for index in places}

    async def main() -> Outcome:
        world = await swarm(replicas, attacks, operators=operators)
        outcome = await campaign(world, wrong, TEXTS, config, count=COUNT)
        await world.close()
        return outcome

    return run(main()), wrong


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    print(
        "| what it does | mode | found out | tokens it took part in | wrong tokens returned | honest accused | work |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, (attack, *numbers) in KINDS.items():
        base: Outcome | None = None
        for mode, config in (
            ("nothing", ClientConfig()),
            ("audits", ClientConfig(audits=True)),
            ("compare=2", ClientConfig(compare=2)),
        ):
            outcome, wrong = play(attack, *numbers, config)
            base = base or outcome
            found = f"{len(outcome.convicted & wrong)} of {len(wrong)}"
            work = outcome.computed / base.computed
            cells = (name, mode, found, outcome.exposed, outcome.wrong, len(outcome.convicted - wrong), f"{work:.2f}")
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
