"""The spool's SQLite file: one transaction for a group of writes, on disk when it returns. All of it blocks.

Used by one thread, the spool's. What it refuses to do: fail to start over a broken file (that is set aside, and a new
one begun), and grow beyond its limits or into what must stay free on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from agent.cloud import spool_room as room
from agent.cloud.spool_blobs import Blobs
from agent.cloud.spool_clock import AgeClock, unpacked
from agent.cloud.spool_dead import Grave
from agent.cloud.spool_layout import connect, is_corrupt, set_aside, sync_folder
from agent.cloud.spool_reading import Batch, Reading
from agent.cloud.spool_records import (
    Append,
    Bury,
    DeadLetter,
    DropInbox,
    Exhume,
    Forget,
    Key,
    Lose,
    Outcome,
    PutInbox,
    Tried,
    Write,
    pack_inbound,
)
from agent.cloud.spool_reserve import Reserve
from agent.cloud.spool_rows import Rows
from agent.cloud.spool_stock import Stock
from agent.errors import ConfigError
from agent.messages import Inbound
from agent.settings import SpoolLimits
from agent.values import dataclass

log = logging.getLogger(__name__)

ANCHOR_S = 60.0  # how often the clocks are noted
PROBE_BYTES = 1 << 20  # free on a disk that counts as not full
VACUUM_PAGES = 256  # given back to the disk at a time, 1 MiB
VACUUM_FROM = 1024  # free pages below this are kept for what comes next


@dataclass(slots=True)
class Opened:
    """What was found: the highest seq, what there is and what was lost over all runs, and how many dead letters."""

    last_seq: int
    counts: Counter[Key]
    losses: Counter[Key]
    bytes: dict[Key, int]


class SpoolFile:
    """The file at `file`, with `file`.files beside it for large records."""

    def __init__(self, file: Path, limits: SpoolLimits, clock: AgeClock) -> None:
        self._file = file
        self._limits = limits
        self._clock = clock
        self._stock = Stock()
        self._blobs = Blobs(Path(f"{file}.files"))
        self._grave = Grave(self._stock, limits.dead)
        self._reserve = Reserve(Path(f"{file}.reserve"), limits)
        self._rows = Rows(self._stock, self._blobs, limits.file_bytes)
        self._reading = Reading(limits, clock, self._blobs)
        self._lost = False  # since the last outcome
        self._anchored = 0.0
        self._epoch = ""
        self._db: sqlite3.Connection | None = None

    # -- opening ------------------------------------------------------------------------------------------------------

    def open(self) -> Opened:
        """Opens or makes the file; a broken one is set aside.

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
            self._drop_connection()
            raise ConfigError(
                "SPOOL_UNAVAILABLE",
                f"The spool {self._file} cannot be opened: {error}.",
                "See that the state directory can be written, that its disk has room, and that no other agent uses it.",
            ) from error

    def _open(self) -> Opened:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._reserve.give_way_if_full()
        db = self._db = connect(self._file)
        sync_folder(self._file.parent)
        meta = dict(db.execute("SELECT name, value FROM meta"))
        self._epoch = meta["epoch"]
        self._clock.resume(unpacked(meta["clock"]) if "clock" in meta else None)
        self._stock.load(db)
        orphans = self._blobs.remove_orphans(lambda name: self._names(db, name))
        if orphans:
            log.info("%d files beside the spool belonged to no record and are removed", orphans)
        self._reserve.take()
        (last,) = db.execute(
            "SELECT max(a) FROM (SELECT max(seq) a FROM records UNION SELECT max(seq) FROM dead)"
        ).fetchone()
        counts = Counter({key: count for key, count in self._stock.counts.items() if count})
        return Opened(last or 0, counts, Counter(self._stock.losses), dict(self._stock.bytes))

    def _names(self, db: sqlite3.Connection, name: str) -> bool:
        epoch, _, number = name.partition(".")[0].partition("-")
        if epoch != self._epoch or not number.isdigit():
            return False
        rows = db.execute(
            "SELECT 1 FROM records WHERE seq = ? AND file = ? UNION SELECT 1 FROM dead WHERE seq = ? AND file = ?",
            (int(number), name, int(number), name),
        ).fetchall()
        return bool(rows)

    def _set_aside(self, why: sqlite3.Error) -> None:
        self._drop_connection()
        aside = set_aside(self._file)
        log.error("the spool %s is broken (%s); it is set aside as %s and a new one is begun", self._file, why, aside)

    @property
    def _open_db(self) -> sqlite3.Connection:
        if self._db is None:
            self.open()
        assert self._db is not None
        return self._db

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, group: Sequence[Write]) -> Outcome:
        """Does all of `group` in one transaction. Not idempotent: a group that raised was not done at all.

        Raises:
            sqlite3.OperationalError, OSError: no room, or an I/O error: to be tried again.
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
        self._reading.clear()
        self._lost = True
        self._open()

    def _write(self, group: Sequence[Write]) -> Outcome:
        db = self._open_db
        written: list[str] = []
        db.execute("BEGIN IMMEDIATE")
        try:
            outcome = Outcome()
            before = self._stock.total_bytes
            gone = self._apply(db, group, outcome, written)
            gone += self._make_room(db, outcome, before)
            self._note_the_clocks(db)
            self._stock.save(db)
            if written:
                self._blobs.sync()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._blobs.remove(written)
            self._stock.load(db)
            raise
        self._blobs.remove(gone)
        outcome.lost, self._lost = self._lost, False
        outcome.bytes, outcome.dead = dict(self._stock.bytes), self._grave.count
        return outcome

    def _apply(self, db: sqlite3.Connection, group: Sequence[Write], outcome: Outcome, written: list[str]) -> list[str]:
        """Appends, the inbox and what is to be forgotten touch no common row, but for the inbox its own order.

        Returns:
            The files of what is gone; `written` gets those of what is new.
        """
        appends = [write for write in group if isinstance(write, Append)]
        self._rows.insert(db, self._epoch, appends, written)
        self._reading.in_hand.update(each.seq for each in appends if each.sent)
        forgotten: dict[str | None, list[int]] = {}
        for write in group:
            if isinstance(write, PutInbox):
                body = pack_inbound(write.message, write.targets, write.received_at)
                db.execute(
                    "INSERT INTO inbox (key, body) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET body = excluded.body",
                    (write.key, body),
                )
            elif isinstance(write, DropInbox):
                db.execute("DELETE FROM inbox WHERE key = ?", (write.key,))
            elif isinstance(write, Forget):
                forgotten.setdefault(write.why, []).extend(write.seqs)
            elif isinstance(write, Lose):
                for kind, count in write.counts.items():
                    self._stock.lose(kind, "dropped", count)
            elif isinstance(write, Tried):
                db.execute("UPDATE records SET tries = ? WHERE seq = ?", (write.tries, write.seq))
        gone: list[str] = []
        for why, seqs in forgotten.items():
            gone += self._delete(db, seqs, why)
        return gone + self._rites(db, group, outcome)

    def _rites(self, db: sqlite3.Connection, group: Sequence[Write], outcome: Outcome) -> list[str]:
        """What concerns dead letters; returns the files of those that are gone."""
        gone: list[str] = []
        for write in group:
            if isinstance(write, Append) and write.dead is not None:
                self._grave.bury(db, write.seq, write.dead, self._clock.now())
            elif isinstance(write, Bury):
                self._reading.in_hand.discard(write.seq)
                self._grave.bury(db, write.seq, write.why, self._clock.now())
            elif isinstance(write, Exhume) and write.retry:
                for key, seqs in self._grave.revive(db, write.seqs, self._clock.now()).items():
                    outcome.revived[key] += len(seqs)
                    self._reading.take_back(key, seqs)
            elif isinstance(write, Exhume):
                gone += self._grave.clear(db, write.seqs)
        return gone + self._grave.shrink(db)

    def _delete(self, db: sqlite3.Connection, seqs: Sequence[int], why: str | None = None) -> list[str]:
        gone = self._rows.delete(db, seqs, why)
        self._reading.in_hand.difference_update(seqs)
        return gone

    # -- room ---------------------------------------------------------------------------------------------------------

    def _make_room(self, db: sqlite3.Connection, outcome: Outcome, before: int) -> list[str]:
        """Takes away what has no place any more. `before`: bytes of all records before this transaction."""
        out = self._reading.in_hand
        gone = self._remove(db, room.over_time(db, self._stock, self._limits, self._clock.now(), out), outcome)
        for kind in room.FIRST_TO_GO:
            gone += self._remove(db, room.over_quota(db, self._stock, self._limits, kind, out), outcome)
        most = self._limits.max_bytes
        if self._stock.total_bytes > before and self._reserve.disk_is_short():
            most = min(most, before)  # pages that are free already take what is new; the file does not grow
        return gone + self._remove(db, room.over_all(db, self._stock, most, out), outcome)

    def _remove(self, db: sqlite3.Connection, victims: list[room.Victim], outcome: Outcome) -> list[str]:
        gone: list[str] = []
        for why, counted in (("expired", outcome.expired), ("dropped", outcome.dropped)):
            chosen = [victim for victim in victims if victim.expired == (why == "expired")]
            counted.update(victim.key for victim in chosen)
            gone += self._delete(db, [victim.seq for victim in chosen], why)
        return gone

    def free_up(self, group: Sequence[Write]) -> Outcome:
        """After a write found the disk full: gives up the reserve, then captures, then results, for what `group` needs.

        Raises:
            sqlite3.OperationalError, OSError: not even that can be written.
        """
        db = self._open_db
        self._reserve.release()
        _begin_the_log_again(db)
        needed = 2 * sum(len(write.out.payload) for write in group if isinstance(write, Append)) + (1 << 20)
        worth = {write.kind for write in group if isinstance(write, Append)} | {
            "report" for write in group if isinstance(write, PutInbox)
        }
        kinds = ("capture", "result") if worth & {"report", "result"} else ("capture",)
        outcome = Outcome()
        db.execute("BEGIN IMMEDIATE")
        try:
            most = max(0, self._stock.total_bytes - needed)
            gone = self._remove(db, room.over_all(db, self._stock, most, self._reading.in_hand, kinds), outcome)
            self._stock.save(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._stock.load(db)
            raise
        _begin_the_log_again(db)
        self._blobs.remove(gone)
        outcome.bytes, outcome.dead = dict(self._stock.bytes), self._grave.count
        return outcome

    def probe(self) -> Outcome:
        """Whether the disk takes something again: writes a little where there is room for more.

        Raises:
            sqlite3.OperationalError, OSError: it does not.
        """
        if self._reserve.free_bytes() < PROBE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._anchored = -1e18
        return self._write([])

    def tidy(self) -> bool:
        """When there is nothing else to do: gives free pages back to the disk. Whether there is more of it."""
        db = self._open_db
        self._reserve.take()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        if free < VACUUM_FROM or 4 * free < pages:
            return False
        db.execute(f"PRAGMA incremental_vacuum({VACUUM_PAGES})").fetchall()
        (left,) = db.execute("PRAGMA freelist_count").fetchone()
        return bool(left < free)

    def over_time(self) -> bool:
        """Whether a write would take away what is over its time."""
        return bool(room.over_time(self._open_db, self._stock, self._limits, self._clock.now(), self._reading.in_hand))

    def _note_the_clocks(self, db: sqlite3.Connection) -> None:
        anchor = self._clock.anchor()
        if anchor.age - self._anchored >= ANCHOR_S or anchor.age < self._anchored:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?)", (anchor.packed(),))
            self._anchored = anchor.age

    # -- reading ------------------------------------------------------------------------------------------------------

    def next_batch(self, link: str, kind: str, limit: int) -> Batch:
        """As `Reading.next_batch`."""
        return self._reading.next_batch(self._open_db, self._epoch, link, kind, limit)

    def peek(self, kind: str, after: int) -> tuple[int, list[bytes]]:
        """As `Reading.peek`."""
        return self._reading.peek(self._open_db, kind, after)

    def inbox(self) -> list[tuple[str, Inbound, list[str]]]:
        """As `Reading.inbox`."""
        return self._reading.inbox(self._open_db)

    def dead(self) -> list[DeadLetter]:
        """All dead letters, the oldest first."""
        return self._grave.all(self._open_db, self._blobs)

    def close(self) -> None:
        """Notes the clocks and folds the log into the file; idempotent."""
        if self._db is None:
            return
        try:
            anchor = self._clock.anchor().packed()
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?)", (anchor,))
        finally:
            self._drop_connection()

    def _drop_connection(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            db.close()


def disk_is_full(error: BaseException) -> bool:
    """Whether room might help: full, or a write that failed as it does where a file may not grow."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    return isinstance(error, sqlite3.OperationalError) and any(word in str(error) for word in ("full", "I/O"))


def _begin_the_log_again(db: sqlite3.Connection) -> None:
    """What SQLite has in its log goes into the file, so that the log's own room takes the next writes.

    Without it, on a full disk, the pages that a deletion has freed are of no use: each write is logged before, and the
    log cannot grow.
    """
    with contextlib.suppress(sqlite3.OperationalError):
        db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
