"""Documents as they come: each is journalled as the next to be deployed, answered again, or refused; then acknowledged.

One deployment waits at most: a newer one takes its place. Runs on the agent's loop; documents are taken in their order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from agent.deployment.admission import Admission
from agent.deployment.definition import FORCE_RESET, Deployment
from agent.deployment.document import UNREADABLE, deployment_id_of
from agent.deployment.envelope import UnprovenError
from agent.deployment.identity import identity_of
from agent.deployment.journal import Record
from agent.deployment.ledger import Ledger
from agent.deployment.statuses import IN_PROGRESS, Status, reason_of, status_of
from agent.deployment.store import Store
from agent.deployment.threads import in_thread
from agent.deployment.troubles import translated
from agent.errors import AgentError, RejectedError

log = logging.getLogger(__name__)

Accepted = Callable[[], None]
Follow = Callable[[bytes], Awaitable[bytes]]


class Intake:
    """Takes documents.

    Args:
        follow: gives the document that another points to, or a document itself.
        arrived: called when a deployment waits.
        cancel: fails what is under way.
    """

    def __init__(
        self,
        store: Store,
        core: str,
        ledger: Ledger,
        admission: Admission,
        follow: Follow,
        arrived: Callable[[], None],
        cancel: Callable[[AgentError], object],
    ) -> None:
        self._store = store
        self._core = core
        self._ledger = ledger
        self._admission = admission
        self._follow = follow
        self._arrived = arrived
        self._cancel = cancel
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: set[asyncio.Task[None] | None] = set()
        self._came = self._newest = 0  # documents that came; the newest that had its turn

    def take(self, body: bytes, *, retained: bool, accepted: Accepted, identity: bytes | None = None) -> None:
        """Takes a document in its turn; `accepted` is called when it is journalled, or refused and that reported."""
        self._came += 1
        self._spawn(self._take(body, retained, accepted, identity, self._came))

    def withdraw(self, id: str, why: AgentError) -> bool:
        """Refuses the deployment that waits its turn, if it is that one; returns whether it is."""
        waiting = self._ledger.journal.waiting
        if waiting is None or waiting.id != id:
            return False
        self._spawn(self._withdraw(waiting, why))
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _withdraw(self, record: Record, why: AgentError) -> None:
        async with self._turn:
            active = self._ledger.journal.active
            if self._ledger.journal.waiting is not record:  # its turn has come, or another took its place
                if active is not None and active.id == record.id:
                    self._cancel(why)
                return
            self._ledger.journal.waiting = None
            status = self._refusal(record.id, why)
            self._ledger.keep(record.body_digest, status)
            await self._ledger.try_save()
            self._ledger.tell(status)

    async def close(self) -> None:
        """Waits for what has come, but for what must be fetched first: that comes again, as nobody was told of it."""
        for task in list(self._following):
            if task is not None:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _take(self, body: bytes, retained: bool, accepted: Accepted, identity: bytes | None, number: int) -> None:
        document = await self._followed(body)
        if document is None:
            accepted()
            return
        digest, id = await in_thread(identity_of, document, identity if document is body else None)
        async with self._turn:
            try:
                if number < self._newest and document is not body:
                    raise RejectedError("SUPERSEDED", "a newer document came while this one was fetched")
                self._newest = max(number, self._newest)
                if not self._answer_again(id, digest):
                    await self._admit(document, digest, retained)
            except RejectedError as error:
                await self._refuse(id, digest, error)
            except (AgentError, OSError) as error:  # not the document's fault: it may come again
                self._ledger.tell(self._refusal(id, translated(error)))
            except Exception as error:  # the next document must still be taken
                log.exception("deployment %s could not be taken", id)
                text = f"the document could not be taken: {type(error).__name__}"
                self._ledger.tell(self._refusal(id, AgentError("DEPLOYMENT_BROKEN", text, "Report this as a bug.")))
        accepted()

    async def _followed(self, body: bytes) -> bytes | None:
        """The document; None where it is a pointer that leads nowhere, and that was told."""
        task = asyncio.current_task()
        self._following.add(task)
        try:
            return await self._follow(body)
        except (AgentError, OSError) as error:
            id = await in_thread(deployment_id_of, body)
            log.warning("the pointer of deployment %s leads nowhere: %s", id, error)
            self._ledger.tell(self._refusal(id, translated(error)))
            return None
        finally:
            self._following.discard(task)

    def _answer_again(self, id: str, digest: str) -> bool:
        """Whether the id is known; then its last status was said again, or the other body refused."""
        known, status = self._ledger.journal.statuses.get(id, (None, None))
        if status is None or id == UNREADABLE:
            return False
        if known == digest:
            latest = self._ledger.latest
            self._ledger.pass_on(latest if latest and latest["deploymentId"] == id else status)
        else:
            text = f"another document was sent with the DeploymentId {id} before"
            reused = RejectedError("ID_REUSED", text, "Send it with a new DeploymentId.")
            self._ledger.pass_on(self._refusal(id, reused))
        return True

    async def _admit(self, body: bytes, digest: str, retained: bool) -> None:
        journal = self._ledger.journal
        deployment = await in_thread(self._admission.check, body, retained=retained, floor=journal.floor)
        async with self._ledger.documents:
            await in_thread(self._store.journal.add_body, digest, body)
            record = Record(deployment.id, digest, retained=retained)
            superseded, journal.waiting = journal.waiting, record
        statuses = [self._received(deployment)]
        if superseded is not None:
            statuses.insert(0, self._superseded(superseded, deployment))
        try:
            with self._ledger.taken_back_if_lost(*(status["deploymentId"] for status in statuses)):
                self._ledger.keep(digest, statuses[-1])
                if superseded is not None:
                    self._ledger.keep(superseded.body_digest, statuses[0])
                await self._ledger.save()
        except OSError:
            if journal.waiting is record:
                journal.waiting = superseded
                raise
            # Its turn has come meanwhile: what becomes of it is journalled as it goes.
        for status in statuses:
            self._ledger.tell(status)
        if deployment.type == FORCE_RESET:
            self._cancel(AgentError("CANCELLED", f"the deployment was cancelled by {deployment.id}"))
        self._arrived()

    def _received(self, deployment: Deployment) -> Status:
        return status_of(deployment.id, self._core, IN_PROGRESS, "received", time.time(), warnings=deployment.warnings)

    def _superseded(self, record: Record, by: Deployment) -> Status:
        text = f"the deployment {by.id} came before its turn"
        return self._refusal(record.id, RejectedError("SUPERSEDED", text))

    async def _refuse(self, id: str, digest: str, error: RejectedError) -> None:
        log.warning("deployment %s is refused: %s", id, error.code)
        status = self._refusal(id, error)
        if id != UNREADABLE and not isinstance(error, UnprovenError):
            self._ledger.keep(digest, status)
            await self._ledger.try_save()
        self._ledger.tell(status)

    def _refusal(self, id: str, error: AgentError) -> Status:
        return status_of(id, self._core, "REJECTED", "received", time.time(), reason=reason_of(error))
