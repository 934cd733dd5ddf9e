"""The spool's SQLite file: one transaction for a group of writes, on disk when it returns. All of it blocks.

Used by one thread, the spool's. What it refuses to do: fail to start over a broken file. That is set aside, and a new
one begun. WAL with synchronous=FULL: a commit is in the log and synced before it counts (sqlite.org/wal.html). The size
is bounded: captures go first, the oldest before the newer, then results, then reports.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.cloud.spool_records import (
    Append,
    DamagedRecordError,
    DropInbox,
    Forget,
    Key,
    PutInbox,
    Write,
    pack_inbound,
    pack_outbound,
    unpack_inbound,
    unpack_outbound,
)
from agent.errors import ConfigError
from agent.messages import Inbound, Outbound

log = logging.getLogger(__name__)

VERSION = 1
# Each step of SQLite gives up the interpreter's lock, which a busy loop gives back only 5 ms later: few, large steps.
ROWS_A_STATEMENT = 500  # of five values each; SQLite takes 32,766 values since 3.32
RECORD_OVERHEAD_BYTES = 64  # a row's own columns and its part of the index, about
BATCH_BYTES = 1 << 20  # a batch read back ends with the record that passes this
SHRINK_TO = 0.95  # of the limit, so that a full spool does not look for the oldest at every commit
FIRST_TO_GO = ("capture", "result", "report")

_SCHEMA = f"""
CREATE TABLE records (seq INTEGER PRIMARY KEY, link TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
                      body BLOB NOT NULL);
