"""What a server signed convicts it before anybody who has the weights, and nobody else by anything that is made up."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client.evidence import MAGIC, Evidence, read, written
from swarm.client.verdict import Answer, judged
from swarm.config import ClientConfig
from swarm.contract import Contract
from swarm.errors import BadEvidence
from swarm.jobs import compute
from swarm.net.commitments import sign
from swarm.net.identity import Identity
from swarm.server.manifest import Changes
from swarm.server.promises import Promises
from swarm.testing import World, run
from swarm.types import Segment, Span
from swarm.wire import merkle
from swarm.wire import swarm_pb2 as pb
from swarm.wire.promises import chained
from tests.attackers.attacks import Attack, Noisy, Skipper
from tests.attackers.campaign import SPANS, text_of
from tests.attackers.numbers import SIZE, NumbersRunner, arithmetic

SPAN = Span(3, 6)
IDENTITY = Identity(bytes(range(32)))
CONTRACT = Contract("model", SPAN, tuple(bytes(8) for _ in SPAN), hidden_size=SIZE, row_bytes=4 * SIZE)
POSITIONS, FIRST = 20, 5


def through(runner: NumbersRunner, inputs: bytes, sequence: int = 0) -> bytes:
    count = len(inputs) // (4 * SIZE)
    return bytes(compute(runner, SPAN, [Segment((b"s", sequence), 0, count)], inputs))


INPUTS = np.random.default_rng(3).standard_normal((POSITIONS, SIZE)).astype(np.float32).tobytes()
RIGHT = through(NumbersRunner(SPAN), INPUTS)[FIRST * 4 * SIZE :]
WRONG = through(Skipper(SPAN), INPUTS)[FIRST * 4 * SIZE :]


def rows(start: int, count: int, sequence: int = 0) -> list[pb.Rows]:
    return [pb.Rows(sequence=sequence, start=start, count=count, want=count)]


def commitments(outputs: bytes, *, identity: Identity = IDENTITY, contract: Contract = CONTRACT) -> list[pb.Commitment]:
    """What a session signs that gets all inputs at once and sends some of the outputs, in two windows."""

    async def main() -> list[pb.Commitment]:
        told: list[pb.Commitment] = []
        promises = Promises(identity, b"s" * 16, contract, told.append)
        every = rows(0, POSITIONS)
        chains = promises.computed((), every, promises.taken(every, memoryview(INPUTS)))
        half, size = (POSITIONS - FIRST) // 2, 4 * SIZE
        promises.gave(rows(FIRST, half), outputs[: half * size], chains)
        promises.close()
        promises.gave(rows(FIRST + half, POSITIONS - FIRST - half), outputs[half * size :], chains)
        promises.close()
        return told

    return run(main())


def file_of(outputs: bytes) -> bytes:
    return written("numbers", INPUTS, FIRST, outputs, commitments(outputs))


def answer(evidence: Evidence, runner: NumbersRunner | None = None) -> Answer:
    honest, runs = runner or NumbersRunner(SPAN), iter(range(9))
    return judged(evidence, lambda inputs: through(honest, inputs, next(runs))).answer


# ---- the tree and the chain ---------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.data())
def test_every_leaf_is_shown_to_be_in_the_tree_and_no_other(count: int, data: st.DataObject) -> None:
    leaves = [bytes([index, 1]) for index in range(count)]
    index = data.draw(st.integers(0, count - 1))
    siblings, top = merkle.path(leaves, index), merkle.root(leaves)
    assert merkle.climbed(leaves[index], index, count, siblings) == top
    assert merkle.climbed(b"other", index, count, siblings) != top
    other = data.draw(st.integers(0, count - 1))
    if other != index and len(merkle.path(leaves, other)) == len(siblings):
        assert merkle.climbed(leaves[index], other, count, siblings) != top


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.integers(0, 2), st.integers(1, 4)),
        st.tuples(st.just("fork"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("move"), st.integers(0, 2), st.integers(0, 2)),
        st.tuples(st.just("free"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("cut"), st.integers(0, 2), st.integers(0, 6)),
    ),
    max_size=25,
)


@given(OPERATIONS, st.integers(0, 99))
def test_what_is_promised_is_the_past_of_each_sequence_whatever_became_of_it(
    events: list[tuple[str, int, int]], seed: int
) -> None:
    """A server that forks, moves and cuts sequences never signs inputs that it did not have, or it would convict
    itself."""
    chance, pasts = random.Random(seed), dict[int, bytes]()
    contract = dataclasses.replace(CONTRACT, row_bytes=4)
    promises = Promises(IDENTITY, b"s" * 16, contract, lambda commitment: None)
    kinds = {"fork": pb.Operation.FORK, "move": pb.Operation.MOVE, "free": pb.Operation.FREE}
    for what, one, other in events:
        if what == "rows":
            hidden = chance.randbytes(4 * other)
            new = rows(len(pasts.get(one, b"")) // 4, other, one)
            promises.computed((), new, promises.taken(new, memoryview(hidden)))
            pasts[one] = pasts.get(one, b"") + hidden
        elif what == "cut":
            promises.change(Changes((), ((one, other),)))
            if one in pasts:
                pasts[one] = pasts[one][: 4 * other]
        elif one in pasts and (what == "free" or one != other):
            length = chance.randint(0, len(pasts[one]) // 4)
            promises.change(Changes((pb.Operation(kind=kinds[what], source=one, target=other, length=length),), ()))
            past = pasts[one] if what == "fork" else pasts.pop(one)
            if what != "free":
                pasts[other] = past[: 4 * length]
    for sequence, past in pasts.items():
        held = promises.chains(rows(0, len(past) // 4, sequence))
        expected = list(chained(b"s" * 16, past, 4))
        assert [held[sequence, position] for position in range(len(expected))] == expected


# ---- the file -----------------------------------------------------------------------------------------------------


def test_a_wrong_server_is_convicted_by_what_it_signed_and_a_right_one_is_not() -> None:
    evidence = read(file_of(WRONG))
    assert (evidence.peer_id, evidence.contract, evidence.positions) == (IDENTITY.peer_id, CONTRACT, range(5, 20))
    assert answer(evidence) is Answer.WRONG
    assert answer(read(file_of(RIGHT))) is Answer.RIGHT
    assert answer(read(file_of(RIGHT)), NumbersRunner(SPAN, noise=0.0005)) is Answer.RIGHT
    between = through(NumbersRunner(SPAN, noise=0.005), INPUTS)[FIRST * 4 * SIZE :]
    assert answer(read(file_of(between))) is Answer.UNDECIDED


def test_of_inputs_that_are_no_numbers_or_carry_rounding_far_nothing_is_said() -> None:
    evidence = read(file_of(WRONG))
    broken = dataclasses.replace(evidence, inputs=b"\xff" * len(evidence.inputs))
    assert answer(broken) is Answer.UNDECIDED

    class Chaotic(NumbersRunner):
        def forward(self, span: Span, segments: object, hidden: object) -> memoryview:
            noise = np.random.default_rng(hash(bytes(hidden)) & 0xFFFF)  # type: ignore[call-overload]
            return memoryview(noise.standard_normal((POSITIONS, SIZE)).astype(np.float32).tobytes())

    assert answer(evidence, Chaotic(SPAN)) is Answer.UNDECIDED


def test_what_another_signed_or_nobody_is_refused() -> None:
    other = Identity(bytes(32))
    honest, forged = commitments(RIGHT), commitments(WRONG, identity=other)
    for mixed in ([honest[0], forged[1]], [*honest, *forged], honest[:1], []):
        with pytest.raises(BadEvidence):
            written("numbers", INPUTS, FIRST, RIGHT, mixed)
    file = pb.Evidence.FromString(file_of(RIGHT)[len(MAGIC) :])
    for commitment in file.commitments:
        commitment.public_key = other.public_bytes
    with pytest.raises(BadEvidence, match="not signed"):
        read(MAGIC + file.SerializeToString())


def test_outputs_or_inputs_that_were_not_signed_are_refused() -> None:
    """Who accuses shows other outputs, another past, or less of it: the chain and the tree are over all of it."""
    good = pb.Evidence.FromString(file_of(RIGHT)[len(MAGIC) :])
    changes = []
    for name in ("outputs", "inputs"):
        changed = pb.Evidence.FromString(good.SerializeToString())
        setattr(changed, name, WRONG if name == "outputs" else INPUTS[4 * SIZE :] + INPUTS[: 4 * SIZE])
        changes.append(changed)
    shorter = pb.Evidence.FromString(good.SerializeToString())
    shorter.inputs, shorter.first = INPUTS[4 * SIZE :], FIRST - 1
    changes.append(shorter)
    for changed in changes:
        with pytest.raises(BadEvidence, match="is not what"):
            read(MAGIC + changed.SerializeToString())


def test_promises_of_what_nobody_can_compute_are_refused() -> None:
    for contract in (
        dataclasses.replace(CONTRACT, dtype="int3"),
        dataclasses.replace(CONTRACT, fingerprints=()),
        dataclasses.replace(CONTRACT, adapters=("ab",)),
        dataclasses.replace(CONTRACT, hidden_size=SIZE + 1),
    ):
        file = written("numbers", INPUTS, FIRST, RIGHT, commitments(RIGHT, contract=contract))
        with pytest.raises(BadEvidence):
            read(file)


FILE = file_of(RIGHT)


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing_that_is_shown(place: int, change: int) -> None:
    data = bytearray(FILE)
    data[place] ^= change
    try:
        found = read(bytes(data))
    except BadEvidence:
        return
    assert dataclasses.replace(found, model="numbers") == read(FILE)


@given(st.binary(max_size=300))
def test_any_bytes_are_evidence_or_refused(data: bytes) -> None:
    for given_ in (data, MAGIC + data):
        with pytest.raises(BadEvidence):
            read(given_)


@given(st.builds(pb.Promise, session=st.binary(max_size=17), leaves=st.integers(0, 9), root=st.binary(max_size=33)))
def test_any_promise_that_is_signed_is_refused_if_it_makes_no_sense(promise: pb.Promise) -> None:
    file = pb.Evidence(commitments=[sign(IDENTITY, promise)], inputs=bytes(8), outputs=bytes(8))
    with pytest.raises(BadEvidence):
        read(MAGIC + file.SerializeToString())


# ---- a swarm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [Skipper, Noisy])
@pytest.mark.parametrize("codec", ["raw", "int8"])
def test_whoever_is_found_out_has_signed_it(attack: Attack, codec: str, tmp_path: Path) -> None:
    config = ClientConfig(audits=True, evidence=str(tmp_path), codec=codec)
    identities = {(place, index): Identity(bytes([place, index] * 16)) for place in range(3) for index in range(3)}
    liar = identities[1, 0].peer_id

    async def main() -> None:
        world = World(arithmetic=arithmetic())
        for (place, index), identity in identities.items():
            span = SPANS[place]
            runner = attack(span) if (place, index) == (1, 0) else NumbersRunner(span)
            await world.add(identity.peer_id, span, runner=runner, identity=identity)
        view = None
        for seed in range(12):
            world.random.seed(seed)
            _, session, _ = await text_of(world, view, config, [3, 1, 4, 1, 5], 40)
            view = session.view
            if view.trust.integrity.convicted:
                break
        assert view is not None and view.trust.integrity.convicted == {liar}
        await world.close()

    run(main())
    (file,) = tmp_path.iterdir()
    evidence = read(file.read_bytes())
    assert evidence.peer_id == liar and evidence.contract.span == SPAN
    assert answer(evidence) is Answer.WRONG
    assert answer(evidence, attack(SPAN)) is not Answer.WRONG
