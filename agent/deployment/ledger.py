"""The journal in memory, its file, and the statuses that leave from it: nothing final is said before it is durable."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import field
from typing import Any, Final

from agent.deployment import machine
from agent.deployment.document import read_accepted
from agent.deployment.journal import Journal, Record
from agent.deployment.machine import State
from agent.deployment.statuses import IN_PROGRESS, Status, status_of
from agent.deployment.store import Store
from agent.deployment.threads import in_thread
from agent.errors import IntegrityError
from agent.values import dataclass

log = logging.getLogger(__name__)

SAVE_AGAIN_S: Final = 5.0
Report = Callable[[Status], None]


@dataclass(slots=True)
class View:
    """What a status says beyond the record: the phase within a state, and the versions."""

    phase: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    previous: Mapping[str, str] = field(default_factory=dict)


class Ledger:
    """Who changes the journal does it here, on the loop's thread; writing it is a thread's work.

    Args:
        core: this device's name.
        report: gets each status.
    """

    def __init__(self, store: Store, core: str, report: Report) -> None:
        self.journal = Journal()
        self.latest: Status | None = None
        self.view = View()
        self.documents = asyncio.Lock()  # held from a document's writing until the journal names it, and while pruning
        self._store = store
        self._core = core
        self._listeners: list[Report] = [report]
        self._saving = asyncio.Lock()
        self._again: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Reads the journal's file."""
        self.journal = await in_thread(self._store.journal.load)
        self.latest = self.journal.latest
        if self.journal.floor is None:  # a lost journal must not let old documents in again
            self.journal.floor = await in_thread(self._sequence_of_current)

    def _sequence_of_current(self) -> int | None:
        try:
            group = self._store.current()
        except IntegrityError:
            return None
        return group.deployment.sequence if group else None

    async def save(self) -> None:
        """Writes the journal as it is once its turn has come; durable at return.

        Raises:
            OSError: it cannot be written.
        """
        async with self._saving:
            try:
                await in_thread(self._store.journal.save, self.journal.encode())
            except OSError:
                self._save_again()
                raise
            if self._again is not None:
                self._again.cancel()
                self._again = None

    def _save_again(self) -> None:
        """The file is behind what was said, or ahead of it: neither may outlive the disk's trouble."""
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(SAVE_AGAIN_S, lambda: self._spawn(self.try_save()))

    async def try_save(self) -> None:
        """As `save`, where what happens next does not hang on it."""
        try:
            await self.save()
        except OSError as error:
            log.error("the deployments' journal cannot be written: %s", error)

    async def note(self, record: Record) -> Status:
        """Journals where the active deployment is; a final one leaves in the same write that keeps its status.

        Raises:
            OSError: it cannot be written; the journal in memory is as it was, but for the active record.
        """
        journal, status, floor = self.journal, self.status(record), self.journal.floor
        journal.active = record
        try:
            with self.taken_back_if_lost(record.id):
                self._enter(record, status)
                await self.save()
        except OSError:
            journal.active, journal.floor = record, floor
            raise
        return status

    @contextlib.contextmanager
    def taken_back_if_lost(self, *ids: str) -> Iterator[None]:
        """Forgets what is kept of these ids within it, if an OSError ends it."""
        journal = self.journal
        before = [(id, journal.statuses.get(id)) for id in ids]
        known, latest = list(journal.unreported), journal.latest
        try:
            yield
        except OSError:
            for id, kept in before:
                journal.statuses.pop(id, None)
                if kept is not None:
                    journal.remember(*kept)
            journal.unreported = [
                each for each in journal.unreported
                if each["deploymentId"] not in ids or any(each is one for one in known)
            ]  # fmt: skip
            if journal.latest is not None and journal.latest["deploymentId"] in ids:
                journal.latest = latest
            raise

    async def begin(self, record: Record) -> None:
        """Journals and tells a deployment that no document asked for, and that waits its turn now.

        Raises:
            OSError: the journal cannot be written; nothing has begun.
        """
        status = status_of(record.id, self._core, IN_PROGRESS, "received", time.time())
        status["rollbackTo"] = record.rollback
        try:
            with self.taken_back_if_lost(record.id):
                self.keep(record.body_digest, status)
                await self.save()
        except OSError:
            if self.journal.waiting is not record:  # it has begun: from now on this is not what it hangs on
                return
            self.journal.waiting = None
            raise
        self.tell(status)

    def _enter(self, record: Record, status: Status) -> None:
        self.keep(record.body_digest, status)
        if record.state in machine.FINAL:
            self.journal.active = None
        if record.state is State.COMMITTED and record.rollback is None:
            sequence = read_accepted(self._store.journal.body(record.body_digest)).sequence
            if sequence is not None:
                self.journal.floor = max(sequence, self.journal.floor or 0)

    def keep(self, digest: str, status: Status) -> None:
        """Takes a status into the journal as the answer for its id; `save` is still to come."""
        self.journal.remember(digest, status)
        self.journal.latest = status
        if status["status"] != IN_PROGRESS:
            self.journal.unreported.append(status)

    def status(self, record: Record, **more: Any) -> Status:
        """The record's status now."""
        final = record.state in machine.FINAL
        failed = final and record.state is not State.COMMITTED
        if record.rollback is not None:
            more["rollbackTo"] = record.rollback
        if record.quarantined:
            more["quarantined"] = list(record.quarantined)
        return {
            **status_of(
                record.id,
                self._core,
                machine.STATUS.get(record.state, IN_PROGRESS),
                self.view.phase if failed else machine.PHASES[record.state],
                time.time(),
                reason=record.reason if final else None,
                warnings=record.warnings,
                versions=self.view.versions,
                previous=self.view.previous,
            ),
            **more,
        }

    # -- saying it --------------------------------------------------------------------------------------------------

    def tell(self, status: Status) -> None:
        """Reports a status; it is the latest now."""
        self.latest = status
        self.pass_on(status)

    def pass_on(self, status: Status) -> None:
        """Reports a status that is not the latest deployment's."""
        for listener in list(self._listeners):
            try:
                listener(status)
            except Exception as error:  # a listener's trouble is not the deployment's
                log.error("a status of deployment %s could not be reported: %r", status["deploymentId"], error)

    def tell_again(self) -> None:
        """Reports the final statuses that may not have been heard before the last end."""
        for status in list(self.journal.unreported):
            self.pass_on(status)

    def heard(self, id: str) -> None:
        """The final status of a deployment is safe elsewhere."""
        left = [status for status in self.journal.unreported if status["deploymentId"] != id]
        if len(left) != len(self.journal.unreported):
            self.journal.unreported = left
            self._spawn(self.try_save())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Waits for what is being written; what could not be is tried once more."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._again is not None:
            await self.try_save()
        if self._again is not None:
            self._again.cancel()

    @contextlib.contextmanager
    def followed(self, listener: Report) -> Iterator[None]:
        """While it is open, `listener` gets each status too."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)
