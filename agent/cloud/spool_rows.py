"""Records into the spool's database and out of it again, counted. All of it blocks.

Used by one thread, the spool's, within its transactions.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agent.cloud import spool_room as room
from agent.cloud.spool_blobs import Blobs
from agent.cloud.spool_records import Append, pack_outbound
from agent.cloud.spool_stock import Stock

# Each step of SQLite gives up the interpreter's lock, which a busy loop gives back only 5 ms later: few, large steps.
ROWS_A_STATEMENT = 500  # of nine values each; SQLite takes 32,766 values since 3.32
RECORD_OVERHEAD_BYTES = 64  # a row's own columns and its part of the index, about


class Rows:
    """The records of one database, counted in `stock`.

    Args:
        file_bytes: what is larger lies in a file of its own, of `blobs`.
    """

    def __init__(self, stock: Stock, blobs: Blobs, file_bytes: int) -> None:
        self._stock = stock
        self._blobs = blobs
        self._file_bytes = file_bytes

    def insert(self, db: sqlite3.Connection, epoch: str, appends: list[Append], written: list[str]) -> None:
        """Adds records; `written` gets the files that it has made so far."""
        for at in range(0, len(appends), ROWS_A_STATEMENT):
            chunk = appends[at : at + ROWS_A_STATEMENT]
            values: list[object] = []
            for each in chunk:
                body, name = pack_outbound(each.out), None
                size = len(body) + RECORD_OVERHEAD_BYTES
                if len(body) > self._file_bytes:
                    name = self._blobs.write(f"{epoch}-{each.seq}", body)
                    written.append(name)
                    body = b""
                self._stock.add((each.link, each.kind), 1, size)
                expiry_s = each.out.properties.expiry_s
                expires_at = None if expiry_s is None else each.stored_at + expiry_s
                level = room.level_of(each.kind, each.value)
                values += (each.seq, each.link, each.kind, size, each.stored_at, expires_at, level, name, body)
            rows = ",".join(["(?,?,?,?,?,?,?,?,?)"] * len(chunk))
            columns = "seq, link, kind, size, stored_at, expires_at, level, file, body"
            db.execute(f"INSERT INTO records ({columns}) VALUES {rows}", values)

    def delete(self, db: sqlite3.Connection, seqs: Sequence[int], why: str | None = None) -> list[str]:
        """Deletes records and keeps count; returns their files."""
        gone: list[str] = []
        for at in range(0, len(seqs), 500):  # SQLite before 3.32 takes 999 values
            chunk = seqs[at : at + 500]
            marks = ",".join("?" * len(chunk))
            found = f"FROM records WHERE seq IN ({marks})"
            for link, kind, count, size, files in db.execute(
                f"SELECT link, kind, count(*), sum(size), count(file) {found} GROUP BY link, kind", chunk
            ).fetchall():
                self._stock.add((link, kind), -count, -size)
                if why is not None:
                    self._stock.lose(kind, why, count)
                if files:
                    rows = db.execute(f"SELECT file {found} AND file IS NOT NULL", chunk)
                    gone += [name for (name,) in rows if name not in gone]
            db.execute(f"DELETE {found}", chunk)
        return gone
