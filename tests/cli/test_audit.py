"""What swarm-audit says of a file, and how it ends."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from swarm.cli.audit import main
from swarm.client.evidence import written
from swarm.contract import UNQUANTIZED, Contract
from swarm.jobs import compute
from swarm.models.loading.cost import describe
from swarm.models.span.load import load_span
from swarm.net.identity import Identity
from swarm.server.promises import Promises
from swarm.testing import run
from swarm.types import Segment, Span
from swarm.wire import swarm_pb2 as pb

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
SPAN, COUNT, FIRST = Span(3, 5), 14, 6
IDENTITY = Identity(bytes(range(32)))


@pytest.fixture(scope="module")
def honest() -> tuple[Contract, bytes, bytes]:
    """The contract of two blocks, hidden states, and what the blocks make of them."""
    span, info = load_span(MODEL, SPAN, dtype="float32", progress=False), describe(MODEL).info
    contract = dataclasses.replace(
        info.contract("float32", span.row_bytes, UNQUANTIZED).on(SPAN), fingerprints=span.fingerprints
    )
    inputs = np.random.default_rng(5).standard_normal((COUNT, span.hidden_size)).astype(np.float32).tobytes()
    return contract, inputs, bytes(compute(span, SPAN, [Segment((b"s", 0), 0, COUNT)], inputs))


def file_of(path: Path, contract: Contract, inputs: bytes, outputs: bytes) -> str:
    """What a server signed that sent these outputs."""

    async def main() -> list[pb.Commitment]:
        told: list[pb.Commitment] = []
        promises = Promises(IDENTITY, b"s" * 16, contract, told.append)
        rows = [pb.Rows(sequence=0, start=0, count=COUNT)]
        chains = promises.computed((), rows, promises.taken(rows, memoryview(inputs)))
        promises.gave([pb.Rows(sequence=0, start=FIRST, count=COUNT - FIRST)], outputs, chains)
        promises.close()
        return told

    path.write_bytes(written(str(MODEL), inputs, FIRST, outputs, run(main())))
    return str(path)


@pytest.mark.parametrize(
    ("share", "code", "words"),
    [(1.0, 3, "computed right"), (0.67, 0, "computed WRONG"), (0.995, 4, "cannot be decided")],
)
def test_what_a_server_signed_is_computed_again(
    honest: tuple[Contract, bytes, bytes], share: float, code: int, words: str, tmp_path: Path
) -> None:
    contract, inputs, outputs = honest
    came, made = (np.frombuffer(each, np.float32) for each in (inputs, outputs))
    sent = (came + np.float32(share) * (made - came))[FIRST * contract.hidden_size :].tobytes()
    file = file_of(tmp_path / "file", contract, inputs, sent)
    done = CliRunner().invoke(main, [file])
    assert done.exit_code == code, done.output
    assert IDENTITY.peer_id in done.output and words in done.output and "positions 6 to 13" in done.output
    if share == 0.67:
        told = json.loads(CliRunner().invoke(main, [file, "--json"]).output)
        assert (told["answer"], told["first_block"], told["first_wrong"]) == ("wrong", 3, FIRST)
        assert told["error"] == pytest.approx(0.33, abs=0.02)


def test_of_other_weights_nothing_can_be_said(honest: tuple[Contract, bytes, bytes], tmp_path: Path) -> None:
    contract, inputs, outputs = honest
    sent = outputs[FIRST * contract.row_bytes :]
    for other, words in (
        (dataclasses.replace(contract, fingerprints=tuple(bytes(8) for _ in SPAN)), "not those"),
        (dataclasses.replace(contract, model="another"), "is model"),
    ):
        done = CliRunner().invoke(main, [file_of(tmp_path / "file", other, inputs, sent)])
        assert done.exit_code == 4 and "other weights" in done.output and words in done.output


def test_what_is_no_evidence_is_an_error_of_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for data in (b"", b"swarm-evidence 1\n", bytes(100)):
        file.write_bytes(data)
        done = CliRunner().invoke(main, [str(file)])
        assert done.exit_code == 1
