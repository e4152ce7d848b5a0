"""What links of one account say of each other: which is the next, and which two cannot both be true. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.accounting.entries import bytes_of, digest_of
from swarm.wire import swarm_pb2 as pb


@dataclass(frozen=True, slots=True)
class End:
    """The end of a chain: number and digest of its last link, and what the account has given and taken by then."""

    number: int = 0
    digest: bytes = b""
    given: int = 0
    taken: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """What an account says that it gave to another, and took from it."""

    given: int = 0
    taken: int = 0


def end_of(entry: pb.Entry) -> End:
    """The chain up to this link."""
    return End(entry.number, digest_of(entry), entry.given, entry.taken)


def pair_of(entry: pb.Entry) -> Pair:
    """What it says of both."""
    return Pair(entry.pair_given, entry.pair_taken)


def drafted(end: End, pair: Pair, other: bytes, work: int, session: bytes, *, answers: bytes = b"") -> pb.Entry:
    """The next link, not signed yet: taken from `other`, or given, where it answers the other's."""
    given, taken = (work, 0) if answers else (0, work)
    return pb.Entry(
        other=other,
        number=end.number + 1,
        previous=end.digest,
        gives=bool(answers),
        work=work,
        given=end.given + given,
        taken=end.taken + taken,
        pair_given=pair.given + given,
        pair_taken=pair.taken + taken,
        session=session,
        answers=answers,
    )


def contradiction(one: pb.Entry, two: pb.Entry) -> str | None:
    """Why two links that one account has signed cannot both be true; None where they can.

    Two of them are a proof by themselves, for everybody: no honest account signs two links with one number, a link that
    does not follow the one before, or one by which it has given less to somebody, or taken less, than before.
    """
    if one.account != two.account:
        return None
    if one.number == two.number:
        return "two links with one number" if bytes_of(one) != bytes_of(two) else None
    first, second = (one, two) if one.number < two.number else (two, one)
    if first.number + 1 == second.number and not follows(end_of(first), second):
        return "a link that does not follow the one before"
    given, taken = (second.work, 0) if second.gives else (0, second.work)
    if second.given - given < first.given or second.taken - taken < first.taken:
        return "totals that do not grow"
    if first.other == second.other and (
        second.pair_given - given < first.pair_given or second.pair_taken - taken < first.pair_taken
    ):
        return "totals of a pair that do not grow"
    return None


def follows(end: End, entry: pb.Entry) -> bool:
    """Whether it is the next link of a chain that ends so."""
    given, taken = (entry.work, 0) if entry.gives else (0, entry.work)
    there = (entry.number - 1, entry.previous, entry.given - given, entry.taken - taken)
    return there == (end.number, end.digest, end.given, end.taken)
