"""Files that show what a server computed from which inputs, signed by the server itself. Pure.

Nobody's word is in them: whoever has the weights computes the same and sees (`verdict.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from swarm.contract import Contract
from swarm.errors import BadEvidence, ContractMismatch, MalformedFrame
from swarm.net.commitments import opened
from swarm.types import PeerId, printable
from swarm.wire import merkle
from swarm.wire import swarm_pb2 as pb
from swarm.wire.codecs import codec_of
from swarm.wire.messages import MAX_POSITION, MAX_TEXT, contract_of, require
from swarm.wire.promises import chained, leaf

MAGIC = b"swarm-evidence 1\n"
LARGEST = 256 << 20
"""Bytes of such a file."""
MOST_COMMITMENTS = 4096


@dataclass(frozen=True, slots=True)
class Evidence:
    """What server `peer_id` made of these inputs, as its signature shows: `outputs` of positions `first` to the last.

    `inputs`, `outputs`: rows of `contract.row_bytes`; `model`: a name that nobody vouches for; `time`: when it signed,
    by its own clock, in unix seconds.
    """

    peer_id: PeerId
    contract: Contract
    model: str
    inputs: bytes
    first: int
    outputs: bytes
    time: float

    @property
    def length(self) -> int:
        """Positions that went in."""
        return len(self.inputs) // self.contract.row_bytes

    @property
    def positions(self) -> range:
        """Those whose outputs are shown."""
        return range(self.first, self.length)


def written(model: str, inputs: bytes, first: int, outputs: bytes, commitments: Sequence[pb.Commitment]) -> bytes:
    """The file. `outputs`: of positions `first` to the last, which were sent in this order and are all that the
    commitments are about.

    Raises BadEvidence where the server has not signed that.
    """
    promises = [opened(commitment)[1] for commitment in commitments]
    rows = len(outputs)
    if not promises or not (size := promises[0].contract.row_bytes) or rows % size:
        raise BadEvidence("nothing is signed")
    session = promises[0].session
    chains = list(chained(session, inputs, size))[first:]
    leaves = [
        leaf(session, first + index, chain, outputs[index * size : (index + 1) * size])
        for index, chain in enumerate(chains)
    ]
    if sum(promise.leaves for promise in promises) != len(leaves) or rows != len(leaves) * size:
        raise BadEvidence("another number of positions is signed than was sent")
    told, begin = list[pb.Leaf](), 0
    for number, promise in enumerate(promises):
        window = leaves[begin : begin + promise.leaves]
        if merkle.root(window) != promise.root:
            raise BadEvidence("something else is signed than what was sent")
        told += [pb.Leaf(commitment=number, index=i, path=merkle.path(window, i)) for i in range(len(window))]
        begin += promise.leaves
    file = pb.Evidence(model=model, commitments=commitments, inputs=inputs, first=first, outputs=outputs, leaves=told)
    return MAGIC + file.SerializeToString()


def read(data: bytes) -> Evidence:
    """What a file shows. Raises BadEvidence where it is none, or the server has not signed what it says."""
    if len(data) > LARGEST:
        raise BadEvidence(f"{len(data)} bytes, above the limit of {LARGEST}")
    if not data.startswith(MAGIC):
        raise BadEvidence("this is no file of evidence")
    file = pb.Evidence()
    try:
        file.ParseFromString(data[len(MAGIC) :])
        return _checked(file)
    except (DecodeError, MalformedFrame, ContractMismatch) as error:
        raise BadEvidence(f"this evidence does not hold: {error}") from error


def _checked(file: pb.Evidence) -> Evidence:
    require(0 < len(file.commitments) <= MOST_COMMITMENTS, "no commitments, or too many")
    signed = [opened(commitment) for commitment in file.commitments]
    (who, first), promises = signed[0], [promise for _, promise in signed]
    of_one = all(peer == who and _same(promise, first) for peer, promise in signed)
    require(of_one, "commitments of several sessions")
    contract = _computable(contract_of(first.contract))
    size = contract.row_bytes
    length, rest = divmod(len(file.inputs), size)
    require(not rest and 0 < length <= MAX_POSITION, "inputs that are no whole number of positions")
    require(file.first < length and len(file.outputs) == (length - file.first) * size, "outputs of other positions")
    require(len(file.leaves) == length - file.first, "one leaf for each position")
    require(len(file.model) <= MAX_TEXT, "a name that is too long")
    chains = list(chained(first.session, file.inputs, size))[file.first :]
    for index, (chain, told) in enumerate(zip(chains, file.leaves, strict=True)):
        require(told.commitment < len(promises), "a leaf of no commitment")
        promise = promises[told.commitment]
        shown = leaf(first.session, file.first + index, chain, file.outputs[index * size : (index + 1) * size])
        found = merkle.climbed(shown, told.index, promise.leaves, told.path)
        require(found == promise.root, f"position {file.first + index} is not what {who} signed")
    when = max(promise.time for promise in promises)
    return Evidence(who, contract, printable(file.model), file.inputs, file.first, file.outputs, when)


def _same(one: pb.Promise, other: pb.Promise) -> bool:
    return one.session == other.session and one.contract == other.contract


def _computable(contract: Contract) -> Contract:
    """Raises MalformedFrame, ContractMismatch where nobody could compute it from a file."""
    require(bool(contract.fingerprints), "no fingerprints of the weights")
    require(not contract.adapters and not contract.places, "adapters or places, of which nothing is promised")
    require(0 < contract.hidden_size <= 1 << 20, "no hidden size")
    codec = codec_of("", contract.dtype, contract.hidden_size)
    require(codec.raw_bytes == contract.row_bytes, f"{contract.row_bytes} bytes of {contract.dtype} a position")
    return contract
