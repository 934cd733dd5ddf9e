"""What each state of a deployment is for: the actions that the driver calls, each giving the event that follows.

Runs on the agent's loop; what blocks runs in threads and in the installer. An action raises AgentError or OSError when
it fails; it leaves what runs as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from agent.deployment import host_links, overlays, quarantine
from agent.deployment.admission import Admission
from agent.deployment.definition import Deployment, Probation
from agent.deployment.fresh_urls import EXPIRED, Ask, FreshUrls
from agent.deployment.installation import Installed, OnEvent, install, job_of
from agent.deployment.journal import Record
from agent.deployment.ledger import Ledger
from agent.deployment.machine import Event, State
from agent.deployment.prerequisites import folders_of, probe_interpreters
from agent.deployment.store import Group, Known, Store, empty_group
from agent.deployment.threads import in_thread, in_thread_aside
from agent.errors import AgentError, IntegrityError
from agent.settings import Caps, FetchLimits, Settings
from agent.values import dataclass

LINK_TRIES: Final = 4  # what failed must not be what the next start runs
LINK_PAUSE_S: Final = 1.0
Install = Callable[[Path, dict[str, Any], OnEvent], Awaitable[Installed]]

log = logging.getLogger(__name__)


class Activation(Protocol):
    """The workers, as deployments need them. An AgentError from any of these fails the deployment."""

    async def warm(self, group: Group) -> None:
        """Starts the group's workers beside those that run; returns when all are ready."""

    async def check(self, group: Group) -> None:
        """Has the group's workers pass the health checks of their models."""

    def remarks(self, group: Group) -> tuple[str, ...]:
        """What the group's warm workers have to say that the deployment's warnings are to hold."""

    async def promote(self, group: Group) -> None:
        """Routes requests to the group's workers; returns when the brokers know. Group 0 has no workers.

        The workers of before are kept, so that to warm and promote their group again takes no time.
        """

    async def observe(self, group: Group, bounds: Probation) -> None:
        """Watches the workers in use until the probation is over."""

    async def discard(self, group: Group) -> None:
        """Ends the group's workers, unless they are in use; it need not have any."""

    async def release(self, group: Group) -> None:
        """Ends all kept workers but those of this group."""

    def in_use(self) -> set[int]:
        """The numbers of the groups that workers still run of."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a deployment; every state has a deadline, so that none can be for ever.

    Attributes:
        attempts: how often a deployment is begun or resumed after the agent or its installer died.
        fetch_s, warm_s, step_s: deadlines of fetching, of warming, and of anything else, seconds.
        check_s: of the health checks; in probation, beyond its own time.
        probation: of a document that says nothing of it.
    """

    attempts: int = 3
    fetch_s: float = 6 * 3600.0
    warm_s: float = 600.0
    step_s: float = 120.0
    check_s: float = 180.0
    probation: Probation = field(default_factory=Probation)
    fetch: FetchLimits = field(default_factory=FetchLimits)
    caps: Caps = field(default_factory=Caps)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an action: the event, and what of the record changes with it."""

    event: Event
    changes: dict[str, Any] = field(default_factory=dict)


class Course:
    """The actions of one core's deployments."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        activation: Activation,
        ledger: Ledger,
        admission: Admission,
        limits: Limits,
        install: Install = install,
        ask_anew: Ask | None = None,
    ) -> None:
        self._urls = FreshUrls(store, ask_anew)
        self._store = store
        self._run_installer = install
        self._settings = settings
        self._activation = activation
        self._ledger = ledger
        self._admission = admission
        self._limits = limits
        self._routed: int | None = None  # the group that this process last began to route to

    async def begin(self, record: Record) -> Outcome:
        """Asks all rules again, as the policy may have changed since the document came."""
        body = await in_thread(self._store.journal.body, record.body_digest)
        floor = self._ledger.journal.floor
        deployment = await in_thread(self._admission.check, body, retained=record.retained, floor=floor)
        promised = [each.digest for each in deployment.resources] + [each.code_digest for each in deployment.functions]
        self._refuse_quarantined(deployment, [digest.removeprefix("sha256:") for digest in promised if digest])
        self._ledger.view.versions = {}
        self._ledger.view.previous = await in_thread(self._versions_of, record.previous)
        return Outcome(Event.ACCEPTED, {"warnings": deployment.warnings})

    async def fetch(self, record: Record) -> Outcome:
        """Has everything fetched and unpacked, and writes the group."""
        deployment, body = await in_thread(self._admission.read, record)
        await probe_interpreters(deployment, self._settings)
        folders = await in_thread(folders_of, deployment, self._settings.functions)
        known = await in_thread_aside(self._store.known)
        sealed = await in_thread(self._store.sealed) if deployment.secrets else {}
        installed = await self._install(self._job(deployment, folders, known, sealed), record)
        self._refuse_quarantined(deployment, (*installed.objects.values(), *installed.code.values()))
        journal = self._ledger.journal
        journal.last_group = max(journal.last_group, *self._store.numbers(), 0) + 1
        group = await in_thread_aside(
            self._store.write_group,
            journal.last_group, deployment, body, installed.objects, installed.code, installed.known, installed.secrets,
        )  # fmt: skip
        self._ledger.view.versions = group.versions
        return Outcome(Event.FETCHED, {"group": group.number})

    def _refuse_quarantined(self, deployment: Deployment, digests: Iterable[str]) -> None:
        if not deployment.retry_quarantined:
            quarantine.refuse(self._ledger.journal.quarantine, (f"sha256:{hex}" for hex in digests))

    def _job(
        self,
        deployment: Deployment,
        folders: Mapping[str, Path],
        known: Mapping[str, Known],
        sealed: Mapping[str, Path],
    ) -> dict[str, Any]:
        limits, allowed = self._limits, self._settings.policy.sources
        serving = any(self._activation.in_use())  # group 0 has no workers
        return job_of(
            deployment, folders, known, allowed, limits.fetch, limits.caps, sealed, self._settings.aws, aside=serving
        )

    async def _install(self, job: dict[str, Any], record: Record) -> Installed:
        self._urls.begin()
        while True:
            try:
                return await self._run_installer(self._store.root, job, self._on_event)
            except AgentError as error:
                if error.code == EXPIRED and await self._urls.into(job, record):
                    continue
                active = self._ledger.journal.active
                if error.code != "INSTALLER_LOST" or active is None or active.attempt >= self._limits.attempts:
                    raise
                log.warning("deployment %s: %s; once more", active.id, error.message)
                self._ledger.journal.active = replace(active, attempt=active.attempt + 1)
                await self._ledger.save()

    def _on_event(self, event: dict[str, Any]) -> None:
        """The installer's phases and progress become statuses; they are not journalled."""
        self._urls.heard(event)
        active = self._ledger.journal.active
        if active is None or active.state is not State.FETCHING or event["event"] == "object":
            return
        self._ledger.view.phase = event.get("phase", self._ledger.view.phase)
        more: dict[str, Any] = {"phase": self._ledger.view.phase}
        if event["event"] == "progress":
            more["progress"] = {"id": event["id"], "bytes": event["bytes"], "total": event["total"]}
        self._ledger.tell(self._ledger.status(active, **more))

    async def warm(self, record: Record) -> Outcome:
        """Has the new workers started; what another process wrote is verified first."""
        group = await self.group(record)
        if record.attempt > 1 or record.rollback is not None:
            await in_thread_aside(self._store.verify, group)
        await self._activation.warm(group)
        remarks = dict.fromkeys((*record.warnings, *self._activation.remarks(group)))
        return Outcome(Event.WARMED, {"warnings": tuple(remarks)})

    async def check(self, record: Record) -> Outcome:
        """Has the new workers' models pass their health checks."""
        await self._activation.check(await self.group(record))
        return Outcome(Event.HEALTHY)

    async def swap(self, record: Record) -> Outcome:
        """Turns the link."""
        await in_thread(self._store.swap, record.group)
        return Outcome(Event.SWAPPED)

    async def promote(self, record: Record) -> Outcome:
        """Has requests routed to the new workers."""
        group = await self.group(record)
        self._routed = group.number
        await self._activation.promote(group)
        links = await self.align_host(group)
        on_trial = await self._probation(record) is not None
        if not on_trial:
            self._lift_quarantine(group)
        return Outcome(
            Event.ON_TRIAL if on_trial else Event.PROMOTED, {"warnings": (*record.warnings, *links.warnings)}
        )

    async def observe(self, record: Record) -> Outcome:
        """Watches the new workers at work."""
        group, bounds = await self.group(record), await self._probation(record)
        if bounds is not None:
            deadline_s = bounds.seconds + self._limits.check_s
            try:
                await asyncio.wait_for(self._activation.observe(group, bounds), deadline_s)
            except asyncio.TimeoutError:
                text = f"probation took longer than {deadline_s:g} s"
                raise AgentError("DEADLINE_EXCEEDED", text, "Deploy again.") from None
        self._lift_quarantine(group)
        return Outcome(Event.PASSED)

    async def _probation(self, record: Record) -> Probation | None:
        """The bounds of the record's probation; None: it has none, as for what has no function or ran before."""
        if record.rollback is not None:
            return None
        deployment, _ = await in_thread(self._admission.read, record)
        bounds = deployment.probation or self._limits.probation
        return bounds if deployment.functions and bounds.seconds > 0 else None

    async def quarantine(self, record: Record, reason: Mapping[str, str]) -> tuple[str, ...]:
        """Notes, for the next save, that what the record brought failed its trial; returns the digests."""
        if record.rollback is not None or record.group is None:
            return ()
        tried, before = (
            await in_thread(self._digests_of, record.group),
            await in_thread(self._digests_of, record.previous),
        )
        entry = quarantine.entry_of(tried, before, record.id, reason)
        if entry is None:
            return ()
        journal = self._ledger.journal
        journal.quarantine = quarantine.added(journal.quarantine, entry)
        return tuple(entry["digests"])

    def _lift_quarantine(self, group: Group) -> None:
        journal = self._ledger.journal
        if journal.quarantine:
            journal.quarantine = quarantine.lifted(journal.quarantine, _digests(group))

    def _digests_of(self, number: int | None) -> set[str]:
        try:
            return _digests(self._store.group(number)) if number is not None else set()
        except IntegrityError:
            return set()

    async def align_host(self, group: Group | None) -> host_links.Links:
        """Makes the links on the host's file system that the group is to have."""
        root, journal = self._store.root, self._ledger.journal
        wanted = host_links.wanted(group.deployment, self._settings.policy.destinations, root) if group else {}
        links = await in_thread(host_links.align, wanted, journal.host_links, root)
        journal.host_links = list(links.made)
        return links

    async def turn_back(self, record: Record) -> Outcome:
        """Puts the link back, and the routes if they were turned; these also where the disk does not take the link."""
        trouble: OSError | AgentError | None = None
        try:
            await self._put_link_back(record.previous)
        except (OSError, AgentError) as error:
            trouble = error
        if self._routed == record.group:
            before = empty_group()
            if record.previous is not None:
                before = await in_thread(self._store.group, record.previous)
            await self._activation.warm(before)
            await self._activation.promote(before)
            await self.align_host(before)
            self._routed = before.number
        if trouble is not None:
            raise trouble
        return Outcome(Event.TURNED_BACK)

    async def _put_link_back(self, number: int | None) -> None:
        for _ in range(LINK_TRIES - 1):
            try:
                await in_thread(self._store.swap, number)
                return
            except OSError as error:
                log.error("the link cannot be turned back: %s; it is tried again", error)
                await asyncio.sleep(LINK_PAUSE_S)
        await in_thread(self._store.swap, number)

    # -- effects ----------------------------------------------------------------------------------------------------

    async def release(self, record: Record) -> None:
        """Ends the workers that were kept for the way back; its failure changes nothing."""
        try:
            group = await self.group(record)
            await asyncio.wait_for(self._activation.release(group), self._limits.step_s)
        except Exception as error:
            log.error("deployment %s: the workers of before could not be ended: %r", record.id, error)

    async def discard(self, record: Record) -> None:
        """Ends the new workers, if there are any; its failure changes nothing."""
        if record.group is None:
            return
        try:
            group = await self.group(record)
            await asyncio.wait_for(self._activation.discard(group), self._limits.step_s)
        except Exception as error:
            log.error("deployment %s: its workers could not be ended: %r", record.id, error)

    async def prune(self, record: Record) -> None:
        """Removes what no group needs; its failure changes nothing."""
        try:
            keep = {record.previous, *self._activation.in_use()}
            await in_thread_aside(self._store.prune, keep)
            await in_thread_aside(overlays.prune, self._store.root, self._store.objects.names())
            if record.state is State.COMMITTED:
                await in_thread_aside(self._store.objects.clear_downloads)
            async with self._ledger.documents:
                waiting = self._ledger.journal.waiting
                await in_thread(self._store.journal.prune, {waiting.body_digest} if waiting else set())
        except OSError as error:
            log.error("what is no longer needed could not be removed: %s", error)

    async def group(self, record: Record) -> Group:
        """The record's group; statuses name its versions from now on."""
        assert record.group is not None
        group = await in_thread(self._store.group, record.group)
        self._ledger.view.versions = group.versions
        self._ledger.view.previous = await in_thread(self._versions_of, record.previous)
        return group

    def _versions_of(self, number: int | None) -> dict[str, str]:
        try:
            return self._store.group(number).versions if number is not None else {}
        except IntegrityError:
            return {}


def _digests(group: Group) -> set[str]:
    """What the group is made of: its models' versions, and those of its functions' code."""
    return {ref.version for ref in (*group.objects.values(), *group.code.values())}
