"""AWS IoT Jobs as a channel of deployments: what to ask and to tell the cloud, and what to deploy or to cancel. Pure.

One job at a time, one request at a time. What the cloud says of an execution is the truth, so that a lost or doubled
message only costs time: each request has a token and a deadline, is asked again after it with growing, jittered waits,
and after `TRIES` tries is let be until a notification or a new connection. Nothing is kept over a restart: the cloud
gives the job that is IN_PROGRESS out again, and the deployer answers for a deployment that it knows with its last
status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from agent.cloud.job_messages import (
    IN_PROGRESS,
    TERMINAL,
    Execution,
    Kind,
    Message,
    details,
    details_of,
    document_of,
    read,
    topic_of,
)
from agent.cloud.job_values import Action, Anew, Asked, Cancel, Deploy, Job, Publish, Said

__all__ = ["Action", "Anew", "Cancel", "Deploy", "Jobs", "Publish"]

log = logging.getLogger(__name__)

REPLY_S: Final = 20.0  # how long a reply may take
PROGRESS_S: Final = 5.0  # between two updates of a job that goes on
TRIES: Final = 8
BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 60.0
MAX_HOLD_S: Final = 3600.0  # after connections that end whenever something is asked
GONE: Final = frozenset({"ResourceNotFound", "TerminalStateReached"})
CONFLICT: Final = frozenset({"VersionMismatch", "InvalidStateTransition"})
PASSING: Final = frozenset({"RequestThrottled", "InternalError"})
REUSED: Final = "ID_REUSED"
NO_DOCUMENT: Final = "the job's document is no deployment: it must be a JSON object, and its DeploymentId an id"


class Jobs:
    """The channel's state. Each method is one event and returns what is to be done about it.

    Args:
        thing: the thing's name.
        boot: makes this run's tokens differ from those of any other.
        random: gives numbers in [0, 1).
        id_of: reads the id of a deployment's document.
    """

    def __init__(
        self, thing: str, boot: str, random: Callable[[], float], id_of: Callable[[bytes], str | None]
    ) -> None:
        self.job: Job | None = None
        self.asked: Asked | None = None
        self._thing, self._boot, self._random, self._id_of = thing, boot, random, id_of
        self._up = False
        self._waiting = False  # a job may wait in the cloud
        self._let_be: tuple[str, int | None] | None = None  # the execution whose end could not be told
        self._stale: str | None = None  # the deployment whose document is to be asked for again
        self._asked_count = self._tries = self._cut = 0
        self._not_before = 0.0

    @property
    def due_s(self) -> float | None:
        """When `tick` is next to be called; None: not before another event."""
        if self.asked is not None:
            return self.asked.deadline_s
        wish = self._wish()
        return None if wish is None or not self._up else self._earliest(wish)

    # -- events -----------------------------------------------------------------------------------------------------

    def link_up(self, now_s: float) -> list[Action]:
        """The link is up and the broker has answered for the channel's filters."""
        self._up, self._let_be, self._tries = True, None, 0
        self._not_before = now_s + self._hold_s() if self._cut else 0.0
        if self.job is None:
            self._waiting = True
        else:
            self.job = replace(self.job, check=True)
        return self._go(now_s)

    def link_down(self) -> None:
        """The link is down; no reply comes any more."""
        if self.asked is not None:
            self._cut += 1  # a broker that does not allow the request may answer like this
        self._up, self.asked = False, None

    def receive(self, topic: str, payload: bytes, now_s: float) -> list[Action]:
        """A message on one of the channel's filters; what is not understood or not asked for changes nothing."""
        message = read(self._thing, topic, payload)
        if message is None:
            return []
        if message.kind is Kind.NOTIFY:
            self._notified(message.execution)
            return self._go(now_s)
        if not self._up or not self._answers(message):
            return []
        asked, self.asked, self._cut = self.asked, None, 0
        assert asked is not None
        actions = self._replied(asked, message, now_s)
        return [*actions, *self._go(now_s)]

    def taken(self, deployment: str) -> None:
        """The deployer has the document, or has refused it."""
        if self.job is not None and self.job.deployment == deployment:
            self.job = replace(self.job, taken=True)

    def told(self, status: Mapping[str, Any], now_s: float) -> list[Action]:
        """The deployer says how a deployment stands."""
        job = self.job
        if job is None or status["deploymentId"] != job.deployment or job.wanted.final:
            return []
        if job.taken and (status.get("reason") or {}).get("code") == REUSED:
            return []  # of another document that came with the same id
        self.job = replace(job, wanted=Said(status["status"], details_of(status)))
        return self._go(now_s)

    def ask_anew(self, deployment: str, now_s: float) -> list[Action]:
        """The document of that deployment is wanted again: the URLs in it have expired. An `Anew` follows, if any."""
        self._stale = deployment
        return self._go(now_s)

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed."""
        if self.asked is not None and now_s >= self.asked.deadline_s:
            asked, self.asked = self.asked, None
            self._failed(asked, "no reply", now_s)
        return self._go(now_s)

    # -- what to ask next -------------------------------------------------------------------------------------------

    def _wish(self) -> Kind | None:
        job = self.job
        if job is None:
            return Kind.START if self._waiting else None
        if job.check or self._is_stale(job):
            return Kind.GET
        return Kind.UPDATE if job.wanted != job.told else None

    def _is_stale(self, job: Job | None) -> bool:
        return job is not None and bool(job.deployment) and job.deployment == self._stale

    def _earliest(self, wish: Kind) -> float:
        if wish is Kind.UPDATE and self.job and not self.job.wanted.final:
            return max(self._not_before, self.job.told_s + PROGRESS_S)
        return self._not_before

    def _go(self, now_s: float) -> list[Action]:
        wish = self._wish()
        if not self._up or self.asked is not None or wish is None or now_s < self._earliest(wish):
            return []
        self._asked_count += 1
        token = f"{self._boot}-{self._asked_count}"
        job = self.job
        said = job.wanted if job and wish is Kind.UPDATE else None
        self.asked = Asked(wish, token, now_s + REPLY_S, said, wish is Kind.GET and self._is_stale(job))
        topic = topic_of(self._thing, wish, job.id if job else "")
        return [Publish(topic, {**self._request(wish), "clientToken": token})]

    def _request(self, wish: Kind) -> dict[str, Any]:
        job = self.job
        if job is None:
            return {"statusDetails": {"phase": "received"}}
        known = {"executionNumber": job.number} if job.number is not None else {}
        if wish is Kind.GET:
            return {**known, "includeJobDocument": self._is_stale(job)}
        expected = {"expectedVersion": job.version} if job.version is not None else {}
        said = {"status": job.wanted.status, "statusDetails": dict(job.wanted.details)}
        return {**said, **expected, **known, "includeJobExecutionState": True}

    # -- replies ----------------------------------------------------------------------------------------------------

    def _notified(self, execution: Execution | None) -> None:
        """Which job is next has changed: perhaps because the one under way ended in the cloud."""
        if self.job is None:
            self._waiting = execution is not None
        elif execution is None or (execution.job, execution.number) != (self.job.id, self.job.number):
            self.job = replace(self.job, check=True)

    def _answers(self, message: Message) -> bool:
        """Whether it is the reply to what is asked. A request that could not be read is rejected without its token."""
        asked, job = self.asked, self.job
        if asked is None or asked.kind is not message.kind:
            return False
        if message.kind is not Kind.START and (job is None or message.job != job.id):
            return False
        return message.token == asked.token or (message.token is None and not message.accepted)

    def _replied(self, asked: Asked, message: Message, now_s: float) -> list[Action]:
        if not message.accepted:
            return self._rejected(asked, message, now_s)
        self._tries, self._not_before = 0, 0.0
        if asked.kind is Kind.START:
            return self._started(message.execution, now_s)
        job = self.job
        assert job is not None
        if asked.said is not None:
            version = job.version + 1 if job.version is not None else None
            self.job = job = replace(job, told=asked.said, told_s=now_s, version=version)
            if asked.said.final:
                log.info("job %s: %s is told", job.id, asked.said.status)
                self._leave()
                return []
        self.job = replace(job, check=False)
        learned = self._learned(message.execution) if message.execution else []
        if not asked.whole or not self._is_stale(job):
            return learned
        return [*(self._given_anew(message.execution) or self._gone(job)), *learned]

    def _given_anew(self, execution: Execution | None) -> list[Action]:
        """What was wanted again, if that is what came."""
        document = document_of(execution, self._id_of) if execution else None
        if self._stale is None or document is None or document.deployment != self._stale:
            return []
        self._stale = None
        return [Anew(document.deployment, document)]

    def _started(self, execution: Execution | None, now_s: float) -> list[Action]:
        self._waiting = False
        if execution is None or (execution.job, execution.number) == self._let_be:
            return []
        document = document_of(execution, self._id_of)
        said = Said(IN_PROGRESS, {"phase": "received"})
        job = Job(execution.job, "", execution.version, execution.number, said, said, now_s)
        if document is None:
            log.warning("job %s is refused: %s", job.id, NO_DOCUMENT)
            refused = Said("REJECTED", details({"code": "BAD_DOCUMENT", "message": NO_DOCUMENT}))
            self.job = replace(job, wanted=refused, taken=True)
            return []
        log.info("job %s: deployment %s", job.id, document.deployment)
        self.job = replace(job, deployment=document.deployment)
        return [*self._given_anew(execution), Deploy(document)]

    def _rejected(self, asked: Asked, message: Message, now_s: float) -> list[Action]:
        job, code = self.job, message.code
        if job is not None and code in GONE:
            return self._over("gone")
        if job is not None and code in CONFLICT:
            if message.execution is None:
                self.job = replace(job, check=True)
            elif message.execution.status in TERMINAL:
                return self._over(message.execution.status)
            else:
                self._learned(message.execution)
            if self._tries == 0 and code == "VersionMismatch":  # the cloud has just said the version
                self._tries = 1
                return []
        self._failed(asked, f"{code} {message.text}", now_s, again=code in PASSING or code in CONFLICT)
        return []

    def _learned(self, execution: Execution) -> list[Action]:
        """The cloud says how the execution stands."""
        job = self.job
        assert job is not None
        if execution.status in TERMINAL:
            return self._over(execution.status)
        version = execution.version if execution.version is not None else job.version
        number = execution.number if execution.number is not None else job.number
        self.job = replace(job, version=version, number=number, check=False)
        return []

    def _over(self, status: str) -> list[Action]:
        """The execution has ended in the cloud, whoever ended it."""
        job = self.job
        assert job is not None
        gone = self._gone(job)
        self._leave()
        if job.wanted.final:
            if status != job.wanted.status:
                log.warning("job %s is %s in the cloud; here it is %s", job.id, status, job.wanted.status)
            return gone
        log.warning("job %s is %s in the cloud", job.id, status)
        return [*gone, Cancel(job.deployment, job.id, status)]

    def _gone(self, job: Job) -> list[Action]:
        """Ends the wait for a document that will not come."""
        if not self._is_stale(job):
            return []
        self._stale = None
        return [Anew(job.deployment, None)]

    def _leave(self) -> None:
        self.job, self._waiting = None, True
        self._tries, self._not_before = 0, 0.0

    # -- trouble ----------------------------------------------------------------------------------------------------

    def _failed(self, asked: Asked, why: str, now_s: float, *, again: bool = True) -> None:
        self._tries += 1
        if again and self._tries < TRIES:
            self._not_before = now_s + self._backoff_s()
            return
        self._tries, job = 0, self.job
        log.error("JOB_REQUEST_FAILED: %s %s: %s", asked.kind.value, job.id if job else "", why[:200])
        if job is None:
            self._waiting = False
        elif asked.said is None:
            self.job, self._stale = replace(job, check=False), None
        elif not asked.said.final:
            self.job = replace(job, told=asked.said, told_s=now_s)  # progress that is lost is no loss
        else:
            self._let_be = (job.id, job.number)
            self._leave()

    def _backoff_s(self) -> float:
        return min(MAX_BACKOFF_S, BACKOFF_S * 2.0**self._tries) * (0.5 + self._random() / 2)

    def _hold_s(self) -> float:
        return min(MAX_HOLD_S, BACKOFF_S * 2.0 ** min(self._cut, 20)) * (0.5 + self._random() / 2)