CREATE INDEX records_by_link ON records (link, seq);
CREATE TABLE inbox (place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
PRAGMA user_version = {VERSION};
"""


@dataclass(slots=True)
class Outcome:
    """What became of a group: `dropped` for want of room; `lost`: all that was there before it, with a broken file."""

    dropped: Counter[Key] = field(default_factory=Counter)
    lost: bool = False


@dataclass(slots=True)
class Batch:
    """Records in order, and those that can no longer be read."""

    records: list[tuple[int, str, Outbound]] = field(default_factory=list)
    damaged: list[tuple[int, str]] = field(default_factory=list)


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the file is broken; its subclasses stand for anything else (locked, full, I/O)."""
    return type(error) is sqlite3.DatabaseError


class SpoolFile:
    """The file at `file`.

    Args:
        max_bytes: of all records together; the inbox is bounded by who fills it.
    """

    def __init__(self, file: Path, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self._bytes = 0
        self._handed: dict[str, int] = {}  # the highest seq that next_batch gave out, a link
        self._lost = False  # since the last outcome
        self._db: sqlite3.Connection | None = None

    def open(self) -> tuple[int, Counter[Key]]:
        """Opens or makes the file; a broken one is set aside.

        Returns:
            The highest seq in it, and how many records it holds by link and kind.

        Raises:
            ConfigError: SPOOL_UNAVAILABLE, the place cannot be written.
        """
        try:
            try:
                return self._open()
            except sqlite3.Error as error:
                if not is_corrupt(error):
                    raise
                self._set_aside(error)
                return self._open()
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise ConfigError(
                "SPOOL_UNAVAILABLE",
                f"The spool {self._file} cannot be opened: {error}.",
                "See that the state directory can be written, that its disk has room, and that no other agent uses it.",
            ) from error

    def _open(self) -> tuple[int, Counter[Key]]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unclean = Path(f"{self._file}-wal").exists()  # a clean end leaves no log behind
        db = sqlite3.connect(self._file, isolation_level=None, timeout=0.2)
        self._db = db
        # Exclusive: the state directory is one agent's anyhow, and it spares the shared-memory file.
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        for pragma in (f"journal_size_limit={4 << 20}", "cache_size=-512"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        if unclean:
            (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
        self._prepare(db)
        _sync_folder(self._file.parent)
        return self._take_stock(db)

    def _prepare(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and tables == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
        elif version != VERSION:
            raise sqlite3.DatabaseError(f"version {version} is not {VERSION}")

    def _take_stock(self, db: sqlite3.Connection) -> tuple[int, Counter[Key]]:
        counts: Counter[Key] = Counter()
        self._bytes = 0
        for link, kind, count, size in db.execute(
            "SELECT link, kind, count(*), sum(size) FROM records GROUP BY link, kind"
        ):
            counts[link, kind] = count
            self._bytes += size
        (last,) = db.execute("SELECT max(seq) FROM records").fetchone()
        return last or 0, counts

    def _set_aside(self, why: sqlite3.Error) -> None:
        """Renames the broken file, over one that was set aside before: what is kept for a look stays bounded."""
        self.close()
        aside = Path(f"{self._file}.corrupt")
        log.error("the spool %s is broken (%s); it is set aside as %s and a new one is begun", self._file, why, aside)
        for suffix in ("", "-wal", "-shm"):
            source = Path(f"{self._file}{suffix}")
            if source.exists():
                os.replace(source, f"{aside}{suffix}")
        _sync_folder(self._file.parent)

    @property
    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            self.open()
        assert self._db is not None
        return self._db

    def write(self, group: Sequence[Write]) -> Outcome:
        """Does all of `group` in one transaction. Not idempotent: a group that raised was not done at all.

        Raises:
            sqlite3.OperationalError: no room, or an I/O error: to be tried again.
        """
        try:
            return self._write(group)
        except sqlite3.Error as error:
            if not is_corrupt(error):
                raise
            self.start_afresh(error)
            return self._write(group)

    def start_afresh(self, error: sqlite3.Error) -> None:
        """Begins a new file after a read or a write met a broken one; the next outcome says that records were lost."""
        self._set_aside(error)
        self._handed.clear()
        self._lost = True
        self._open()

    def _write(self, group: Sequence[Write]) -> Outcome:
        db, before = self._open_db, self._bytes
        db.execute("BEGIN IMMEDIATE")
        try:
            outcome = Outcome()
            self._apply(db, group)
            if self._bytes > self._max_bytes:
                self._shrink(db, outcome.dropped)
            db.execute("COMMIT")
        except BaseException:
            self._bytes = before
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        outcome.lost, self._lost = self._lost, False
        return outcome

    def _apply(self, db: sqlite3.Connection, group: Sequence[Write]) -> None:
        """Appends, the inbox and what is to be forgotten touch no common row, but for the inbox its own order."""
        self._insert(db, [write for write in group if isinstance(write, Append)])
        for write in group:
            if isinstance(write, PutInbox):
                body = pack_inbound(write.message, write.targets, write.received_at)
                db.execute(
                    "INSERT INTO inbox (key, body) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET body = excluded.body",
                    (write.key, body),
                )
            elif isinstance(write, DropInbox):
                db.execute("DELETE FROM inbox WHERE key = ?", (write.key,))
        self._delete(db, [seq for write in group if isinstance(write, Forget) for seq in write.seqs])

    def _insert(self, db: sqlite3.Connection, appends: list[Append]) -> None:
        for at in range(0, len(appends), ROWS_A_STATEMENT):
            chunk = appends[at : at + ROWS_A_STATEMENT]
            values: list[object] = []
            for each in chunk:
                body = pack_outbound(each.out)
                size = len(body) + RECORD_OVERHEAD_BYTES
                self._bytes += size
                values += (each.seq, each.link, each.kind, size, body)
            rows = ",".join(["(?,?,?,?,?)"] * len(chunk))
            db.execute(f"INSERT INTO records (seq, link, kind, size, body) VALUES {rows}", values)

    def _delete(self, db: sqlite3.Connection, seqs: list[int]) -> None:
        for at in range(0, len(seqs), 500):  # SQLite before 3.32 takes 999 values
            chunk = seqs[at : at + 500]
            marks = ",".join("?" * len(chunk))
            (size,) = db.execute(f"SELECT sum(size) FROM records WHERE seq IN ({marks})", chunk).fetchone()
            db.execute(f"DELETE FROM records WHERE seq IN ({marks})", chunk)
            self._bytes -= size or 0

    def _shrink(self, db: sqlite3.Connection, dropped: Counter[Key]) -> None:
        goal = int(self._max_bytes * SHRINK_TO)
        for kind in FIRST_TO_GO:
            doomed, freed = [], 0
            rows = db.execute("SELECT seq, link, size FROM records WHERE kind = ? ORDER BY seq", (kind,))
            for seq, link, size in rows:
                if self._bytes - freed <= goal:
                    break
                if seq > self._handed.get(link, 0):  # what is on its way stays, so that nobody hands it over in vain
                    doomed.append(seq)
                    freed += size
                    dropped[link, kind] += 1
            rows.close()
            self._delete(db, doomed)

    def next_batch(self, link: str, after: int, limit: int) -> Batch:
        """Committed records of `link` beyond `after`, in order, at most `limit` and about a megabyte."""
        batch, size = Batch(), 0
        rows = self._open_db.execute(
            "SELECT seq, kind, body FROM records WHERE link = ? AND seq > ? ORDER BY seq LIMIT ?", (link, after, limit)
        )
        for seq, kind, body in rows:
            self._handed[link] = max(seq, self._handed.get(link, 0))
            try:
                batch.records.append((seq, kind, unpack_outbound(body)))
            except DamagedRecordError:
                batch.damaged.append((seq, kind))
            size += len(body)
            if size >= BATCH_BYTES:
                break
        rows.close()
        return batch

    def inbox(self) -> list[tuple[str, Inbound, list[str]]]:
        """The requests that were acknowledged and have no outcome yet, in order of receipt."""
        found = []
        for key, body in self._open_db.execute("SELECT key, body FROM inbox ORDER BY place").fetchall():
            try:
                message, targets = unpack_inbound(body, time.time(), time.monotonic())
                found.append((key, message, targets))
            except DamagedRecordError:
                log.error("request %s in the spool's inbox is damaged and cannot be run", key)
        return found

    def close(self) -> None:
        """Folds the log into the file; idempotent."""
        if self._db is not None:
            db, self._db = self._db, None
            db.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
