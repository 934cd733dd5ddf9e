"""The composition root: builds the agent's parts, joins them, starts and stops them.

Everything runs on one thread, the event loop's; the spool's commits, the installer and the workers have threads or
processes of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from agent.beginning import Beginning, Rest
from agent.capture.desk import CaptureDesk
from agent.capture.settled import Hold, Settled
from agent.cloud import reports
from agent.cloud.outbox import Outbox
from agent.cloud.spool import Spool
from agent.console import Console, Parts
from agent.control import ControlServer
from agent.deployment.document import UNREADABLE, deployment_id_of
from agent.deployment.store import Group
from agent.errors import AgentError
from agent.inference.requests import Request
from agent.messages import JSON, Inbound, Outbound, Properties
from agent.mqtt.link import Link
from agent.routes import FilterJournal, Routes
from agent.routing.deliveries import Deliveries, Delivery
from agent.routing.exchange import Exchange
from agent.routing.function_calls import FunctionCalls
from agent.routing.subscriptions import FUNCTION, SHADOWS
from agent.settings import Link as LinkSettings
from agent.shadows.service import Shadows

if TYPE_CHECKING:
    from agent.cloud.job_channel import JobChannel
    from agent.mqtt.broker import EmbeddedBroker

log = logging.getLogger(__name__)

DRAIN_S = 10.0
LOSSES_S = 30.0
BACKOFF_S = {"local": 1.0, "cloud": 60.0}


class Agent:
    """One core's agent.

    Args:
        beginning: what has begun already; it is joined here.
    """

    def __init__(self, beginning: Beginning) -> None:
        settings = beginning.settings
        if settings.local.embedded:
            from agent.mqtt.guard import own_login  # as `_build_brokers`

            settings = dataclasses.replace(settings, local=own_login(settings.local))
        self.settings = settings
        self._topics = settings.topics
        self._beginning = beginning
        self.loop = beginning.loop
        self.store, self.dispatcher = beginning.store, beginning.dispatcher
        self.activation, self.deployer = beginning.activation, beginning.deployer
        self._closing = False
        self._state_due = False
        self._losses_due: asyncio.TimerHandle | None = None
        self._settled = False  # the control link is up and every link that is up has its SUBACKs
        self._tasks: set[asyncio.Task[Any]] = set()
        self._build()

    def _build(self) -> None:
        settings = self.settings
        self.brokers = self._build_brokers()
        self._filters = FilterJournal(settings.state)
        self.links = self._build_links()
        self.control_link = "local" if settings.cloud is None else "cloud"
        self.spool = Spool(settings.state / "spool.db", loop=self.loop, limits=settings.spool)
        self.spool.on_loss = self._tell_of_losses
        self.outbox = Outbox(self.spool, self.links, settings.spool)
        self.deliveries = Deliveries(_DeliveryPorts(self))
        self.exchange = Exchange(
            settings.core,
            settings.topics,
            self.deliveries,
            _ExchangePorts(self),
            os.urandom(4).hex(),
            settings.answers,
        )
        self.captures = CaptureDesk(
            settings,
            loop=self.loop,
            send=lambda out, value, done: self.outbox.send(self.control_link, "capture", out, done, value),
            max_packet_bytes=lambda: self.links[self.control_link].max_packet_bytes,
            timestamp=lambda: reports.timestamp(time.time()),
        )
        self.exchange.one_link = settings.cloud is None
        self.shadows = Shadows(settings.state, self.loop, self._publish_of_shadow)
        self.function_calls = FunctionCalls(self.exchange, _CallPorts(self))
        self.routes = Routes(settings, self.links, self.control_link, self.exchange)
        self.jobs = self.routes.jobs = self._build_jobs()
        self.control = ControlServer(settings.state, Console(self._parts()).handlers())
        self._beginning.join(
            Rest(
                route=self._route,
                changed=self._state_changed,
                take=self.function_calls.take,
                report=self._report,
                admit=self.routes.admit,
                ask_anew=self._ask_anew,
            )
        )

    def _parts(self) -> Parts:
        return Parts(
            loop=self.loop,
            state=self.state,
            workers=self.activation.workers,
            links=self.links,
            spool=self.spool,
            outbox=self.outbox,
            captures=self.captures,
            deployer=self.deployer,
            exchange=self.exchange,
        )

    def _build_jobs(self) -> JobChannel | None:
        if self.settings.jobs is None:
            return None
        from agent.cloud.job_channel import JobChannel  # only where it is used

        return JobChannel(self.settings.jobs, self.links[self.control_link], self.deployer, _id_of)

    async def _ask_anew(self, deployment: str) -> tuple[bytes, bytes | None] | None:
        """Only a job's document can be asked for once more: others are sent, and nobody keeps them."""
        return await self.jobs.ask_anew(deployment) if self.jobs else None

    def _build_brokers(self) -> list[EmbeddedBroker]:
        local = self.settings.local
        if not local.embedded:
            return []
        from agent.mqtt.broker import EmbeddedBroker  # with ssl, which takes OpenSSL along: only where it is used
        from agent.mqtt.guard import guard_of

        return [EmbeddedBroker(local.listen, guard_of(local))]

    def _build_links(self) -> dict[str, Link]:
        core = self.settings.core
        if self.settings.cloud is None:
            return {"local": self._link(self.settings.local, core, BACKOFF_S["local"], will=True)}
        return {
            "local": self._link(self.settings.local, f"{core}-local", BACKOFF_S["local"], will=False),
            "cloud": self._link(self.settings.cloud, core, BACKOFF_S["cloud"], will=True),
        }

    def _link(self, settings: LinkSettings, client_id: str, max_backoff_s: float, *, will: bool) -> Link:
        name = settings.name
        return Link(
            settings,
            client_id=client_id,
            core=self.settings.core,
            will=(lambda: reports.retained(self._topics.state, self.state(online=False))) if will else None,
            max_backoff_s=max_backoff_s,
            on_message=self._on_message,
            on_up=lambda: self._on_up(name),
            on_down=lambda: self._on_down(name),
            known_filters=self._filters.known(name),
            on_filters=lambda filters: self._filters.note(name, filters),
        )

    # -- start and stop ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT."""
        try:
            await self.start()
            await self._beginning.stopping.wait()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Starts everything in the order in which nothing waits for what is slower."""
        await self.spool.open()
        await self.captures.open()
        group = self._beginning.group
        # Before the links: what an earlier run was sent comes again right after CONNACK, and what then finds no route
        # would be acknowledged unserved, what is in the inbox would run beside its redelivery.
        if group is not None:
            await self.activation.promote(group)
        self._put_routes(group)
        self._beginning.ready()
        for key, message, targets in await self.spool.inbox():
            self.exchange.restore(key, message, tuple(targets))
        for broker in self.brokers:
            await broker.start()
        for link in self.links.values():
            link.start()
        await self.control.start()
        self.deployer.start()
        log.info("core %s runs group %s", self.settings.core, group.deployment.id if group else "none")
        # While the workers still load. What is there now lives as long as the process: the collector, which was off for
        # the start, does not look at it again, and no request waits for it to do so.
        gc.collect()
        gc.freeze()
        gc.enable()

    async def stop(self) -> None:
        """Drains the functions, hands over what can be, says offline and ends."""
        log.info("stopping")
        self._closing = True
        if self.jobs:
            self.jobs.close()
        with contextlib.suppress(Exception):
            await self.deployer.close()
        await self.activation.stop(DRAIN_S)
        await asyncio.to_thread(self.shadows.close)
        await self.outbox.stop()
        for name, link in self.links.items():
            last = reports.retained(self._topics.state, self.state(online=False))
            await link.stop(last if name == self.control_link else None)
        await self.control.stop()
        for task in self._tasks:
            task.cancel()
        await self.captures.close()
        await self.spool.close()
        for broker in self.brokers:
            await broker.stop()

    # -- links ------------------------------------------------------------------------------------------------------

    def _on_message(self, message: Inbound) -> None:
        if self._closing:
            return  # not acknowledged: the broker sends it again to the next run
        if message.topic != self._topics.deployments:
            if self.jobs and message.link == self.control_link and self.jobs.hears(message.topic):
                self.jobs.receive(message)
            else:
                self.exchange.receive(message)
        elif message.link == self.control_link:
            link, ticket = self.links[message.link], message.ticket
            self.deployer.receive(message.payload, retained=message.retain, accepted=lambda: link.ack(ticket))
        else:
            self.links[message.link].ack(message.ticket)

    def _on_up(self, name: str) -> None:
        if not self.links[name].session_present:
            self.deliveries.session_lost(name)
        self._put_routes(self.activation.group)
        self.outbox.link_up(name)
        if name == self.control_link:
            self.captures.link_up()
        self._spawn(self._say_online())
        if self.jobs and name == self.control_link:
            self._spawn(self.jobs.link_up())

    def _on_down(self, name: str) -> None:
        if name == self.control_link:
            self._settled = False
        waiting = self.links[name].not_acknowledged
        self.deliveries.link_down(name, [each for each in waiting if isinstance(each, Delivery)])
        self.outbox.link_down(name)
        if self.jobs and name == self.control_link:
            self.jobs.link_down()

    async def _route(self, group: Group) -> None:
        self.exchange.forget_answers()
        self._put_routes(group)
        await self.routes.settled()

    def _put_routes(self, group: Group | None) -> None:
        self.routes.put(group, self.activation)
        self.captures.use(self.activation.captures(group) if group else {})
        self.function_calls.know(self.activation.callees(group) if group else ())

    def _publish_of_shadow(self, topic: str, payload: bytes) -> None:
        message = Inbound("local", topic, payload, qos=1, properties=Properties(JSON), received_s=self.loop.time())
        with contextlib.suppress(AgentError):  # logged and counted by the outbox
            self.exchange.publish(SHADOWS, message)

    async def _say_online(self) -> None:
        await self.routes.settled()
        self._settled = self.links[self.control_link].connected
        self._state_changed()

    def _spawn(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- reports ----------------------------------------------------------------------------------------------------

    def _report(self, status: Mapping[str, Any]) -> None:
        id = status["deploymentId"]
        final = status["status"] != "IN_PROGRESS"
        out = reports.report(self._topics.deployment_status.replace("{deployment}", id), status)
        self.outbox.send(self.control_link, "report", out, lambda: self.deployer.reported(id) if final else None)
        if self.jobs:
            self.jobs.told(status)
        self._state_changed()

    def state(self, *, online: bool = True) -> dict[str, Any]:
        group = self.activation.group
        return reports.state(
            core=self.settings.core,
            online=online,
            group=group.deployment.id if group else None,
            functions=self.dispatcher.states(),
            resources=[(id, f"sha256:{found.hex}") for id, found in group.objects.items()] if group else (),
            deployment=self.deployer.latest,
            spool=self.spool.losses(),
            now_s=time.time(),
        )

    def _state_changed(self) -> None:
        if not self._state_due and not self._closing:
            self._state_due = True
            self.loop.call_soon(self._publish_state)

    def _tell_of_losses(self) -> None:
        """What the spool lost goes into the state, a while later at most, so that a flood of it makes no flood."""
        if self._losses_due is None and not self._closing:
            self._losses_due = self.loop.call_later(LOSSES_S, self._losses_are_due)

    def _losses_are_due(self) -> None:
        self._losses_due = None
        self._state_changed()

    def _publish_state(self) -> None:
        self._state_due = False
        link = self.links[self.control_link]
        if self._settled and link.connected and not self._closing:
            with contextlib.suppress(AgentError):
                link.publish(reports.retained(self._topics.state, self.state()))


class _DeliveryPorts:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.now = time.monotonic
        self.later = agent.loop.call_later

    def ack_on(self, link: str) -> Callable[[int, Delivery], None]:
        return self._agent.links[link].ack

    def window(self, link: str) -> int:
        return self._agent.links[link].receive_maximum

    def put_inbox(self, delivery: Delivery, committed: Callable[[], None]) -> None:
        self._agent.spool.put_inbox(delivery.key, delivery.message, list(delivery.targets), committed)

    def keeps_up(self) -> bool:
        return self._agent.spool.takes_requests

    def crowded(self, delivery: Delivery) -> bool:
        crowded, at = self._agent.dispatcher.crowded, len(FUNCTION)
        return any(crowded(target[at:]) for target in delivery.targets if target.startswith(FUNCTION))

    def drop_inbox(self, key: str) -> None:
        self._agent.spool.drop_inbox(key)


class _ExchangePorts:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.submit: Callable[[Request], None] = agent.dispatcher.submit
        self.ready: Callable[[str], bool] = agent.dispatcher.ready
        self.has_room: Callable[[str, int], bool] = agent.dispatcher.has_room
        self.send: Callable[[str, str, Outbound, Callable[[], None]], None] = agent.outbox.send
        self.now = time.monotonic

    def capture(self, settled: Settled, hold: Hold) -> None:
        self._agent.captures.consider(settled, hold)

    def shadow(self, topic: str, payload: bytes, done: Callable[[], None]) -> None:
        self._agent.shadows.receive(topic, payload, done)


class _CallPorts:
    def __init__(self, agent: Agent) -> None:
        self.now = agent.loop.time
        self.later = agent.loop.call_later
        self.shadow_call = agent.shadows.call


def _id_of(body: bytes) -> str | None:
    id = deployment_id_of(body)
    return None if id == UNREADABLE else id
