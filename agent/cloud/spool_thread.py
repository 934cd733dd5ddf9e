"""The spool's thread: it gathers what waits into one commit, and answers what is asked of the file.

While it syncs, what comes meanwhile waits for the next commit (group commit), so that a burst costs few syncs. No error
ends it: a disk that is full or fails is tried again, a broken file is begun anew, and a record that cannot be written
at all is left out, logged and counted.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agent.cloud.spool_file import Outcome, SpoolFile, is_corrupt
from agent.cloud.spool_records import Append, Key, Write
from agent.errors import ConfigError

log = logging.getLogger(__name__)

RETRY_S = 1.0  # between tries on a disk that is full or fails


@dataclass(slots=True, eq=False)
class Read:
    """A question for the file, and who takes its answer on the loop; None where the file could not be read."""

    ask: Callable[[], Any]
    answer: Callable[[Any], None]


Item = Write | Read


class SpoolThread:
    """Owns `file`; only `start`, `put` and `stop` belong to the loop's thread.

    Args:
        settled: called on the loop with each group that is on the disk.
    """

    def __init__(
        self,
        file: SpoolFile,
        loop: asyncio.AbstractEventLoop,
        settled: Callable[[list[Write], Outcome], None],
    ) -> None:
        self._file = file
        self._loop = loop
        self._settled = settled
        self._queue: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self._opened: asyncio.Future[tuple[int, Counter[Key]]] = loop.create_future()
        self._closed: asyncio.Future[None] = loop.create_future()

    async def start(self) -> tuple[int, Counter[Key]]:
        """Opens the file; returns its highest seq and its records' count.

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
        failing = False
        while True:
            reads, stop = self._gather(writes, RETRY_S if failing else None)
            failing = not self._commit(writes, failing)
            if not failing:
                writes = []
            self._answer(reads)
            if stop:
                break
        try:
            self._file.close()
        except sqlite3.Error as error:
            log.error("the spool cannot be closed, which loses nothing: %s", error)
        self._post(self._closed.set_result, None)

    def _gather(self, writes: list[Write], wait_s: float | None) -> tuple[list[Read], bool]:
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

    def _commit(self, writes: list[Write], failing: bool) -> bool:
        """Whether `writes` are on the disk now (or are such that they never can be)."""
        if not writes:
            return True
        try:
            outcome = self._file.write(writes)
        except (sqlite3.OperationalError, ConfigError, OSError) as error:
            if not failing:
                log.error("the spool cannot write and tries again: %s", error)
            return False
        except Exception:
            log.exception("the spool cannot write %d records together and writes them one by one", len(writes))
            outcome = self._commit_each(writes)
        if failing:
            log.warning("the spool writes again")
        self._post(self._settled, writes, outcome)
        return True

    def _commit_each(self, writes: list[Write]) -> Outcome:
        """One write that SQLite or msgpack cannot take must not hold up the others."""
        total = Outcome()
        for write in writes:
            try:
                outcome = self._file.write([write])
                total.dropped += outcome.dropped
                total.lost |= outcome.lost
            except Exception as error:
                log.error("a record cannot be written and is dropped: %s", error)
                if isinstance(write, Append):
                    total.dropped[write.link, write.kind] += 1
        return total

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
