"""The database of receipts: links of chains, what pairs of accounts owe each other, and proofs of cheating.

SQLite with a write-ahead log: processes of one user share it, and it is whole whatever is killed at whatever moment.
A link is on disk before anybody sees it, so that no number is ever used twice.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from swarm.accounting.chain import End, Pair, contradiction, end_of, pair_of
from swarm.accounting.entries import bytes_of, digest_of, read_entry
from swarm.errors import BookFailed
from swarm.wire import swarm_pb2 as pb

PATIENCE = 10.0
"""Seconds for another process to finish its write."""
MOST = 200_000
"""Links that are kept: of older ones only the last of each pair, and the ends of chains."""
PRUNE_EVERY = 10_000
"""Writes."""
VERSION = 1

SCHEMA = """
CREATE TABLE IF NOT EXISTS links (
    account BLOB NOT NULL, number INTEGER NOT NULL, other BLOB NOT NULL, digest BLOB NOT NULL, gives INTEGER NOT NULL,
    session BLOB NOT NULL, entry BLOB NOT NULL, PRIMARY KEY (account, number));
CREATE INDEX IF NOT EXISTS of_pairs ON links (account, other, number);
CREATE TABLE IF NOT EXISTS proofs (account BLOB PRIMARY KEY, one BLOB NOT NULL, two BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS pairs (
    account BLOB NOT NULL, other BLOB NOT NULL, given INTEGER NOT NULL, taken INTEGER NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (account, other)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS of_others ON pairs (other);
"""


class Book:
    """In `file`; None: in memory. May be used from any thread. All methods raise BookFailed."""

    def __init__(self, file: Path | None = None, *, most: int = MOST) -> None:
        self._file = file
        self._most = most
        self._written = 0
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        with self._failing():
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            name = ":memory:" if file is None else str(file)
            self._db = sqlite3.connect(name, PATIENCE, isolation_level=None, check_same_thread=False)
            until = time.monotonic() + PATIENCE
            while not self._prepared(self._db, last=time.monotonic() > until):
                time.sleep(0.05)

    def _prepared(self, db: sqlite3.Connection, *, last: bool) -> bool:
        """False where another process is at it: a change of the journal's kind waits for nobody."""
        try:
            self._prepare(db)
        except sqlite3.OperationalError as error:
            if last or error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            if db.in_transaction:
                db.execute("ROLLBACK")
            return False
        return True

    def _prepare(self, db: sqlite3.Connection) -> None:
        if self._file is not None:
            self._file.chmod(0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise BookFailed(f"{self._file} was written by a newer version of swarm")
        for statement in SCHEMA.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
        _prune(db, self._most)
        db.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file. May be called twice."""
        with self._lock:
            if self._db is not None:
                self._db.close()
            self._db = None

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise BookFailed(f"the receipts in {self._file or 'memory'} cannot be used: {error}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._failing(), self._lock:
            if self._db is None:
                raise BookFailed("the book of receipts is closed")
            yield self._db

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written in the block, or nothing."""
        with self._reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                self._written += 1
                if self._written % PRUNE_EVERY == 0:
                    _prune(db, self._most)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    # ---- writing ----------------------------------------------------------------------------------------------

    def append(self, account: bytes, other: bytes, sign: Callable[[End, Pair], pb.Entry]) -> pb.Entry:
        """The next link of an account of this book: what `sign` makes of the end of its chain, and of what it says of
        `other` so far."""
        with self._writing() as db:
            return _append(db, account, other, sign)

    def answer(self, account: bytes, taken: pb.Entry, sign: Callable[[End, Pair], pb.Entry]) -> pb.Entry | None:
        """As `append`, after keeping what another has signed; None where that one cheats."""
        with self._writing() as db:
            _take(db, taken)
            return None if _cheats(db, taken.account) else _append(db, account, taken.account, sign)

    def add(self, entries: Iterable[pb.Entry]) -> None:
        """Keep what others have signed, and was checked. Links that contradict each other are kept as a proof."""
        with self._writing() as db:
            for entry in entries:
                _take(db, entry)

    # ---- reading ----------------------------------------------------------------------------------------------

    def end(self, account: bytes) -> End:
        """Of its chain, as far as it is known."""
        with self._reading() as db:
            return _end(db, account)

    def pair(self, account: bytes, other: bytes) -> Pair:
        """What `account` says that it gave to `other`, and took."""
        with self._reading() as db:
            return _pair(db, account, other)

    def links(self, account: bytes, first: int, most: int) -> list[bytes]:
        """Of its chain, from number `first` on."""
        query = "SELECT entry FROM links WHERE account = ? AND number >= ? ORDER BY number LIMIT ?"
        with self._reading() as db:
            return [entry for (entry,) in db.execute(query, (account, min(first, 1 << 62), most))]

    def last(self, account: bytes, other: bytes) -> bytes | None:
        """The last link in which `account` has taken from `other`."""
        query = "SELECT entry FROM links WHERE account = ? AND other = ? AND gives = 0 ORDER BY number DESC LIMIT 1"
        with self._reading() as db:
            found = db.execute(query, (account, other)).fetchone()
        return None if found is None else found[0]

    def others(self, account: bytes) -> list[tuple[bytes, Pair, Pair]]:
        """With whom an account has to do: what it says of each, and each of it."""
        query = "SELECT other FROM pairs WHERE account = ? UNION SELECT account FROM pairs WHERE other = ? ORDER BY 1"
        with self._reading() as db:
            found = [other for (other,) in db.execute(query, (account, account))]
            return [(other, _pair(db, account, other), _pair(db, other, account)) for other in found]

    def flows(self) -> dict[tuple[bytes, bytes], int]:
        """What (giver, taker) is, as takers have admitted; nothing of accounts that were found to cheat."""
        query = (
            "SELECT other, account, taken FROM pairs WHERE taken > 0"
            " AND account NOT IN (SELECT account FROM proofs) AND other NOT IN (SELECT account FROM proofs)"
        )
        with self._reading() as db:
            return {(giver, taker): taken for giver, taker, taken in db.execute(query)}

    def proofs(self, most: int = 1 << 30) -> list[tuple[bytes, bytes]]:
        """Pairs of links that cannot both be true, one for each account that has signed such."""
        with self._reading() as db:
            return list(db.execute("SELECT one, two FROM proofs ORDER BY account LIMIT ?", (most,)))

    def knows(self, account: bytes) -> bool:
        """Whether anything is kept of it."""
        query = "SELECT 1 FROM pairs WHERE account = ? OR other = ? LIMIT 1"
        with self._reading() as db:
            return db.execute(query, (account, account)).fetchone() is not None

    def cheats(self, account: bytes) -> bool:
        """Whether there is a proof against it."""
        with self._reading() as db:
            return _cheats(db, account)

    def __len__(self) -> int:
        with self._reading() as db:
            (count,) = db.execute("SELECT count(*) FROM links").fetchone()
            return int(count)


def _append(db: sqlite3.Connection, account: bytes, other: bytes, sign: Callable[[End, Pair], pb.Entry]) -> pb.Entry:
    entry = sign(_end(db, account), _pair(db, account, other))
    _insert(db, entry)
    return entry


def _cheats(db: sqlite3.Connection, account: bytes) -> bool:
    return db.execute("SELECT 1 FROM proofs WHERE account = ?", (account,)).fetchone() is not None


def _end(db: sqlite3.Connection, account: bytes) -> End:
    query = "SELECT entry FROM links WHERE account = ? ORDER BY number DESC LIMIT 1"
    found = db.execute(query, (account,)).fetchone()
    return End() if found is None else end_of(pb.Entry.FromString(found[0]))


def _pair(db: sqlite3.Connection, account: bytes, other: bytes) -> Pair:
    query = "SELECT given, taken FROM pairs WHERE account = ? AND other = ?"
    found = db.execute(query, (account, other)).fetchone()
    return Pair() if found is None else Pair(*found)


def _take(db: sqlite3.Connection, entry: pb.Entry) -> None:
    for known in _near(db, entry):
        if contradiction(known, entry) is not None:
            proof = (entry.account, bytes_of(known), bytes_of(entry))
            db.execute("INSERT OR IGNORE INTO proofs VALUES (?, ?, ?)", proof)
    _insert(db, entry)


def _near(db: sqlite3.Connection, entry: pb.Entry) -> list[pb.Entry]:
    """The links that would contradict it if any does: those before and behind it, of all and of the pair."""
    before = "SELECT entry FROM links WHERE account = ? {} AND number <= ? ORDER BY number DESC LIMIT 1"
    behind = "SELECT entry FROM links WHERE account = ? {} AND number > ? ORDER BY number LIMIT 1"
    found = []
    for query in (before, behind):
        found += db.execute(query.format(""), (entry.account, entry.number)).fetchall()
        found += db.execute(query.format("AND other = ?"), (entry.account, entry.other, entry.number)).fetchall()
    return [pb.Entry.FromString(each) for (each,) in found]


def _insert(db: sqlite3.Connection, entry: pb.Entry) -> None:
    row = (entry.account, entry.number, entry.other, digest_of(entry), entry.gives, entry.session, bytes_of(entry))
    db.execute("INSERT OR IGNORE INTO links VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    pair = pair_of(entry)
    db.execute(
        "INSERT INTO pairs VALUES (?, ?, ?, ?, ?) ON CONFLICT (account, other) DO UPDATE SET"
        " given = max(given, excluded.given), taken = max(taken, excluded.taken),"
        " number = max(number, excluded.number)",
        (entry.account, entry.other, pair.given, pair.taken, entry.number),
    )


def _prune(db: sqlite3.Connection, most: int) -> None:
    (count,) = db.execute("SELECT count(*) FROM links").fetchone()
    if count > most:
        db.execute(
            "DELETE FROM links WHERE rowid IN (SELECT rowid FROM links ORDER BY rowid LIMIT ?)"
            " AND (account, number) NOT IN (SELECT account, max(number) FROM links GROUP BY account, other, gives)",
            (count - most,),
        )


def read_proof(one: bytes, two: bytes) -> tuple[pb.Entry, pb.Entry] | None:
    """Two links, checked, if they prove that their account cheats. Raises MalformedFrame."""
    first, second = read_entry(one), read_entry(two)
    return (first, second) if contradiction(first, second) is not None else None
