"""Which records go when room is short. Reads the database and decides; the caller deletes.

First what is over its time, then what is over its class's quota, then captures, results and reports, in this order.
Within captures those worth least go first, the oldest of them before; within results and reports the oldest. What is in
the outbox's hands stays, so that nobody hands it over in vain.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Collection, Iterator

from agent.cloud.spool_records import Key
from agent.cloud.spool_stock import Stock
from agent.settings import SpoolLimits
from agent.values import dataclass

FIRST_TO_GO = ("capture", "result", "report")
LEVELS = 32  # of a capture's value: so many places at which the index grows, and no more
MOST_AT_ONCE = 5000  # records over their time that one transaction takes away


@dataclass(frozen=True, slots=True)
class Victim:
    """A record that has to go."""

    seq: int
    key: Key
    size: int
    expired: bool = False


def level_of(kind: str, value: float) -> int | None:
    """By what a record is sorted within its kind; None: by age alone."""
    return int(min(max(value, 0.0), 1.0) * (LEVELS - 1)) if kind == "capture" else None


def over_time(
    db: sqlite3.Connection, stock: Stock, limits: SpoolLimits, now: float, spared: Collection[int]
) -> list[Victim]:
    """Records that their class's ttl has run out for; the oldest are looked at, so that it costs what it takes away."""
    found: list[Victim] = []
    for (link, kind), count in stock.counts.items():
        ttl_s = limits.of(kind).ttl_s
        if not count or ttl_s is None or kind not in FIRST_TO_GO:
            continue
        rows = db.execute(
            "SELECT seq, size, stored_at FROM records WHERE link = ? AND kind = ? ORDER BY seq LIMIT ?",
            (link, kind, MOST_AT_ONCE),
        )
        for seq, size, stored_at in rows:
            if stored_at + ttl_s > now:
                break
            if seq not in spared:
                found.append(Victim(seq, (link, kind), size, expired=True))
        rows.close()
    return found


def over_quota(
    db: sqlite3.Connection, stock: Stock, limits: SpoolLimits, kind: str, spared: Collection[int]
) -> list[Victim]:
    """What a kind holds beyond its own quota."""
    count, size = stock.of(kind)
    own = limits.of(kind)
    bytes_over = size - own.max_bytes if own.max_bytes is not None else 0
    count_over = count - own.max_count if own.max_count is not None else 0
    return _first(db, stock, kind, bytes_over, count_over, spared)


def over_all(
    db: sqlite3.Connection, stock: Stock, max_bytes: int, spared: Collection[int], kinds: Collection[str] = FIRST_TO_GO
) -> list[Victim]:
    """What all kinds together hold beyond `max_bytes`, as far as `kinds` are worth it."""
    over = stock.total_bytes - max_bytes
    found: list[Victim] = []
    for kind in FIRST_TO_GO:
        if over <= 0 or kind not in kinds:
            break
        victims = _first(db, stock, kind, over, 0, spared)
        over -= sum(victim.size for victim in victims)
        found += victims
    return found


def _first(
    db: sqlite3.Connection, stock: Stock, kind: str, bytes_over: int, count_over: int, spared: Collection[int]
) -> list[Victim]:
    found: list[Victim] = []
    if bytes_over <= 0 and count_over <= 0:
        return found
    for seq, link, size in _in_order(db, stock, kind):
        if bytes_over <= 0 and count_over <= 0:
            break
        if seq not in spared:
            found.append(Victim(seq, (link, kind), size))
            bytes_over -= size
            count_over -= 1
    return found


def _in_order(db: sqlite3.Connection, stock: Stock, kind: str) -> Iterator[tuple[int, str, int]]:
    """(seq, link, size) of a kind, the first to go first. Each row costs one step in an index."""
    if kind == "capture":
        yield from db.execute("SELECT seq, link, size FROM records WHERE level IS NOT NULL ORDER BY level, seq")
        return
    links = [link for (link, each), count in stock.counts.items() if each == kind and count]
    yield from heapq.merge(
        *(
            db.execute("SELECT seq, link, size FROM records WHERE link = ? AND kind = ? ORDER BY seq", (link, kind))
            for link in links
        )
    )
