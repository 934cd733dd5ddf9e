"""What must outlive this process: records on their way to a link, and requests acknowledged before their outcome.

The calls return at once and belong to the event loop's thread; a thread of the spool's own writes and syncs. Nothing is
said to be committed that is not on the disk. What it refuses to do: fail to start over a broken file, grow without end,
on disk or in memory, and hold up anybody for the sake of what the cloud would get.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from agent.cloud.spool_clock import AgeClock, Clock, SystemClock
from agent.cloud.spool_file import SpoolFile
from agent.cloud.spool_reading import Batch
from agent.cloud.spool_records import (
    DEAD,
    KINDS,
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
    Record,
    Tried,
    Write,
)
from agent.cloud.spool_thread import HELD_LINK, Item, Read, SpoolThread
from agent.messages import Inbound, Outbound
from agent.settings import SpoolLimits

log = logging.getLogger(__name__)

LAZY_S = 0.2  # deletions wait this long for a commit to go with; a crash in between only says something twice
SAY_AGAIN_S = 60.0  # that something is dropped is logged once in so long

Inbox = list[tuple[str, Inbound, list[str]]]


class Spool:
    """The spool in `file`.

    Args:
        loop: runs the callbacks.
        limits: quotas, times and what goes first.
        clock: the machine's clocks; another one for a simulation.

    Attributes:
        on_commit: called after each commit; for who forwards.
        on_loss: called when something was dropped, expired or became a dead letter; for who tells of it.
        dropped: how many records were dropped for a quota or want of room or were damaged, by kind, over all runs.
        expired: how many were over their time, by kind, over all runs.
        dead: how many dead letters there are.
        commits: how often the disk was synced.
        backlogs: how many records of a (link, kind) were appended and not yet handed over; see `backlog`.
    """

    def __init__(
        self,
        file: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        limits: SpoolLimits = SpoolLimits(),  # noqa: B008 -- frozen
        clock: Clock | None = None,
    ) -> None:
        self._clock = AgeClock(clock or SystemClock())
        self._file = SpoolFile(file, limits, self._clock)
        self._thread = SpoolThread(self._file, loop, self._settled, self._be_troubled)
        self._loop = loop
        self._limits = limits
        self._is_open = False
        self._items: list[Item] = []
        self._flush_is_due = False
        self._lazy: asyncio.TimerHandle | None = None
        self._last_seq = 0
        self.backlogs: Counter[Key] = Counter()
        self._uncommitted: Counter[Key] = Counter()
        self._bytes: dict[Key, int] = {}
        self._pending_bytes = 0
        self._unwritten: Counter[str] = Counter()  # dropped, and not yet counted on the disk
        self._in_hand: dict[int, Key] = {}
        self._sent: set[int] = set()  # of these what is not committed yet
        self._troubled = False
        self._said: dict[str, float] = {}
        self.on_commit: Callable[[], None] | None = None
        self.on_loss: Callable[[], None] | None = None
        self.dropped: Counter[str] = Counter()
        self.expired: Counter[str] = Counter()
        self.dead = 0
        self.commits = 0

    async def open(self) -> None:
        """Opens the file, or sets a broken one aside (logged) and begins a new one.

        Raises:
            ConfigError: SPOOL_UNAVAILABLE.
        """
        found = await self._thread.start()
        self._last_seq, self._bytes = found.last_seq, found.bytes
        for (link, kind), count in found.counts.items():
            if kind == DEAD:
                self.dead += count
            else:
                self.backlogs[link, kind] = count
        for (kind, why), count in found.losses.items():
            (self.expired if why == "expired" else self.dropped)[kind] += count
        self._is_open = True

    async def close(self) -> None:
        """Commits what was appended and closes the file; a disk that takes nothing is not waited for. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._flush()
            await self._thread.stop()

    # What the loop calls: none of it blocks.

    def now(self) -> float:
        """The time by which records are dated, seconds."""
        return self._clock.now()

    def append(
        self,
        link: str,
        kind: str,
        out: Outbound,
        committed: Callable[[], None] | None = None,
        *,
        value: float = 0.0,
        dead: str | None = None,
    ) -> None:
        """Keeps `out` for `link`; `committed` runs on the loop once it is on the disk, or was dropped.

        While the disk takes nothing, or more waits for it than memory has for that, captures are dropped, and then
        results for the cloud; `docs/spool.md` says when.

        Args:
            kind: ``report``, ``result`` or ``capture``: the order in which they are kept when room is short.
            value: how much a capture is worth, from 0 to 1: those worth least go first, the oldest of them before.
            dead: why it can never be handed over: it becomes a dead letter.
        """
        if self._must_let_go(link, kind):
            self._unwritten[kind] += 1
            self._count_dropped(kind, 1)
            if committed is not None:
                self._loop.call_soon(committed)
            return
        self._last_seq += 1
        if dead is None:
            self.backlogs[link, kind] += 1
            self._uncommitted[link, kind] += 1
        self._pending_bytes += len(out.payload)
        self._add(Append(self._last_seq, link, kind, out, committed, value, self._clock.now(), dead))

    def keep_sent(self, link: str, kind: str, out: Outbound, committed: Callable[[], None] | None = None) -> int | None:
        """Keeps what is on its way to `link` already, as if `next_batch` had given it out: the next run sends it again.

        Returns:
            What `handed_over` takes; None where nothing is kept, because the disk takes nothing.
        """
        if self._must_let_go(link, kind):
            return None
        self._last_seq = seq = self._last_seq + 1
        self.backlogs[link, kind] += 1
        self._uncommitted[link, kind] += 1
        self._in_hand[seq] = (link, kind)
        self._sent.add(seq)
        self._pending_bytes += len(out.payload)
        self._add(Append(seq, link, kind, out, committed, stored_at=self._clock.now(), sent=True))
        return seq

    def _must_let_go(self, link: str, kind: str) -> bool:
        if kind == "report":
            return False
        over = self._pending_bytes / (self._limits.memory_bytes or 1)
        if kind == "capture":
            return self._troubled or over > 1
        return (self._troubled and link != HELD_LINK) or over > 2

    def put_inbox(
        self, key: str, message: Inbound, targets: Sequence[str], committed: Callable[[], None] | None = None
    ) -> None:
        """Keeps a request so that it can be acknowledged; the same key again replaces it in its place."""
        age_s = time.monotonic() - message.received_s if message.received_s else 0.0
        self._pending_bytes += len(message.payload)
        self._add(PutInbox(key, message, list(targets), self._clock.now() - age_s, committed))

    @property
    def takes_requests(self) -> bool:
        """Whether the disk keeps up; while it does not, requests stay unacknowledged with their broker."""
        return self._pending_bytes <= self._limits.memory_bytes

    def drop_inbox(self, key: str) -> None:
        """Forgets a request that has its outcome; unknown keys are none of its business."""
        self._add(DropInbox(key), lazy=True)

    def backlog(self, link: str, kind: str | None = None) -> int:
        """How many records (of `kind`) were appended for `link`, committed or not, and not yet handed over. Exact."""
        if kind is not None:
            return self.backlogs[link, kind]
        return sum(count for (to, _), count in self.backlogs.items() if to == link)

    def losses(self) -> dict[str, Any]:
        """What was lost over all runs; empty where nothing was."""
        found = {"dropped": +self.dropped, "expired": +self.expired, "dead": self.dead}
        return {name: dict(each) if isinstance(each, Counter) else each for name, each in found.items() if each}

    def summary(self) -> dict[str, Any]:
        """What waits, by link and class, and what was lost: for `marram status`."""
        backlog: dict[str, dict[str, Any]] = {}
        for (link, kind), count in sorted(self.backlogs.items()):
            if count:
                size = self._bytes.get((link, kind), 0)
                backlog.setdefault(link, {})[kind] = {"count": count, "bytes": size}
        return {
            "backlog": backlog,
            "dropped": {kind: count for kind, count in self.dropped.items() if count},
            "expired": {kind: count for kind, count in self.expired.items() if count},
            "dead": self.dead,
            "disk": "takes nothing" if self._troubled else "ok",
        }

    # What leaves it.

    async def next_batch(self, link: str, kind: str, limit: int) -> list[Record]:
        """Committed records that were not given out yet, in order (or the newest first, as the class says).

        Fewer than `limit` where they are large; what is over its time or can no longer be read is left out and counted.
        """
        found: Batch | None = await self._ask(lambda: self._file.next_batch(link, kind, limit))
        batch = found or Batch()
        self._in_hand.update((record.seq, (link, record.kind)) for record in batch.records)
        for seqs, why in ((batch.damaged, "damaged"), (batch.expired, "expired")):
            self._in_hand.update((seq, (link, kind)) for seq, kind in seqs)
            if seqs:
                self._give_up([seq for seq, _ in seqs], why)
        return batch.records

    def handed_over(self, seqs: Iterable[int]) -> None:
        """These records of `next_batch` are in the next broker's hands; what is not in hand is ignored."""
        gone = self._out_of_hand(seqs)
        if gone:
            self._add(Forget(gone), lazy=True)

    def expire(self, seq: int) -> None:
        """This record of `next_batch` is over its time."""
        self._give_up([seq], "expired")

    def tried(self, record: Record) -> None:
        """The broker refused this record once more, for now."""
        record.tries += 1
        self._add(Tried(record.seq, record.tries), lazy=True)

    def bury(self, seq: int, why: str) -> None:
        """This record of `next_batch` can never be handed over: it becomes a dead letter."""
        if self._out_of_hand([seq]):
            self._add(Bury(seq, why))

    async def peek(self, kind: str) -> AsyncIterator[list[bytes]]:
        """The payloads of all committed records of a kind, in order, some at a time; they stay as they are."""
        after = -1
        while True:
            found: tuple[int, list[bytes]] | None = await self._ask(functools.partial(self._file.peek, kind, after))
            if not found or found[0] == after:
                return
            after = found[0]
            yield found[1]

    async def dead_letters(self) -> list[DeadLetter]:
        """All dead letters, the oldest first."""
        found = await self._ask(self._file.dead)
        return list(found or ())

    async def exhume(self, seqs: list[int] | None, *, retry: bool) -> None:
        """Tries dead letters again, with the ids that they had, or drops them for good. `seqs`: None for all."""
        done = self._loop.create_future()
        self._add(Exhume(seqs, retry, lambda: _resolve(done, None)))
        await done

    async def inbox(self) -> Inbox:
        """Requests that were acknowledged and have no outcome: (key, message, targets) in order of receipt."""
        found: Inbox | None = await self._ask(self._file.inbox)
        return found or []

    # inside

    async def _ask(self, question: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._add(Read(question, lambda found: _resolve(future, found)))
        return await future

    def _give_up(self, seqs: list[int], why: str) -> None:
        gone = self._out_of_hand(seqs, why)
        if gone:
            self._add(Forget(gone, why), lazy=True)

    def _out_of_hand(self, seqs: Iterable[int], why: str | None = None) -> list[int]:
        gone = []
        for seq in seqs:
            key = self._in_hand.pop(seq, None)
            if key is None:
                continue
            gone.append(seq)
            self.backlogs[key] -= 1
            if why == "expired":
                self._count_expired(key[1], 1)
            elif why is not None:
                log.error("record %d (%s) for the %s link is damaged and dropped", seq, key[1], key[0])
                self._count_dropped(key[1], 1)
        return gone

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
            self.backlogs = Counter(self._uncommitted)
            self._in_hand = {seq: self._in_hand[seq] for seq in self._sent if seq in self._in_hand}
        if outcome.bytes is not None:
            self._bytes = outcome.bytes
            if self._unwritten and self._is_open:
                self._add(Lose(self._unwritten), lazy=True)
                self._unwritten = Counter()
            self._note_the_dead(outcome.dead)
        for write in writes:
            if isinstance(write, Append):
                if write.dead is None:
                    self._uncommitted[write.link, write.kind] -= 1
                self._sent.discard(write.seq)
                self._pending_bytes -= len(write.out.payload)
            elif isinstance(write, PutInbox):
                self._pending_bytes -= len(write.message.payload)
        for key, count in outcome.dropped.items():
            if outcome.bytes is None:
                self._unwritten[key[1]] += count
            self.backlogs[key] -= count
            self._count_dropped(key[1], count)
        for key, count in outcome.expired.items():
            self.backlogs[key] -= count
            self._count_expired(key[1], count)
        self.backlogs += outcome.revived
        for write in writes:
            if isinstance(write, Append | PutInbox | Exhume) and write.committed is not None:
                _call(write.committed)
        if self.on_commit is not None:
            _call(self.on_commit)

    def _be_troubled(self, troubled: bool) -> None:
        self._troubled = troubled

    def _note_the_dead(self, count: int) -> None:
        if count > self.dead and self.on_loss is not None:
            _call(self.on_loss)
        self.dead = count

    def _count_dropped(self, kind: str, count: int) -> None:
        self.dropped[kind] += count
        self._say(kind, "dropped", self.dropped[kind])

    def _count_expired(self, kind: str, count: int) -> None:
        self.expired[kind] += count
        self._say(kind, "over their time", self.expired[kind])

    def _say(self, kind: str, what: str, count: int) -> None:
        now = self._loop.time()
        if now - self._said.get(kind + what, -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said[kind + what] = now
            log.error("spool: %d %ss were %s so far; see `marram status`", count, kind, what)
        if self.on_loss is not None:
            _call(self.on_loss)


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        log.exception("a callback of the spool raised")


__all__ = ["KINDS", "DeadLetter", "Record", "Spool"]
