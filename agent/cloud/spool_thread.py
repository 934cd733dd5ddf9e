"""The spool's thread: it gathers what waits into one commit, and answers what is asked of the file.

While it syncs, what comes meanwhile waits for the next commit (group commit), so that a burst costs few syncs. No error
ends it: on a disk that is full it makes room among what it has, then lets go of new captures and, a try later, of
results for the cloud, so that nobody waits for them; all else is tried again. A broken file is begun anew, and a record
that cannot be written at all is left out, logged and counted.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from agent.cloud.spool_file import Opened, SpoolFile, disk_is_full
from agent.cloud.spool_layout import is_corrupt
from agent.cloud.spool_records import Append, Outcome, Write
from agent.errors import ConfigError
from agent.values import dataclass

log = logging.getLogger(__name__)

RETRY_S = 1.0  # between tries on a disk that is full or fails
IDLE_S = 1.0  # without work, after which free pages go back to the disk
LOOK_S = 30.0  # how often an idle spool looks for what is over its time
HELD_LINK = "local"  # while it is down nobody asks there, so that its results hold up nothing


@dataclass(slots=True, eq=False)
class Read:
    """A question for the file, and who takes its answer on the loop; None where the file could not be read."""

    ask: Callable[[], Any]
    answer: Callable[[Any], None]


Item = Write | Read
Settled = Callable[[list[Write], Outcome], None]


class SpoolThread:
    """Owns `file`; only `start`, `put` and `stop` belong to the loop's thread.

    Args:
        settled: called on the loop with each group that is on the disk, or was let go.
        troubled: called on the loop with whether results and captures are let go from now on, when that changes.
    """

    def __init__(
        self,
        file: SpoolFile,
        loop: asyncio.AbstractEventLoop,
        settled: Settled,
        troubled: Callable[[bool], None],
    ) -> None:
        self._file = file
        self._loop = loop
        self._settled = settled
        self._troubled = troubled
        self._failures = 0
        self._retry_at = 0.0
        self._queue: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._opened: asyncio.Future[Opened] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()

    async def start(self) -> Opened:
        """Opens the file; returns what it holds.

        Raises:
            ConfigError: SPOOL_UNAVAILABLE.
        """
        self._thread.start()
        return await self._opened

    def put(self, items: list[Item]) -> None:
        """Hands over what is to be written and read, in order."""
        self._queue.put(items)

    async def stop(self) -> None:
        """Writes what was put, closes the file and ends the thread."""
        self._queue.put(None)
        await self._closed
        self._thread.join()

    def _run(self) -> None:
        try:
            stock = self._file.open()
        except ConfigError as error:
            self._post(self._opened.set_exception, error)
            return
        self._post(self._opened.set_result, stock)
        writes: list[Write] = []
        wait_s = IDLE_S
        while True:
            reads, stop = self._gather(writes, RETRY_S if self._failures else wait_s)
            if self._failures and not stop and time.monotonic() < self._retry_at:
                pass  # what comes meanwhile waits, too
            elif writes or self._failures:
                wait_s = IDLE_S
                writes = self._commit(writes)
            elif not reads and not stop:
                wait_s = self._tidy()
            self._answer(reads)
            if stop:
                break
        try:
            self._file.close()
        except sqlite3.Error as error:
            log.error("the spool cannot be closed, which loses nothing: %s", error)
        self._post(self._closed.set_result, None)

    def _gather(self, writes: list[Write], wait_s: float) -> tuple[list[Read], bool]:
        """Takes all that waits, or waits for it; writes go to `writes`. Returns the questions, and whether to stop."""
        reads: list[Read] = []
        try:
            items = self._queue.get(timeout=wait_s)
            while items is not None:
                for item in items:
                    if isinstance(item, Read):
                        reads.append(item)
                    else:
                        writes.append(item)
                items = self._queue.get_nowait()
        except queue.Empty:
            return reads, False
        return reads, True

    def _tidy(self) -> float:
        """What is done when nothing else is; returns how long to wait before the next time."""
        try:
            if self._file.over_time():
                self._post(self._settled, [], self._file.write([]))
                return 0.0
            return 0.0 if self._file.tidy() else LOOK_S
        except (sqlite3.Error, ConfigError, OSError) as error:
            self._repair(error)
            return LOOK_S

    # -- writing ------------------------------------------------------------------------------------------------------

    def _commit(self, writes: list[Write]) -> list[Write]:
        """What is still to be written afterwards: nothing, unless the disk takes nothing."""
        try:
            outcome = self._write(writes) if writes else self._file.probe()
        except (sqlite3.OperationalError, ConfigError, OSError) as error:
            return self._failed(writes, error)
        except Exception:
            log.exception("the spool cannot write %d records together and writes them one by one", len(writes))
            outcome = self._commit_each(writes)
        if self._failures:
            log.warning("the spool writes again")
            self._failures = 0
            self._post(self._troubled, False)
        self._post(self._settled, writes, outcome)
        return []

    def _write(self, writes: list[Write]) -> Outcome:
        try:
            return self._file.write(writes)
        except (sqlite3.OperationalError, OSError) as error:
            if not disk_is_full(error):
                raise
            if not self._failures:
                log.warning("the disk is full (%s): the spool makes room among what it holds", error)
        freed = self._file.free_up(writes)
        self._post(self._settled, [], freed)
        return self._file.write(writes)

    def _failed(self, writes: list[Write], error: Exception) -> list[Write]:
        """Lets go of what others would wait for: captures at once, results for the cloud at the second try."""
        if not self._failures:
            log.error("the spool cannot write and tries again: %s", error)
        self._failures += 1
        self._retry_at = time.monotonic() + RETRY_S
        if self._failures == 2:
            log.error("the spool still cannot write: results for the cloud are dropped until it can")
            self._post(self._troubled, True)
        kinds = ("capture",) if self._failures == 1 else ("capture", "result")
        shed = [
            write
            for write in writes
            if isinstance(write, Append)
            and write.kind in kinds
            and not write.sent
            and (write.kind == "capture" or write.link != HELD_LINK)
        ]
        if shed:
            outcome = Outcome()
            outcome.dropped.update((write.link, write.kind) for write in shed)
            self._post(self._settled, list(shed), outcome)
        gone = set(map(id, shed))
        return [write for write in writes if id(write) not in gone]

    def _commit_each(self, writes: list[Write]) -> Outcome:
        """One write that SQLite or msgpack cannot take must not hold up the others."""
        total = Outcome()
        for write in writes:
            try:
                outcome = self._file.write([write])
                total.dropped += outcome.dropped
                total.expired += outcome.expired
                total.revived += outcome.revived
                total.lost |= outcome.lost
                total.bytes, total.dead = outcome.bytes, outcome.dead
            except Exception as error:
                log.error("a record cannot be written and is dropped: %s", error)
                if isinstance(write, Append) and not write.sent:
                    total.dropped[write.link, write.kind] += 1
        return total

    # -- reading ------------------------------------------------------------------------------------------------------

    def _answer(self, reads: list[Read]) -> None:
        for read in reads:
            found = None
            try:
                found = read.ask()
            except Exception as error:
                log.error("the spool cannot be read: %s", error)
                self._repair(error)
            self._post(read.answer, found)

    def _repair(self, error: Exception) -> None:
        if not isinstance(error, sqlite3.Error) or not is_corrupt(error):
            return
        try:
            self._file.start_afresh(error)
            self._post(self._settled, [], self._file.write([]))
        except (sqlite3.Error, OSError) as again:
            log.error("the spool cannot be begun anew: %s", again)

    def _post(self, call: Callable[..., None], *values: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *values)
        except RuntimeError:
            log.debug("the loop has ended before the spool")
