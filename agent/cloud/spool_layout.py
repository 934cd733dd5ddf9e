"""The spool's database: its tables, its pragmas, the way from an older layout, and what a look at the start proves.

WAL with synchronous=FULL: a commit is in the log and synced before it counts (sqlite.org/wal.html). A start looks at as
much as it can in bounded time: a small file wholly, of a large one the ends; SQLite and a checksum a record notice the
rest when it is read. Blocks.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

VERSION = 2
WAL_BYTES = 4 << 20
CHECKED_BYTES = 32 << 20  # a file up to this is checked wholly after an unclean end: 0.1 s

_SCHEMA = """
CREATE TABLE records (seq INTEGER PRIMARY KEY, link TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
                      stored_at REAL NOT NULL DEFAULT 0, expires_at REAL, level INTEGER,
                      tries INTEGER NOT NULL DEFAULT 0, file TEXT, body BLOB NOT NULL);
CREATE TABLE inbox (place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, body BLOB NOT NULL);
"""
_SCHEMA_2 = """
CREATE INDEX records_by_class ON records (link, kind, seq);
CREATE INDEX records_by_level ON records (level, seq) WHERE level IS NOT NULL;
CREATE TABLE dead (seq INTEGER PRIMARY KEY, link TEXT NOT NULL, kind TEXT NOT NULL, size INTEGER NOT NULL,
                   stored_at REAL NOT NULL, expires_at REAL, level INTEGER, file TEXT, why TEXT NOT NULL,
                   at REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE totals (link TEXT NOT NULL, kind TEXT NOT NULL, count INTEGER NOT NULL, bytes INTEGER NOT NULL,
                     PRIMARY KEY (link, kind)) WITHOUT ROWID;
CREATE TABLE losses (kind TEXT NOT NULL, why TEXT NOT NULL, count INTEGER NOT NULL,
                     PRIMARY KEY (kind, why)) WITHOUT ROWID;
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
_FROM_1 = """
DROP INDEX records_by_link;
ALTER TABLE records ADD COLUMN stored_at REAL NOT NULL DEFAULT 0;
ALTER TABLE records ADD COLUMN expires_at REAL;
ALTER TABLE records ADD COLUMN level INTEGER;
ALTER TABLE records ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE records ADD COLUMN file TEXT;
UPDATE records SET level = 0 WHERE kind = 'capture';
UPDATE records SET stored_at = CAST(strftime('%s', 'now') AS REAL);
"""
_TOTALS = "INSERT INTO totals SELECT link, kind, count(*), sum(size) FROM records GROUP BY link, kind;"


def is_corrupt(error: sqlite3.Error) -> bool:
    """Whether the file is broken; its subclasses stand for anything else (locked, full, I/O)."""
    return type(error) is sqlite3.DatabaseError


def connect(file: Path) -> sqlite3.Connection:
    """Opens or makes the database; the caller closes it, also where this raises later.

    Raises:
        sqlite3.DatabaseError: it is broken, or of a version that this one does not know.
        sqlite3.OperationalError: locked, no room, an I/O error.
    """
    unclean = Path(f"{file}-wal").exists()  # a clean end leaves no log behind
    size = file.stat().st_size if file.exists() else 0
    # A file of whole pages or none was left by SQLite.
    db = sqlite3.connect(file, isolation_level=None, timeout=0.2)
    try:
        _prepare(db, size, unclean=unclean)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, size: int, *, unclean: bool) -> None:
    if not size:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
    # Exclusive: the state directory is one agent's anyhow, and it spares the shared-memory file.
    for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    for pragma in (f"journal_size_limit={WAL_BYTES}", "cache_size=-512"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    if unclean and size <= CHECKED_BYTES:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
    _migrate(db, size)
    _look_at_the_ends(db)


def _migrate(db: sqlite3.Connection, size: int) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version == VERSION:
        return
    if version == 0 and tables == 0:
        steps = _SCHEMA + _SCHEMA_2
    elif version == 1:
        steps = _FROM_1 + _SCHEMA_2 + _TOTALS
    else:
        raise sqlite3.DatabaseError(f"its version {version} is newer than {VERSION}, or none")
    epoch = f"INSERT INTO meta VALUES ('epoch', '{os.urandom(4).hex()}');"
    try:
        db.executescript(f"BEGIN IMMEDIATE; {steps} {epoch} PRAGMA user_version = {VERSION}; COMMIT;")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    if version == 1 and size <= CHECKED_BYTES:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("VACUUM")


def _look_at_the_ends(db: sqlite3.Connection) -> None:
    for way in ("ASC", "DESC"):
        db.execute(f"SELECT seq, length(body) FROM records ORDER BY seq {way} LIMIT 1").fetchall()
    db.execute("SELECT link, kind, count, bytes FROM totals").fetchall()


def set_aside(file: Path) -> Path:
    """Renames a broken database, over one that was set aside before: what is kept for a look stays bounded."""
    aside = Path(f"{file}.corrupt")
    for suffix in ("", "-wal", "-shm"):
        source = Path(f"{file}{suffix}")
        if source.exists():
            os.replace(source, f"{aside}{suffix}")
    sync_folder(file.parent)
    return aside


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
