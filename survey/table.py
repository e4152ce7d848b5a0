"""The page that says which architectures work, and reading it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import transformers

from survey.examine import Outcome

WORDS = {"batched": "exact, batched", "unbatched": "exact, one sequence a pass", "refused": "refused"}

HEAD = """# Architectures

What each causal language model of transformers does in a swarm. Written by
`python -m survey --write docs/architectures.md` (transformers {version}); do not edit.

Each type was made small, with windows, chunks and multipliers that matter, cut into three spans, and compared in
float32 with the library's own whole model, computed in another process: prefill, prefill in chunks, decode, two
sessions in one pass, and after a rollback.

- **exact, batched** ({batched}): the largest difference of a logit is below 2e-4 of the largest logit, and sessions
  share a forward pass.
- **exact, one sequence a pass** ({unbatched}): the same, but every sequence runs by itself, for the reason given.
- **refused** ({refused}): `UnsupportedModel` is raised when a server or a client loads it.

| type | in a swarm | why |
|---|---|---|
"""


def as_page(outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    counts = Counter(outcome.kind for outcome in outcomes)
    numbers = {kind: counts[kind] for kind in WORDS}
    rows = [f"| {o.model_type} | {WORDS.get(o.kind, o.kind)} | {_cell(o.why)} |" for o in outcomes]
    return HEAD.format(version=transformers.__version__, **numbers) + "\n".join(rows) + "\n"


def read_page(page: str) -> dict[str, str]:
    """What the page says of each type: batched, unbatched or refused."""
    kinds = {words: kind for kind, words in WORDS.items()}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    return {row[0]: kinds[row[1]] for row in rows if len(row) == 3 and row[1] in kinds}


def _cell(text: str) -> str:
    return text.replace("|", "/")
