"""The page that says which architectures work, and reading it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import transformers

from survey.examine import Outcome

WORDS = {
    "batched": "exact, batched",
    "stacked": "exact, decode steps batched",
    "unbatched": "exact, one sequence a pass",
    "refused": "refused",
    "impossible": "not tried",
}

HEAD = """# Architectures

What each causal language model of transformers, and each of its models of images and text, does in a swarm. Written by
`python -m survey --write docs/architectures.md` (transformers {version}); do not edit.

Each type was made small, with windows, chunks and multipliers that matter, cut into three spans, and compared in
float32 with the library's own whole model, computed in another process: prefill, prefill in chunks, decode, two
sessions in one pass, and after a rollback.

- **exact, batched** ({batched}): the largest difference of a logit is below 2e-4 of the largest logit, and sessions
  share a forward pass.
- **exact, decode steps batched** ({stacked}): the same, but only steps of one position share a pass; prompts run one by
  one, for the reason given.
- **exact, one sequence a pass** ({unbatched}): the same, but every sequence runs by itself, for the reason given.
- **refused** ({refused}): `UnsupportedModel` is raised when a server or a client loads it.

Then a step of training: two texts through the three spans, with LoRA by peft beside the plain linear layers of the
blocks (but not beside experts in one tensor), in evaluation mode. **trained** says `LoRA` where the gradients of all
matrices and of the inputs are those of plain autograd over the whole model within 1e-5, or twice what that differs from
itself text by text ({lora} types), or the largest difference where it is a little more; `inputs` where only those of
the inputs were looked at ({inputs}); else why not. Where nothing is said, it was not looked at.

| type | in a swarm | why | trained |
|---|---|---|---|
"""


SEEING = "## Models of images and text"
SEEING_HEAD = """
{title}

`DistributedModelForImageTextToText`, for each type of the library's mapping: a question with an image, made small as
above, and an answer of several tokens, against the library's own whole model.

- **exact** ({exact}): as above; towers and projector are the library's own code at the client.
- **refused** ({refused}): `UnsupportedModel`, or `InvalidInput` with the image, before anything is computed.
- **not tried** ({impossible}): no small model, or no image for one, was made by the names of its entries.

| type | in a swarm | why |
|---|---|---|
"""


def as_page(outcomes: Sequence[Outcome], seeing: Sequence[Outcome] = ()) -> str:
    """The whole page; `seeing`: of models of images and text."""
    trained = Counter(outcome.trained.partition(",")[0] for outcome in outcomes)
    numbers = {**_numbers(outcomes), "lora": trained["LoRA"], "inputs": trained["inputs"]}
    page = HEAD.format(version=transformers.__version__, **numbers) + _rows(outcomes, trained=True)
    if not seeing:
        return page
    numbers = _numbers(seeing)
    exact = numbers["batched"] + numbers["stacked"] + numbers["unbatched"]
    return page + SEEING_HEAD.format(title=SEEING, exact=exact, **numbers) + _rows(seeing)


def _numbers(outcomes: Sequence[Outcome]) -> dict[str, int]:
    counts = Counter(outcome.kind for outcome in outcomes)
    return {kind: counts[kind] for kind in WORDS}


def _rows(outcomes: Sequence[Outcome], *, trained: bool = False) -> str:
    end = [f" {_cell(outcome.trained)} |" if trained else "" for outcome in outcomes]
    rows = [f"| {o.model_type} | {WORDS.get(o.kind, o.kind)} | {_cell(o.why)} |" for o in outcomes]
    rows = [row + cell for row, cell in zip(rows, end, strict=True)]
    return "\n".join(rows) + "\n"


def read_page(page: str, *, seeing: bool = False) -> dict[str, str]:
    """What the page says of each type: batched, stacked, unbatched, refused or impossible."""
    return {outcome.model_type: outcome.kind for outcome in read_outcomes(page, seeing=seeing)}


def read_outcomes(page: str, *, seeing: bool = False) -> list[Outcome]:
    """What `as_page` was given."""
    kinds = {words: kind for kind, words in WORDS.items()}
    text, _, images = page.partition(SEEING)
    page = images if seeing else text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    return [Outcome(row[0], kinds[row[1]], *row[2:]) for row in rows if len(row) in (3, 4) and row[1] in kinds]


def merged(page: str, outcomes: Sequence[Outcome], *, seeing: bool = False) -> list[Outcome]:
    """Outcomes, and what a page says of types that are not among them; of another version of the library, nothing."""
    if f"transformers {transformers.__version__})" not in page:
        return list(outcomes)
    every = {o.model_type: o for o in [*read_outcomes(page, seeing=seeing), *outcomes]}
    return [every[name] for name in sorted(every)]


def _cell(text: str) -> str:
    return text.replace("|", "/")
