"""The database of receipts: any order, several processes, and a SIGKILL at any write."""

from __future__ import annotations

import itertools
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.accounting.book import Book, read_proof
from swarm.accounting.chain import End, Pair, contradiction, drafted, end_of, follows
from swarm.accounting.entries import bytes_of, digest_of, read_entry, sign_entry
from swarm.errors import BookFailed
from swarm.wire import swarm_pb2 as pb
from tests.accounting.test_chain import BOB, CAROL, ME, SESSION, STEPS, chain

WRITER = """
import sys
from pathlib import Path
from swarm.accounting.book import Book
from tests.accounting.test_book import ME, BOB, write_one
book = Book(Path(sys.argv[1]))
print("open", flush=True)
while True:
    print(write_one(book).number, flush=True)
"""


def write_one(book: Book, work: int = 3) -> pb.Entry:
    """One more link of mine."""

    def sign(end: End, pair: Pair) -> pb.Entry:
        return sign_entry(ME, drafted(end, pair, BOB.key, work, SESSION))

    return book.append(ME.key, BOB.key, sign)


@settings(max_examples=40)
@given(STEPS, st.randoms(use_true_random=False))
def test_links_may_come_in_any_order_and_twice(steps: list[tuple[bool, object, int]], rng: random.Random) -> None:
    links = chain(steps)  # type: ignore[arg-type]
    shuffled = [*links, *rng.sample(links, 1)]
    rng.shuffle(shuffled)
    book = Book()
    book.add(shuffled)
    assert [read_entry(each) for each in book.links(ME.key, 0, 100)] == links
    assert book.end(ME.key) == end_of(links[-1])
    for other in (BOB, CAROL):
        mine = [(work if gives else 0, 0 if gives else work) for gives, who, work in steps if who is other]
        assert book.pair(ME.key, other.key) == Pair(sum(g for g, _ in mine), sum(t for _, t in mine))
    assert book.proofs() == [] and not book.cheats(ME.key)


@settings(max_examples=40)
@given(STEPS, st.data())
def test_two_pasts_are_a_proof_in_any_order(steps: list[tuple[bool, object, int]], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(steps) - 1))
    gives, other, work = steps[at]
    one = chain(steps)  # type: ignore[arg-type]
    two = chain([*steps[:at], (gives, other, work + 1), *steps[at + 1 :]])  # type: ignore[arg-type, list-item]
    book = Book()
    book.add(data.draw(st.permutations([*one, *two[at:]])))
    assert book.cheats(ME.key)
    ((first, second),) = book.proofs()
    proof = read_proof(first, second)
    assert proof is not None and contradiction(*proof)
    assert book.flows() == {}


def test_no_honest_pair_of_links_is_taken_for_a_proof() -> None:
    one, two = chain([(True, BOB, 5), (False, BOB, 7)])
    assert read_proof(bytes_of(one), bytes_of(two)) is None


def test_the_next_link_is_on_disk_before_anybody_sees_it(tmp_path: Path) -> None:
    file = tmp_path / "state" / "receipts.sqlite"
    one, two = Book(file), Book(file)
    numbers = [write_one(book).number for book in (one, two, one, two)]
    assert numbers == [1, 2, 3, 4] and file.stat().st_mode & 0o777 == 0o600
    assert two.pair(ME.key, BOB.key) == Pair(0, 12) == one.pair(ME.key, BOB.key)
    with pytest.raises(RuntimeError):
        one.append(ME.key, BOB.key, lambda end, pair: (_ for _ in ()).throw(RuntimeError("killed while signing")))
    assert write_one(one).number == 5
    one.close()
    one.close()
    with pytest.raises(BookFailed, match="closed"):
        one.end(ME.key)
    two.close()


def test_a_killed_process_leaves_a_whole_book(tmp_path: Path) -> None:
    """SIGKILL at random moments: nothing that was signed is lost, nothing is there twice, and the chain goes on."""
    file, rng, seen = tmp_path / "receipts.sqlite", random.Random(5), 0
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None and writer.stdout.readline() == "open\n"
        time.sleep(rng.uniform(0.001, 0.15))
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
        seen = max([seen, *told])
        book = Book(file)
        links = [read_entry(each) for each in book.links(ME.key, 1, 1 << 30)]
        assert [link.number for link in links] == list(range(1, len(links) + 1))
        assert seen <= len(links) and all(follows(end_of(a), b) for a, b in itertools.pairwise(links))
        assert book.pair(ME.key, BOB.key).taken == 3 * len(links) == book.end(ME.key).taken
        seen = len(links)
        book.close()
        db = sqlite3.connect(file)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        db.close()
    assert seen > 10


def test_old_links_go_but_for_the_last_of_each_pair_and_way(tmp_path: Path) -> None:
    file = tmp_path / "receipts.sqlite"
    book = Book(file)
    links = chain([(True, BOB, 1), (False, CAROL, 2), *[(False, BOB, 1)] * 20])
    book.add(links)
    book.close()
    book = Book(file, most=5)
    kept = [read_entry(each).number for each in book.links(ME.key, 1, 100)]
    assert kept == [1, 2, 18, 19, 20, 21, 22]
    assert book.end(ME.key) == end_of(links[-1]) and book.pair(ME.key, BOB.key) == Pair(1, 20)
    assert write_one(book).number == 23
    book.close()


def test_what_is_no_book_is_said(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database at all" * 100)
    with pytest.raises(BookFailed, match="broken"):
        Book(broken)
    newer = tmp_path / "newer.sqlite"
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(BookFailed, match="newer version"):
        Book(newer)
    with pytest.raises(BookFailed):
        Book(tmp_path)


def test_what_anybody_admits_counts_what_he_says_of_himself_does_not() -> None:
    book = Book()
    taken = sign_entry(ME, drafted(End(), Pair(), BOB.key, 8, SESSION))
    boast = sign_entry(CAROL, drafted(End(), Pair(), BOB.key, 10**15, SESSION, answers=digest_of(taken)))
    book.add([taken, boast])
    assert book.flows() == {(BOB.key, ME.key): 8}
    assert [(other, one, two) for other, one, two in book.others(BOB.key)] == sorted(
        [(ME.key, Pair(), Pair(0, 8)), (CAROL.key, Pair(), Pair(10**15, 0))]
    )
