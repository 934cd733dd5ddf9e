"""Drives deployments, one at a time: from the document's bytes to the committed group, or back to what ran before.

`machine` says what follows what, `course` does it, `ledger` remembers and tells it. Nothing that a document asks for,
and nothing that goes wrong on its way, changes what runs: until the new workers are ready, the link is turned and the
requests are routed, the old group is the group. Everything runs on the agent's loop, and nothing here blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from agent.deployment import machine, pointer, recovery
from agent.deployment.admission import Admission, Admit
from agent.deployment.course import Activation, Course, Install, Limits, Outcome
from agent.deployment.fresh_urls import Ask
from agent.deployment.health import MAX_PROBATION_S
from agent.deployment.installation import install
from agent.deployment.intake import Intake
from agent.deployment.journal import Record
from agent.deployment.ledger import Ledger, Report
from agent.deployment.machine import Effect, Event, State
from agent.deployment.quarantine import Entry, is_verdict
from agent.deployment.statuses import Status, reason_of, rfc3339
from agent.deployment.store import Group, Store
from agent.deployment.threads import in_thread
from agent.deployment.troubles import translated
from agent.errors import AgentError, RejectedError
from agent.settings import Settings

__all__ = ["Activation", "Deployer", "Limits"]

log = logging.getLogger(__name__)

CANCEL_S: Final = 10.0  # how long what was cancelled may take to end
_PLAIN: Final = str.maketrans({":": "-", ".": "-"})  # a time as a part of an id
Action = Callable[[Record], Awaitable[Outcome]]


class Deployer:
    """Everything that happens to deployments on this core.

    At a start: `recover`; the caller starts the group that it gives; `start`. At the end: `close`.

    Args:
        store: the state directory, locked by this process.
        report: gets each status; `reported` is to be called once a final one is safe with a broker or in the spool.
        admit: raises RejectedError for a deployment that its document alone does not show to be wrong.
        install: brings a group's objects.
        ask_anew: asks the channel of a deployment for its document once more, see `fresh_urls`.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        activation: Activation,
        report: Report,
        *,
        admit: Admit | None = None,
        limits: Limits | None = None,
        install: Install = install,
        ask_anew: Ask | None = None,
    ) -> None:
        self._store = store
        self._limits = limits or Limits(fetch=settings.fetch, caps=settings.unpack)
        self._ledger = Ledger(store, settings.core, report)
        admission = Admission(store, settings, admit)
        self._course = Course(store, settings, activation, self._ledger, admission, self._limits, install, ask_anew)
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()

        def follow(body: bytes) -> Awaitable[bytes]:
            return pointer.follow(body, settings, store.root, self._limits.fetch)

        self._intake = Intake(store, settings.core, self._ledger, admission, follow, self._wake.set, self.cancel)
        self._driver: asyncio.Task[None] | None = None
        self._action: asyncio.Future[Outcome] | None = None
        self._cancelled: AgentError | None = None
        self._closing = False

    @property
    def latest(self) -> Status | None:
        """The latest status of the latest deployment; None before the first."""
        return self._ledger.latest

    def receive(
        self, body: bytes, *, retained: bool, accepted: Callable[[], None], identity: bytes | None = None
    ) -> None:
        """Takes a document; returns at once.

        Args:
            retained: whether the broker had kept the message.
            accepted: called once the document is journalled, or refused and that reported: the message may be
                acknowledged then.
            identity: what tells the document from others with its id, where that is not its bytes: a channel may give
                the same one out with other signatures in its URLs.
        """
        self._intake.take(body, retained=retained, accepted=accepted, identity=identity)

    def followed(self, listener: Report) -> contextlib.AbstractContextManager[None]:
        """While it is open, `listener` gets each status too."""
        return self._ledger.followed(listener)

    def reported(self, id: str) -> None:
        """The final status of a deployment is safe elsewhere: it is not said again at the next start."""
        self._ledger.heard(id)

    def cancel(self, why: AgentError, id: str | None = None) -> bool:
        """Fails the deployment under way with `why`, if it is not swapping just now; returns whether it does.

        In probation it is turned back; as ever, a step that is taken already may come first.

        Args:
            id: only this deployment; if it still waits its turn, it is refused with `why`.
        """
        active = self._ledger.journal.active
        if id is not None and (active is None or active.id != id):
            return self._intake.withdraw(id, why)
        if active is None or active.state not in machine.CANCELLABLE:
            return False
        self._cancelled = why
        if self._action is not None:
            self._action.cancel()
        return True

    def cancel_by_hand(self) -> str:
        """Ends the deployment under way, or the one that waits; returns its id, under which its end is told.

        Raises:
            RejectedError: NOTHING_TO_CANCEL, TOO_LATE_TO_CANCEL.
        """
        journal = self._ledger.journal
        record = journal.active or journal.waiting
        if record is None:
            raise RejectedError("NOTHING_TO_CANCEL", "no deployment is under way", "Look at `marram status`.")
        why = AgentError("CANCELLED", "the deployment was cancelled by hand", "Deploy again.")
        if not self.cancel(why, record.id):
            text = f"the deployment {record.id} is {machine.PHASES[record.state]} just now"
            remedy = "Wait for its end; then `marram rollback` turns back."
            raise RejectedError("TOO_LATE_TO_CANCEL", text, remedy)
        return record.id

    async def roll_back(self) -> str:
        """Begins to turn back to the last good group; returns the id under which this is told. Needs no network.

        A deployment in probation is turned back at once; else the group before the current one is put in its place,
        as a deployment whose group is there already.

        Raises:
            RejectedError: NOTHING_TO_ROLL_BACK, DEPLOYMENT_UNDER_WAY.
            AgentError: the journal cannot be written.
        """
        journal = self._ledger.journal
        active = journal.active
        if active is not None and active.state is State.PROBATION:
            self.cancel(AgentError("ROLLED_BACK", "the deployment was turned back by hand", "Deploy again."))
            return active.id
        if active is not None or journal.waiting is not None:
            text = f"the deployment {(active or journal.waiting).id} is under way"  # type: ignore[union-attr]
            raise RejectedError("DEPLOYMENT_UNDER_WAY", text, "Wait for its end, or run `marram cancel` first.")
        target = await in_thread(recovery.last_good, self._store)
        if journal.active is not None or journal.waiting is not None:
            raise RejectedError("DEPLOYMENT_UNDER_WAY", "a deployment came just now", "Run `marram cancel` first.")
        id = f"rollback-{rfc3339(time.time()).translate(_PLAIN)}"
        journal.waiting = Record(id, "", State.WARMING, group=target.number, rollback=target.deployment.id)
        try:
            await self._ledger.begin(journal.waiting)
        except OSError as error:
            raise translated(error) from error
        self._wake.set()
        return id

    @property
    def quarantine(self) -> tuple[Entry, ...]:
        """What failed its trial on this core and is not tried again by itself."""
        return tuple(self._ledger.journal.quarantine)

    async def recover(self) -> Group | None:
        """What is to run now, every file of it verified. To be called once, before all else."""
        await self._ledger.load()
        await in_thread(self._store.clean)
        journal = self._ledger.journal
        if journal.active is not None:
            journal.active = await in_thread(recovery.resume, self._store, journal.active)
            await self._ledger.try_save()
        unproven = journal.active.group if journal.active and journal.active.rollback is None else None
        group = await in_thread(recovery.whole_group, self._store, unproven)
        await self._course.align_host(group)
        return group

    def start(self) -> None:
        """Begins, or goes on with, what there is to deploy; says again what may not have been heard."""
        self._ledger.tell_again()
        self._driver = asyncio.get_running_loop().create_task(self._drive(), name="deployer")

    async def idle(self) -> None:
        """Returns when no deployment is under way or waits, and what the last one left over is removed."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stops where it is; the next start goes on from there and does not count this as an attempt."""
        self._closing = True
        await self._intake.close()
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.wait({self._driver})
        active = self._ledger.journal.active
        if active is not None:
            self._ledger.journal.active = replace(active, attempt=active.attempt - 1)
            await self._ledger.try_save()
        await self._ledger.close()

    # -- the driver -------------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        journal = self._ledger.journal
        while not self._closing:  # asyncio.wait_for may lose a cancellation (until Python 3.12)
            self._wake.clear()
            if journal.active is None and journal.waiting is not None:
                journal.active = replace(journal.waiting, previous=self._store.current_number())
                journal.waiting = self._cancelled = None
                await self._ledger.try_save()
            if journal.active is not None:
                await self._step(journal.active)
            elif journal.waiting is None:
                self._idle.set()
                await self._wake.wait()
                self._idle.clear()

    async def _step(self, record: Record) -> None:
        """Does what the record's state is for, and steps."""
        self._ledger.view.phase = machine.PHASES[record.state]
        try:
            outcome = await self._do(record)
        except RejectedError as error:
            event = Event.REFUSED if record.state is State.RECEIVED else Event.FAULT
            outcome = Outcome(event, {"reason": reason_of(error)})
        except (AgentError, OSError) as error:
            outcome = Outcome(Event.FAULT, {"reason": reason_of(translated(error))})
            if record.state in machine.TRIALS and isinstance(error, AgentError) and is_verdict(error):
                outcome.changes["quarantined"] = await self._course.quarantine(record, outcome.changes["reason"])
        await self._go(self._ledger.journal.active or record, outcome)  # its attempts may have been counted

    async def _do(self, record: Record) -> Outcome:
        limits, course = self._limits, self._course
        if record.state is State.TURNING_BACK:
            self._cancelled = None  # it came too late: this is what it asked for
        actions: dict[State, tuple[Action, float]] = {
            State.RECEIVED: (course.begin, limits.step_s),
            State.FETCHING: (course.fetch, limits.fetch_s),
            State.WARMING: (course.warm, limits.warm_s),
            State.CHECKING: (course.check, limits.check_s),
            State.SWAPPING: (course.swap, limits.step_s),
            State.PROMOTING: (course.promote, limits.step_s),
            State.PROBATION: (course.observe, MAX_PROBATION_S + limits.check_s),
            State.TURNING_BACK: (course.turn_back, limits.step_s + limits.warm_s),
        }
        if record.attempt > limits.attempts and record.state is not State.TURNING_BACK:
            text = f"the agent or its installer ended {limits.attempts} times during it"
            raise AgentError("TOO_MANY_ATTEMPTS", text, "See the agent's log for why, then deploy again.")
        action, deadline_s = actions[record.state]
        return await self._within(action(record), deadline_s)

    async def _within(self, action: Awaitable[Outcome], deadline_s: float) -> Outcome:
        """The action's outcome; a deadline that passes, a cancellation and a mistake of ours are AgentErrors."""
        phase = self._ledger.view.phase
        self._action = asyncio.ensure_future(action)
        if self._cancelled is not None:  # while nothing ran that could have been stopped
            self._action.cancel()
        try:
            done, _ = await asyncio.wait({self._action}, timeout=deadline_s)
            if not done:
                phase = self._ledger.view.phase
                raise AgentError("DEADLINE_EXCEEDED", f"{phase} took longer than {deadline_s:g} s", "Deploy again.")
            return self._action.result()
        except asyncio.CancelledError:
            if self._cancelled is None or self._closing:
                raise
            raise self._cancelled from None
        except (AgentError, OSError):
            raise
        except Exception as error:
            log.exception("a deployment failed while %s", phase)
            text = f"{phase} failed: {type(error).__name__}: {error}"
            raise AgentError("DEPLOYMENT_BROKEN", text, "Report this as a bug, with the agent's log.") from error
        finally:
            if not self._action.done():
                self._action.cancel()
                await asyncio.wait({self._action}, timeout=CANCEL_S)
            self._action = self._cancelled = None

    async def _go(self, record: Record, outcome: Outcome) -> None:
        """Steps, and carries out the effects; what cannot be journalled is a fault of its own."""
        step = machine.step(record.state, outcome.event)
        after = replace(record, state=step.state, **outcome.changes)
        if outcome.event is Event.FAULT:
            after = replace(after, reason=_reason(record, after))
            log.warning("deployment %s failed: %s", record.id, (after.reason or {}).get("code"))
        if Effect.JOURNAL not in step.effects:
            self._ledger.journal.active = after
        status: Status | None = None
        for effect in step.effects:
            if effect is Effect.JOURNAL:
                try:
                    status = await self._ledger.note(after)
                except OSError as error:
                    if outcome.event not in (Event.FAULT, Event.TURNED_BACK, Event.REFUSED):
                        self._ledger.journal.active = record
                        await self._go(record, Outcome(Event.FAULT, {"reason": reason_of(translated(error))}))
                        return
                    log.error("deployment %s: the journal cannot be written: %s", record.id, error)
                    self._ledger.journal.active = None if step.state in machine.FINAL else after
            else:
                await self._carry_out(effect, after, status)

    async def _carry_out(self, effect: Effect, record: Record, status: Status | None) -> None:
        if effect is Effect.REPORT:
            self._ledger.tell(status or self._ledger.status(record))
        elif effect is Effect.RELEASE:
            await self._course.release(record)
        elif effect is Effect.DISCARD:
            await self._course.discard(record)
        elif effect is Effect.PRUNE:
            await self._course.prune(record)


def _reason(before: Record, after: Record) -> dict[str, Any] | None:
    """The reason of a fault; one while turning back has a code of its own, as what ran before may not run now."""
    if before.state is not State.TURNING_BACK or before.reason is None or after.reason is None:
        return after.reason
    text = f"{before.reason['message']} Then turning back failed: {after.reason['code']}: {after.reason['message']}"
    return {"code": "ROLLBACK_FAILED", "message": text}
