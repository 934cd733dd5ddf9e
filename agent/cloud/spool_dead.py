"""Dead letters: records that can never be handed over as they are, kept for a look and another try. Blocks."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from agent.cloud.spool_blobs import Blobs
from agent.cloud.spool_records import DEAD, DamagedRecordError, DeadLetter, Key, unpack_outbound
from agent.cloud.spool_stock import Stock
from agent.settings import SpoolClass

_SAME = "seq, link, kind, size, stored_at, expires_at, level, file, body"


class Grave:
    """The dead letters of one database, counted in `stock`; beyond `limits` the oldest are gone for good, counted."""

    def __init__(self, stock: Stock, limits: SpoolClass) -> None:
        self._stock = stock
        self._limits = limits

    @property
    def count(self) -> int:
        """How many there are."""
        return self._stock.of(DEAD)[0]

    def bury(self, db: sqlite3.Connection, seq: int, why: str, now: float) -> None:
        """Makes a record a dead letter; one that is not there is none of its business."""
        row = db.execute("SELECT link, kind, size FROM records WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            return
        link, kind, size = row
        db.execute(
            f"INSERT INTO dead ({_SAME}, why, at) SELECT {_SAME}, ?, ? FROM records WHERE seq = ?", (why, now, seq)
        )
        db.execute("DELETE FROM records WHERE seq = ?", (seq,))
        self._stock.add((link, kind), -1, -size)
        self._stock.add((link, DEAD), 1, size)

    def revive(self, db: sqlite3.Connection, seqs: Sequence[int] | None, now: float) -> dict[Key, list[int]]:
        """Makes dead letters records again, with their ids and in their old places; returns which."""
        found: dict[Key, list[int]] = {}
        for seq, link, kind, size, _ in self._chosen(db, seqs):
            same = _SAME.replace("stored_at", "?")
            db.execute(f"INSERT INTO records ({_SAME}) SELECT {same} FROM dead WHERE seq = ?", (now, seq))
            self._stock.add((link, kind), 1, size)
            self._remove(db, seq, link, size)
            found.setdefault((link, kind), []).append(seq)
        return found

    def clear(self, db: sqlite3.Connection, seqs: Sequence[int] | None) -> list[str]:
        """Deletes dead letters; returns their files."""
        chosen = self._chosen(db, seqs)
        for seq, link, _, size, _ in chosen:
            self._remove(db, seq, link, size)
        return [file for *_, file in chosen if file]

    def shrink(self, db: sqlite3.Connection) -> list[str]:
        """Keeps to the limits; returns the files of what is gone."""
        gone: list[str] = []
        count, size = self._stock.of(DEAD)
        most_bytes, most = self._limits.max_bytes, self._limits.max_count
        if (most is None or count <= most) and (most_bytes is None or size <= most_bytes):
            return gone
        for seq, link, kind, each, file in self._chosen(db, None):
            if (most is None or count <= most) and (most_bytes is None or size <= most_bytes):
                break
            self._remove(db, seq, link, each)
            self._stock.lose(kind, DEAD, 1)
            count, size = count - 1, size - each
            gone += [file] if file else []
        return gone

    def all(self, db: sqlite3.Connection, blobs: Blobs) -> list[DeadLetter]:
        """All of them, the oldest first."""
        found = []
        for seq, link, kind, size, why, at, file, body in db.execute(
            "SELECT seq, link, kind, size, why, at, file, body FROM dead ORDER BY at, seq"
        ).fetchall():
            try:
                topic = unpack_outbound(blobs.read(file) if file else body).topic
            except DamagedRecordError:
                topic = "?"
            found.append(DeadLetter(seq, link, kind, size, topic, why, at))
        return found

    def _remove(self, db: sqlite3.Connection, seq: int, link: str, size: int) -> None:
        db.execute("DELETE FROM dead WHERE seq = ?", (seq,))
        self._stock.add((link, DEAD), -1, -size)

    def _chosen(
        self, db: sqlite3.Connection, seqs: Sequence[int] | None
    ) -> list[tuple[int, str, str, int, str | None]]:
        rows = db.execute("SELECT seq, link, kind, size, file FROM dead ORDER BY at, seq").fetchall()
        return [row for row in rows if seqs is None or row[0] in seqs]
