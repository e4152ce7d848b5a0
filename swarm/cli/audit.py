"""swarm-audit: whether what a server signed is what its blocks compute."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarm.cli.command import Command, shown
from swarm.cli.model_options import folders
from swarm.config import SCHEMES
from swarm.errors import BadEvidence, ContractMismatch, InvalidInput
from swarm.files import read_bytes

if TYPE_CHECKING:
    from swarm.client.evidence import Evidence
    from swarm.client.verdict import Judgement
    from swarm.models.span.model import SpanModel

CODES = {"wrong": 0, "right": 3, "cannot decide": 4}
WORDS = {
    "wrong": "computed WRONG",
    "right": "computed right: this is evidence of nothing",
    "cannot decide": "may have computed right or wrong: that cannot be decided",
}


@click.command(cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--model",
    metavar="MODEL",
    shell_complete=folders,
    help="The folder or name of the model, where it goes by another one here than in FILE.",
)
@click.option("--revision", metavar="REVISION", help="Of the model: a branch, tag or commit.")
@click.option("--json", "json_", is_flag=True, help="One JSON document instead of text.")
def main(file: Path, model: str | None, revision: str | None, json_: bool) -> None:
    """Check FILE, by which somebody shows that a server computed wrong: compute the same with the model's own weights.

    The signature and the inputs are checked first; then the blocks that the server computed are loaded, and nothing
    else of the model.

    Exit codes: 0 the server computed wrong, 1 an error that is printed (also: FILE is broken or forged), 2 wrong usage,
    3 the server computed right, 4 that cannot be decided.
    """
    from swarm.client.evidence import LARGEST, read

    evidence = read(read_bytes(file, LARGEST))
    found = audit(evidence, model, revision)
    click.echo(json.dumps(as_json(evidence, found), indent=2) if json_ else as_text(evidence, found))
    sys.exit(CODES[found.answer.value])


def audit(evidence: Evidence, model: str | None = None, revision: str | None = None) -> Judgement:
    """Load what is needed, and compute. Raises ModelNotFound, BadCheckpoint, UnsupportedModel, InvalidInput."""
    from swarm.client.verdict import Answer, Judgement, judged
    from swarm.jobs import compute
    from swarm.types import Segment

    try:
        span = _loaded(evidence, model or evidence.model, revision)
    except ContractMismatch as error:
        return Judgement(Answer.UNDECIDED, f"these are other weights: {error.message}")
    runs = iter(range(1 << 16))

    def computed(rows: bytes) -> bytes:
        segment = Segment((b"audit", next(runs)), 0, evidence.length)
        return bytes(compute(span, evidence.contract.span, [segment], rows))

    return judged(evidence, computed)


def _loaded(evidence: Evidence, model: str, revision: str | None) -> SpanModel:
    """The blocks that the evidence is about. Raises ContractMismatch where the model's are others."""
    from swarm.models.loading.checkpoint import open_checkpoint
    from swarm.models.loading.cost import describe
    from swarm.models.span.load import load_span

    contract = evidence.contract
    scheme = next((name for name, known in SCHEMES.items() if known == contract.quantization), None)
    if scheme is None:
        raise BadEvidence(f"computed with {contract.quantization}, which this version does not know")
    if not model:
        raise InvalidInput("the file does not say which model it is about: pass --model")
    checkpoint = open_checkpoint(model, None, revision)
    key = describe(checkpoint, dtype=contract.dtype, quantization=scheme).info.key
    if key != contract.model:
        raise ContractMismatch(f"{model} is model {key[:12]}, and the evidence is about {contract.model[:12]}")
    loaded = load_span(checkpoint, contract.span, dtype=contract.dtype, quantization=scheme, progress=False)
    prints = zip(loaded.fingerprints, contract.fingerprints, strict=True)
    if not all(whole.startswith(told) for whole, told in prints):
        raise ContractMismatch(f"blocks {contract.span} of {model} are not those that the server said it has")
    if loaded.row_bytes != contract.row_bytes:
        raise ContractMismatch(f"{loaded.row_bytes} bytes a position, not {contract.row_bytes}")
    return loaded


def as_text(evidence: Evidence, found: Judgement) -> str:
    """For people."""
    contract, when = evidence.contract, datetime.fromtimestamp(evidence.time, UTC)
    lines = [
        f"{evidence.peer_id} {WORDS[found.answer.value]}",
        f"blocks {contract.span} of {shown(evidence.model) or contract.model[:12]} in {shown(contract.numbers)}",
        f"positions {evidence.first} to {evidence.length - 1} of one sequence, signed {when:%Y-%m-%d %H:%M:%S} UTC",
        found.words + (f"; from position {found.first} on" if found.first is not None else ""),
    ]
    return "\n".join(lines)


def as_json(evidence: Evidence, found: Judgement) -> dict[str, object]:
    """For programs."""
    contract = evidence.contract
    return {
        "peer": evidence.peer_id,
        "answer": found.answer.value,
        "why": found.words,
        "error": found.worst,
        "noise": found.noise,
        "first_wrong": found.first,
        "model": evidence.model,
        "key": contract.model,
        "first_block": contract.span.first,
        "last_block": contract.span.last,
        "numbers": contract.numbers,
        "positions": [evidence.first, evidence.length],
        "signed": evidence.time,
    }


if __name__ == "__main__":
    main()
