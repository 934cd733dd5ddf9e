"""What the spool gives out again: records by link and class, once each, and the inbox. All of it blocks.

Used by one thread, the spool's.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from dataclasses import field

from agent.cloud.spool_blobs import Blobs
from agent.cloud.spool_clock import AgeClock
from agent.cloud.spool_records import DamagedRecordError, Key, Record, unpack_inbound, unpack_outbound
from agent.messages import Inbound
from agent.settings import SpoolLimits
from agent.values import dataclass

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20  # a batch read back ends with the record that passes this


@dataclass(slots=True)
class Batch:
    """Records in order, and those that cannot be handed over: no longer readable, or over their time."""

    records: list[Record] = field(default_factory=list)
    damaged: list[tuple[int, str]] = field(default_factory=list)
    expired: list[tuple[int, str]] = field(default_factory=list)


class Reading:
    """What was given out of a database, and what comes next.

    Attributes:
        in_hand: the records that were given out and are not forgotten, buried or given back yet.
    """

    def __init__(self, limits: SpoolLimits, clock: AgeClock, blobs: Blobs) -> None:
        self.in_hand: set[int] = set()
        self._after: dict[Key, int] = {}  # the highest seq that `next_batch` gave out
        self._limits = limits
        self._clock = clock
        self._blobs = blobs

    def clear(self) -> None:
        """Nothing was given out yet: it is another database."""
        self.in_hand.clear()
        self._after.clear()

    def take_back(self, key: Key, seqs: list[int]) -> None:
        """These are to be given out again, in their places."""
        self._after.pop(key, None)
        self.in_hand.difference_update(seqs)

    def next_batch(self, db: sqlite3.Connection, epoch: str, link: str, kind: str, limit: int) -> Batch:
        """Committed records that were not given out yet, at most `limit` and about a megabyte.

        In order, or the newest first where the class says so. What is given out stays out until it is forgotten,
        buried or given back.
        """
        batch, size, key = Batch(), 0, (link, kind)
        own, now = self._limits.of(kind), self._clock.now()
        after = -1 if own.newest_first else self._after.get(key, -1)
        way = "DESC" if own.newest_first else "ASC"
        rows = db.execute(
            "SELECT seq, body, file, stored_at, expires_at, tries FROM records"
            f" WHERE link = ? AND kind = ? AND seq > ? ORDER BY seq {way} LIMIT ?",
            (link, kind, after, limit + len(self.in_hand)),
        )
        for seq, body, file, stored_at, expires_at, tries in rows:
            if seq in self.in_hand:
                continue
            self.in_hand.add(seq)
            self._after[key] = max(seq, self._after.get(key, -1))
            if _over(now, stored_at, own.ttl_s) or (expires_at is not None and expires_at <= now):
                batch.expired.append((seq, kind))
            else:
                body = self._blobs.read(file) if file else body
                size += len(body)
                try:
                    out = unpack_outbound(body)
                    batch.records.append(Record(seq, kind, f"{epoch}-{seq}", out, expires_at, tries))
                except DamagedRecordError:
                    batch.damaged.append((seq, kind))
            if size >= BATCH_BYTES or len(batch.records) + len(batch.expired) >= limit:
                break
        rows.close()
        return batch

    def peek(self, db: sqlite3.Connection, kind: str, after: int) -> tuple[int, list[bytes]]:
        """The payloads of some records of a kind beyond `after`, about a megabyte, and the last one's seq."""
        found, size = [], 0
        rows = db.execute(
            "SELECT seq, body, file FROM records WHERE kind = ? AND seq > ? ORDER BY seq LIMIT 1000", (kind, after)
        )
        for seq, body, file in rows:
            after = seq
            try:
                found.append(unpack_outbound(self._blobs.read(file) if file else body).payload)
            except DamagedRecordError:
                continue  # told when it is its turn
            size += len(found[-1])
            if size >= BATCH_BYTES:
                break
        rows.close()
        return after, found

    def inbox(self, db: sqlite3.Connection) -> list[tuple[str, Inbound, list[str]]]:
        """The requests that were acknowledged and have no outcome yet, in order of receipt."""
        found = []
        for key, body in db.execute("SELECT key, body FROM inbox ORDER BY place").fetchall():
            try:
                message, targets = unpack_inbound(body, self._clock.now(), time.monotonic())
                found.append((key, message, targets))
            except DamagedRecordError:
                log.error("request %s in the spool's inbox is damaged and cannot be run", key)
        return found


def _over(now: float, stored_at: float, ttl_s: float | None) -> bool:
    return ttl_s is not None and stored_at + ttl_s <= now
