"""Servers that compute wrong, one kind after the other, against a client of the simulated network.

Prints the table of docs/trust.md: what is noticed, when, and at what cost. Of four servers a span (six, where a Sybil
needs more) every route is drawn by chance; the wrong ones are at the middle span.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from functools import partial

from swarm.config import ClientConfig
from swarm.testing import run
from tests.attackers.attacks import (
    BLATANT,
    Attack,
    Cautious,
    Coarse,
    Copier,
    Halved,
    Noisy,
    Skipper,
    Slow,
    Tuned,
    Wary,
)
from tests.attackers.campaign import Outcome, campaign, swarm

TEXTS, COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 30, 64
ONLY = sys.argv[2:]


@dataclass(frozen=True)
class Kind:
    """`count` attackers, beside or among `replicas` servers; `alike`: all of them in one block of addresses; `boast`:
    the milliseconds a block that they announce; `again`: whoever is found out comes back under another name; `tokens`:
    of a text."""

    attack: Attack
    count: int = 1
    replicas: int = 4
    alike: bool = False
    beside: bool = False
    boast: float | None = None
    again: bool = False
    tokens: int = COUNT


KINDS: dict[str, Kind] = {
    "nothing computed": Kind(BLATANT["zeros"]),
    "numbers that are none": Kind(BLATANT["no numbers"]),
    "an old output": Kind(BLATANT["an old output"]),
    "a million times too large": Kind(BLATANT["inflated"]),
    "a copy of the input": Kind(Copier),
    "leaves out a block": Kind(Skipper),
    "leaves it out when it decodes": Kind(Cautious),
    "leaves it out unless a session gets more than a few positions at once": Kind(Wary),
    "noise of 10 %": Kind(partial(Noisy, noise=0.1)),
    "noise of 3 %": Kind(partial(Noisy, noise=0.03)),
    "noise of 1 %": Kind(partial(Noisy, noise=0.01)),
    "8 bits undeclared": Kind(partial(Coarse, bits=8)),
    "4 bits undeclared": Kind(partial(Coarse, bits=4)),
    "bfloat16 undeclared": Kind(Halved),
    "another fine-tune, 10 % of the weights' norm": Kind(partial(Tuned, share=0.1)),
    "another fine-tune, 1 %": Kind(partial(Tuned, share=0.01)),
    "two that agree, of two operators": Kind(Skipper, 2),
    "three of one operator that agree": Kind(Skipper, 3, 6, alike=True),
    "a hundred of one operator beside four": Kind(Skipper, 100, alike=True, beside=True),
    "a hundred of a hundred operators beside four": Kind(Skipper, 100, beside=True),
    "a new identity whenever it is found out": Kind(Skipper, again=True),
    "ten times as slow, says it is the fastest": Kind(Slow, boast=0.5),
    "the same, texts of 512": Kind(Slow, boast=0.5, tokens=512),
}


def play(kind: Kind, config: ClientConfig) -> tuple[Outcome, set[str]]:
    """One campaign; what came of it, and who was wrong at the beginning."""
    first = kind.replicas if kind.beside else kind.replicas - kind.count if kind.alike else 0
    places = range(first, first + kind.count)
    wrong = {f"1{index}" for index in places}

    async def main() -> Outcome:
        attacks = {(1, index): kind.attack for index in places}
        world = await swarm(kind.replicas, attacks, operators=kind.count if kind.alike else 0)
        options = {"boast": kind.boast, "whitewash": kind.attack if kind.again else None}
        outcome = await campaign(world, wrong, TEXTS, config, count=kind.tokens, **options)
        await world.close()
        return outcome

    return run(main()), wrong


MODES = {"nothing": ClientConfig(), "audits": ClientConfig(audits=True), "compare=2": ClientConfig(compare=2)}


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)
    columns = "what it does", "mode", "found out", "tokens it took part in", "wrong tokens returned", "honest accused"
    print("|", " | ".join((*columns, "work", "seconds of all texts")), "|")
    print("|---" * (len(columns) + 2) + "|")
    for name, kind in KINDS.items():
        if ONLY and not any(word in name for word in ONLY):
            continue
        base: Outcome | None = None
        for mode, config in MODES.items():
            outcome, _ = play(kind, config)
            base = base or outcome
            found = f"{len(outcome.convicted & outcome.attackers)} of {len(outcome.attackers)}"
            work, accused = outcome.computed / base.computed, len(outcome.convicted - outcome.attackers)
            cells = name, mode, found, outcome.exposed, outcome.wrong, accused, f"{work:.2f}", f"{outcome.seconds:.1f}"
            print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
