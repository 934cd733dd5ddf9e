"""The shell of AWS IoT Jobs: carries what `jobs` decides to the link and the deployer, and wakes it in time.

Runs on the event loop's thread; nothing here blocks. What to do and when is `jobs`' matter alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from agent.cloud import job_messages
from agent.cloud.jobs import Action, Anew, Cancel, Jobs, Publish
from agent.errors import AgentError
from agent.messages import Inbound, Outbound

log = logging.getLogger(__name__)

ANEW_S = 300.0  # for the cloud to give a document out again, over connections that are lost meanwhile


class LinkPort(Protocol):
    """What the channel needs of the control link; see `agent.mqtt.link.Link`."""

    @property
    def connected(self) -> bool: ...
    @property
    def generation(self) -> int: ...
    @property
    def refused(self) -> dict[str, int]: ...
    def publish(self, out: Outbound, done: Callable[[], None] | None = None) -> None: ...
    def ack(self, ticket: int) -> None: ...
    async def settled(self) -> None: ...


class DeployerPort(Protocol):
    """What the channel needs of the deployer; see `agent.deployment.deployer.Deployer`."""

    def receive(
        self, body: bytes, *, retained: bool, accepted: Callable[[], None], identity: bytes | None = None
    ) -> None: ...
    def cancel(self, why: AgentError, id: str | None = None) -> bool: ...


class JobChannel:
    """AWS IoT Jobs of one thing.

    Args:
        link: the control link; the caller subscribes `filters` there.
        id_of: reads the id of a deployment's document.

    Attributes:
        filters: what the channel is to hear.
    """

    def __init__(
        self, thing: str, link: LinkPort, deployer: DeployerPort, id_of: Callable[[bytes], str | None]
    ) -> None:
        self.filters = job_messages.filters(thing)
        self._prefix = job_messages.prefix_of(thing)
        self._link, self._deployer = link, deployer
        self._loop = asyncio.get_running_loop()
        self._jobs = Jobs(thing, secrets.token_hex(4), random.random, id_of)
        self._timer: asyncio.TimerHandle | None = None
        self._anew: asyncio.Future[job_messages.Document | None] | None = None

    def hears(self, topic: str) -> bool:
        """Whether a message on `topic` is the channel's."""
        return topic.startswith(self._prefix)

    def receive(self, message: Inbound) -> None:
        """Takes a message and acknowledges it at once: whatever is lost here is asked again."""
        self._link.ack(message.ticket)
        self._do(self._jobs.receive(message.topic, message.payload, self._loop.time()))

    def link_down(self) -> None:
        """The control link is down."""
        self._jobs.link_down()
        self._wake_later()

    async def link_up(self) -> None:
        """The control link is up: asks for jobs once the broker has answered for the filters."""
        generation = self._link.generation
        await self._link.settled()
        if not self._link.connected or self._link.generation != generation:
            return
        refused = [each for each in self.filters if each in self._link.refused]
        if refused:
            log.error("JOBS_REFUSED: the broker does not let this core hear %s; see docs/jobs.md", ", ".join(refused))
        else:
            self._do(self._jobs.link_up(self._loop.time()))

    def told(self, status: Mapping[str, Any]) -> None:
        """Takes a status of the deployer's."""
        self._do(self._jobs.told(status, self._loop.time()))

    async def ask_anew(self, deployment: str) -> tuple[bytes, bytes | None] | None:
        """The document of the job under way as the cloud gives it out now, and its identity; None: it does not."""
        self._anew = answer = self._loop.create_future()
        self._do(self._jobs.ask_anew(deployment, self._loop.time()))
        try:
            document = await asyncio.wait_for(answer, ANEW_S)
        except asyncio.TimeoutError:
            return None
        return (document.body, document.identity) if document else None

    def close(self) -> None:
        """Says nothing more; the next start goes on."""
        self.link_down()

    def _do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Publish):
                self._publish(action)
            elif isinstance(action, Anew):
                if self._anew is not None and not self._anew.done():
                    self._anew.set_result(action.document)
            elif isinstance(action, Cancel):
                why = f"its job {action.job} is {action.status} in the cloud"
                self._deployer.cancel(AgentError("JOB_ENDED", why), action.deployment)
            else:
                document = action.document
                self._deployer.receive(
                    document.body,
                    retained=False,
                    accepted=lambda id=document.deployment: self._jobs.taken(id),  # type: ignore[misc]
                    identity=document.identity,
                )
        self._wake_later()

    def _publish(self, action: Publish) -> None:
        out = Outbound(action.topic, json.dumps(action.values).encode(), 0)
        try:
            self._link.publish(out)
        except AgentError as error:  # no reply comes then, and it is asked again
            log.warning("jobs: %s", error)

    def _wake_later(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_s = self._jobs.due_s
        self._timer = self._loop.call_at(due_s, self._tick) if due_s is not None else None

    def _tick(self) -> None:
        self._timer = None
        self._do(self._jobs.tick(self._loop.time()))
