"""What must outlive this process: records on their way to a link, and requests acknowledged before their outcome.

The calls return at once and belong to the event loop's thread; a thread of the spool's own writes and syncs. Nothing is
said to be committed that is not on the disk. What it refuses to do: fail to start over a broken file, or grow without
end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from agent.cloud.spool_file import Batch, Outcome, SpoolFile
from agent.cloud.spool_records import Append, DropInbox, Forget, Key, PutInbox, Write
from agent.cloud.spool_thread import Item, Read, SpoolThread
from agent.messages import Inbound, Outbound

log = logging.getLogger(__name__)

MAX_BYTES = 256 << 20
MAX_PENDING_BYTES = 16 << 20  # what may wait for a disk that takes nothing before new captures are dropped
LAZY_S = 0.2  # deletions wait this long for a commit to go with; a crash in between only says something twice

Records = list[tuple[int, str, Outbound]]
Inbox = list[tuple[str, Inbound, list[str]]]


class Spool:
    """The spool in `file`.

    Args:
        loop: runs the callbacks.
        max_bytes: of all records; beyond it the oldest captures are dropped and counted, then results, then reports.

    Attributes:
        on_commit: called after each commit; for who forwards.
        dropped: how many records were dropped for want of room, by kind.
        commits: how often the disk was synced.
    """

    def __init__(self, file: Path, *, loop: asyncio.AbstractEventLoop, max_bytes: int = MAX_BYTES) -> None:
        self._file = SpoolFile(file, max_bytes)
        self._thread = SpoolThread(self._file, loop, self._settled)
        self._loop = loop
        self._is_open = False
        self._items: list[Item] = []
        self._flush_is_due = False
        self._lazy: asyncio.TimerHandle | None = None
        self._last_seq = 0
        self._backlog: Counter[Key] = Counter()
        self._uncommitted: Counter[Key] = Counter()
        self._pending_bytes = 0
        self._in_hand: dict[int, Key] = {}
        self.on_commit: Callable[[], None] | None = None
        self.dropped: Counter[str] = Counter()
        self.commits = 0

    async def open(self) -> None:
        """Opens the file, or sets a broken one aside (logged) and begins a new one.

        Raises:
            ConfigError: SPOOL_UNAVAILABLE.
        """
        self._last_seq, self._backlog = await self._thread.start()
        self._is_open = True

    async def close(self) -> None:
        """Commits what was appended and closes the file; a disk that takes nothing is not waited for. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._flush()
            await self._thread.stop()

    # What the loop calls: none of it blocks.

    def append(
        self,
        link: str,
        kind: str,
        out: Outbound,
        committed: Callable[[], None] | None = None,
        *,
        value: float = 0.0,
    ) -> None:
        """Keeps `out` for `link`; `committed` runs on the loop once it is on the disk.

        Args:
            kind: ``report``, ``result`` or ``capture``: the order in which they are kept when room is short.
            value: how much a capture is worth, from 0 to 1: those worth least go first, the oldest of them before.
        """
        if kind == "capture" and self._pending_bytes > MAX_PENDING_BYTES:
            self._count_dropped(kind, 1)
            if committed is not None:
                self._loop.call_soon(committed)
            return
        self._last_seq += 1
        self._backlog[link, kind] += 1
        self._uncommitted[link, kind] += 1
        self._pending_bytes += len(out.payload)
        self._add(Append(self._last_seq, link, kind, out, committed, value))

    def put_inbox(
        self, key: str, message: Inbound, targets: Sequence[str], committed: Callable[[], None] | None = None
    ) -> None:
        """Keeps a request so that it can be acknowledged; the same key again replaces it in its place."""
        age_s = time.monotonic() - message.received_s if message.received_s else 0.0
        self._add(PutInbox(key, message, list(targets), time.time() - age_s, committed))

    def drop_inbox(self, key: str) -> None:
        """Forgets a request that has its outcome; unknown keys are none of its business."""
        self._add(DropInbox(key), lazy=True)

    def backlog(self, link: str, kind: str | None = None) -> int:
        """How many records (of `kind`) were appended for `link`, committed or not, and not yet handed over. Exact."""
        if kind is not None:
            return self._backlog[link, kind]
        return sum(count for (to, _), count in self._backlog.items() if to == link)

    def handed_over(self, seqs: Iterable[int]) -> None:
        """These records of `next_batch` are in the next broker's hands; what is not in hand is ignored."""
        gone = [seq for seq in seqs if seq in self._in_hand]
        for seq in gone:
            self._backlog[self._in_hand.pop(seq)] -= 1
        if gone:
            self._add(Forget(gone), lazy=True)

    async def next_batch(self, link: str, after: int, limit: int) -> Records:
        """Committed records of `link` beyond `after` in order: (seq, kind, message). Fewer than `limit` where they are
        large; what can no longer be read is left out, logged and counted as dropped.
        """
        future: asyncio.Future[Records] = self._loop.create_future()
        self._add(Read(lambda: self._file.next_batch(link, after, limit), lambda b: self._take(link, b, future)))
        return await future

    async def inbox(self) -> Inbox:
        """Requests that were acknowledged and have no outcome: (key, message, targets) in order of receipt."""
        future: asyncio.Future[Inbox] = self._loop.create_future()
        self._add(Read(self._file.inbox, lambda found: _resolve(future, found or [])))
        return await future

    def _take(self, link: str, batch: Batch | None, future: asyncio.Future[Records]) -> None:
        batch = batch or Batch()
        self._in_hand.update((seq, (link, kind)) for seq, kind, _ in batch.records)
        self._in_hand.update((seq, (link, kind)) for seq, kind in batch.damaged)
        for seq, kind in batch.damaged:
            log.error("record %d (%s) for the %s link is damaged and dropped", seq, kind, link)
            self.dropped[kind] += 1
        self.handed_over([seq for seq, _ in batch.damaged])
        _resolve(future, batch.records)

    def _add(self, item: Item, *, lazy: bool = False) -> None:
        if not self._is_open:
            raise RuntimeError("the spool is not open")
        self._items.append(item)
        if lazy:
            self._lazy = self._lazy or self._loop.call_later(LAZY_S, self._flush)
        elif not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Wakes the thread: once for all that one turn of the loop brought."""
        self._flush_is_due = False
        if self._lazy is not None:
            self._lazy.cancel()
            self._lazy = None
        if self._items:
            items, self._items = self._items, []
            self._thread.put(items)

    def _settled(self, writes: list[Write], outcome: Outcome) -> None:
        self.commits += 1
        if outcome.lost:
            self._backlog = Counter(self._uncommitted)
            self._in_hand.clear()
        for write in writes:
            if isinstance(write, Append):
                self._uncommitted[write.link, write.kind] -= 1
                self._pending_bytes -= len(write.out.payload)
        for (link, kind), count in outcome.dropped.items():
            self._backlog[link, kind] -= count
            self._count_dropped(kind, count)
        for write in writes:
            if isinstance(write, Append | PutInbox) and write.committed is not None:
                _call(write.committed)
        if self.on_commit is not None:
            _call(self.on_commit)

    def _count_dropped(self, kind: str, count: int) -> None:
        if not self.dropped[kind]:
            log.error("the spool is full: the oldest %ss are dropped from now on, see `marram status`", kind)
        self.dropped[kind] += count


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        log.exception("a callback of the spool raised")
