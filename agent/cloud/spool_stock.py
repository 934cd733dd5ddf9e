"""What the spool holds, by link and kind, and what it has lost: counted in memory, kept with each commit.

Kept and not counted at the start, since a million records take a second to count.
"""

from __future__ import annotations

import sqlite3
from collections import Counter

from agent.cloud.spool_records import Key


class Stock:
    """Counts of one database; `load` after opening it and after a rollback."""

    def __init__(self) -> None:
        self.counts: Counter[Key] = Counter()
        self.bytes: Counter[Key] = Counter()
        self.losses: Counter[Key] = Counter()  # (kind, why)
        self._changed: set[Key] = set()
        self._lost: set[Key] = set()

    def load(self, db: sqlite3.Connection) -> None:
        self.counts.clear()
        self.bytes.clear()
        self.losses.clear()
        self._changed.clear()
        self._lost.clear()
        for link, kind, count, size in db.execute("SELECT link, kind, count, bytes FROM totals"):
            self.counts[link, kind] = count
            self.bytes[link, kind] = size
        for kind, why, count in db.execute("SELECT kind, why, count FROM losses"):
            self.losses[kind, why] = count

    def save(self, db: sqlite3.Connection) -> None:
        """Writes what changed; within the transaction that changed it."""
        for key in self._changed:
            db.execute("INSERT OR REPLACE INTO totals VALUES (?, ?, ?, ?)", (*key, self.counts[key], self.bytes[key]))
        for key in self._lost:
            db.execute("INSERT OR REPLACE INTO losses VALUES (?, ?, ?)", (*key, self.losses[key]))
        self._changed.clear()
        self._lost.clear()

    def add(self, key: Key, count: int, size: int) -> None:
        """Takes `count` records of `size` bytes together in; negative: out."""
        self.counts[key] += count
        self.bytes[key] += size
        self._changed.add(key)

    def lose(self, kind: str, why: str, count: int) -> None:
        self.losses[kind, why] += count
        self._lost.add((kind, why))

    def of(self, kind: str) -> tuple[int, int]:
        """Count and bytes of a kind over all links."""
        keys = [key for key in self.counts if key[1] == kind]
        return sum(self.counts[key] for key in keys), sum(self.bytes[key] for key in keys)

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())
