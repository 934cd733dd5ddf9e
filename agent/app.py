"""The composition root: builds the agent's parts, joins them, starts and stops them.

Everything runs on one thread, the event loop's; the spool's commits, the installer and the workers have threads or
processes of their own.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import json
import logging
import os
import random
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from agent import instance
from agent.activation import Activation
from agent.cloud import reports
from agent.cloud.job_channel import JobChannel
from agent.cloud.outbox import Outbox
from agent.cloud.spool import Spool
from agent.control import ControlServer
from agent.deployment.deployer import Deployer
from agent.deployment.document import UNREADABLE, Deployment, deployment_id_of
from agent.deployment.store import Group, Store
from agent.errors import AgentError, RejectedError
from agent.inference.dispatch import Dispatcher, Request
from agent.messages import Inbound, Outbound, Properties
from agent.mqtt.broker import EmbeddedBroker
from agent.mqtt.link import Link
from agent.routing.deliveries import Deliveries, Delivery
from agent.routing.exchange import Exchange
from agent.routing.subscriptions import LINKS, Subscriptions, find_cycle
from agent.routing.topics import disjoint_cover
from agent.settings import EMBEDDED, Settings, Subscription
from agent.settings import Link as LinkSettings

log = logging.getLogger(__name__)

DRAIN_S = 10.0
BACKOFF_S = {"local": 1.0, "cloud": 60.0}
FILTERS = "filters.json"


class Agent:
    """One core's agent."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._topics = settings.topics
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._closing = False
        self._state_due = False
        self._settled = False  # the control link is up and every link that is up has its SUBACKs
        self._tasks: set[asyncio.Task[Any]] = set()
        self._journalled: dict[str, list[str]] = {}
        instance.lock_state(settings.state)
        instance.end_orphans(settings.state)
        shutil.rmtree(settings.state / "run", ignore_errors=True)
        self._build()

    def _build(self) -> None:
        settings = self.settings
        self.one_link = settings.cloud is None
        self.brokers = self._build_brokers()
        self._journalled = _read_filters(settings.state)
        self.links = self._build_links()
        self.control_link = "local" if self.one_link else "cloud"
        self.spool = Spool(settings.state / "spool.db", loop=self._loop)
        self.outbox = Outbox(self.spool, self.links)
        self.dispatcher = Dispatcher()
        self.deliveries = Deliveries(_DeliveryPorts(self))
        self.exchange = Exchange(
            settings.core, settings.topics, self.deliveries, _ExchangePorts(self), secrets.token_hex(4)
        )
        self.exchange.one_link = self.one_link
        self.store = Store(settings.state, settings.retention)
        self.activation = Activation(
            settings, self.dispatcher, loop=self._loop, routed=self._route, changed=self._state_changed
        )
        self.deployer = Deployer(self.store, settings, self.activation, self._report, admit=self.admit)
        self.jobs = self._build_jobs()
        self.control = ControlServer(
            settings.state,
            {
                "status": self._do_status,
                "deploy": self._do_deploy,
                "rollback": self._do_rollback,
                "cancel": self._do_cancel,
                "infer": self._do_infer,
            },
        )

    def _build_jobs(self) -> JobChannel | None:
        if self.settings.jobs is None:
            return None
        return JobChannel(self.settings.jobs, self.links[self.control_link], self.deployer, _id_of)

    def _build_brokers(self) -> list[EmbeddedBroker]:
        listens = {each.listen for each in (self.settings.local, self.settings.cloud) if each and each.url == EMBEDDED}
        return [EmbeddedBroker(listen) for listen in sorted(listens)]

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
            will=reports.retained(self._topics.state, self._state(online=False)) if will else None,
            max_backoff_s=max_backoff_s,
            on_message=self._on_message,
            on_up=lambda: self._on_up(name),
            on_down=lambda: self._on_down(name),
            known_filters=self._journalled.get(name, ()),
            on_filters=lambda filters: self._journal_filters(name, filters),
        )

    # -- start and stop ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        try:
            await self.start()
            await self._stopping.wait()
        finally:
            await self.stop()

    async def start(self) -> None:
        """Starts everything in the order in which nothing waits for what is slower."""
        await self.spool.open()
        group = await self.deployer.recover()
        for broker in self.brokers:
            await broker.start()
        self._set_routes(group)
        for link in self.links.values():
            link.start()
        await self.control.start()
        if group is not None:
            await self.activation.promote(group)
        self.deployer.start()
        for key, message, targets in await self.spool.inbox():
            self.exchange.restore(key, message, tuple(targets))
        log.info("core %s runs group %s", self.settings.core, group.deployment.id if group else "none")

    async def stop(self) -> None:
        """Drains the functions, hands over what can be, says offline and ends."""
        log.info("stopping")
        self._closing = True
        if self.jobs:
            self.jobs.close()
        with contextlib.suppress(Exception):
            await self.deployer.close()
        await self.activation.stop(DRAIN_S)
        await self.outbox.stop()
        for name, link in self.links.items():
            last = reports.retained(self._topics.state, self._state(online=False))
            await link.stop(last if name == self.control_link else None)
        await self.control.stop()
        for task in self._tasks:
            task.cancel()
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
        self._set_routes(self.activation.group)
        self.outbox.link_up(name)
        self._spawn(self._say_online())
        if self.jobs and name == self.control_link:
            self._spawn(self.jobs.link_up())

    def _on_down(self, name: str) -> None:
        if name == self.control_link:
            self._settled = False
        self.deliveries.link_down(name)
        self.outbox.link_down(name)
        if self.jobs and name == self.control_link:
            self.jobs.link_down()

    async def _say_online(self) -> None:
        await asyncio.gather(*(link.settled() for link in self.links.values()))
        self._settled = self.links[self.control_link].connected
        self._state_changed()

    def _spawn(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- routes -----------------------------------------------------------------------------------------------------

    async def _route(self, group: Group) -> None:
        self._set_routes(group)
        await asyncio.gather(*(link.settled() for link in self.links.values()))

    def _set_routes(self, group: Group | None) -> None:
        """Puts the subscriptions in force and asks the brokers for just what they need."""
        mine = self.settings.subscriptions
        deployed = group.deployment.subscriptions if group else ()
        mine = self._without_cycles(mine, deployed)
        every = [self._merged(s) for s in (*mine, *deployed)]
        self.exchange.subscriptions = Subscriptions(every)
        self.exchange.traits = self.activation.traits(group) if group else {}
        for name, link in self.links.items():
            wanted = set(self.exchange.subscriptions.subjects(name))
            if name == self.control_link:
                wanted.update((self._topics.deployments, *(self.jobs.filters if self.jobs else ())))
            link.set_filters(disjoint_cover(wanted))

    def _merged(self, subscription: Subscription) -> Subscription:
        if not self.one_link:
            return subscription
        source, target = (("local" if end == "cloud" else end) for end in (subscription.source, subscription.target))
        return dataclasses.replace(subscription, source=source, target=target)

    def _cycle(self, subscriptions: tuple[Subscription, ...]) -> list[Subscription] | None:
        through = [name for name, link in self.links.items() if link.protocol == 4]
        addresses = {each.address for each in (self.settings.local, self.settings.cloud) if each}
        merged = [self._merged(s) for s in subscriptions]
        return find_cycle(merged, through=through, one_link=len(addresses) == 1) if through else None

    def _without_cycles(
        self, mine: tuple[Subscription, ...], deployed: tuple[Subscription, ...]
    ) -> tuple[Subscription, ...]:
        while cycle := self._cycle((*mine, *deployed)):
            out = next((s for s in mine if any(self._merged(s) == c for c in cycle)), None)
            if out is None:
                break  # a deployed one: it came before the broker proved to speak 3.1.1 only
            log.error("left out, because messages would go round for ever: %s", _told(out))
            mine = tuple(s for s in mine if s is not out)
        return mine

    def admit(self, deployment: Deployment) -> None:
        """Refuses a deployment whose subscriptions would send messages round for ever. Reads only; from any thread.

        Raises:
            RejectedError: CYCLE, ONE_CONNECTION.
        """
        for each in deployment.subscriptions if self.one_link else ():
            if each.source in LINKS and each.target in LINKS:
                raise RejectedError(
                    "ONE_CONNECTION",
                    f"Subscription {each.id} goes from {each.source} to {each.target}, which are one connection here.",
                    "Leave it out: whoever is subscribed gets the message already.",
                )
        cycle = self._cycle((*self.settings.subscriptions, *deployment.subscriptions))
        if cycle and any(s in deployment.subscriptions for s in cycle):
            way = "; ".join(_told(s) for s in cycle)
            raise RejectedError(
                "CYCLE",
                f"A message would go round for ever, because the broker speaks MQTT 3.1.1 only: {way}.",
                "Publish results on a topic that the function does not hear.",
            )

    def _journal_filters(self, name: str, filters: frozenset[str]) -> None:
        self._journalled[name] = sorted(filters)
        file = self.settings.state / FILTERS
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps(self._journalled))
        os.replace(draft, file)

    # -- reports ----------------------------------------------------------------------------------------------------

    def _report(self, status: Mapping[str, Any]) -> None:
        id = status["deploymentId"]
        final = status["status"] != "IN_PROGRESS"
        out = reports.report(self._topics.deployment_status.replace("{deployment}", id), status)
        self.outbox.send(self.control_link, "report", out, lambda: self.deployer.reported(id) if final else None)
        if self.jobs:
            self.jobs.told(status)
        self._state_changed()

    def _state(self, *, online: bool = True) -> dict[str, Any]:
        activation = getattr(self, "activation", None)
        group = activation.group if activation else None
        return reports.state(
            core=self.settings.core,
            online=online,
            group=group.deployment.id if group else None,
            functions=self.dispatcher.states() if activation else (),
            resources=[(id, f"sha256:{found.hex}") for id, found in group.objects.items()] if group else (),
            deployment=self.deployer.latest if activation else None,
            now_s=time.time(),
        )

    def _state_changed(self) -> None:
        if not self._state_due and not self._closing:
            self._state_due = True
            self._loop.call_soon(self._publish_state)

    def _publish_state(self) -> None:
        self._state_due = False
        link = self.links[self.control_link]
        if self._settled and link.connected and not self._closing:
            with contextlib.suppress(AgentError):
                link.publish(reports.retained(self._topics.state, self._state()))

    # -- commands ---------------------------------------------------------------------------------------------------

    async def _do_status(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        links = {
            name: {
                "connected": link.connected,
                "protocol": {4: "3.1.1", 5: "5"}.get(link.protocol),
                "error": None if link.connected else link.last_error,
                "backlog": self.spool.backlog(name),
            }
            for name, link in self.links.items()
        }
        dropped = {
            "spool": dict(self.spool.dropped),
            "outbox": dict(self.outbox.dropped),
            "refused": dict(self.outbox.refused),
        }
        yield {
            "state": self._state(),
            "links": links,
            "dropped": dropped,
            "quarantine": list(self.deployer.quarantine),
            "pid": os.getpid(),
            "last": True,
        }

    async def _do_deploy(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        news: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        with self.deployer.followed(news.put_nowait):
            accepted = asyncio.Event()
            self.deployer.receive(base64.b64decode(request["body"]), retained=False, accepted=accepted.set)
            await accepted.wait()
            async for reply in _followed(news, (request["id"], "-"), wait=request.get("wait")):
                yield reply

    async def _do_rollback(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        news: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        with self.deployer.followed(news.put_nowait):
            id = await self.deployer.roll_back()
            async for reply in _followed(news, (id,), wait=request.get("wait")):
                yield reply

    async def _do_cancel(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        news: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        with self.deployer.followed(news.put_nowait):
            id = self.deployer.cancel_by_hand()
            async for reply in _followed(news, (id,), wait=True):
                yield reply

    async def _do_infer(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        answered: asyncio.Future[tuple[str, bytes]] = self._loop.create_future()

        def respond(content_type: str, payload: bytes) -> None:
            if not answered.done():
                answered.set_result((content_type, payload))

        message = Inbound(
            "local",
            request["topic"],
            base64.b64decode(request["payload"]),
            qos=1,
            properties=Properties(content_type=request.get("content_type")),
            received_s=self._loop.time(),
        )
        self.exchange.invoke(request["function"], message, respond)
        content_type, payload = await answered
        yield {"content_type": content_type, "payload": base64.b64encode(payload).decode(), "last": True}


async def _followed(
    news: asyncio.Queue[Mapping[str, Any]], ids: tuple[str, ...], *, wait: bool | None
) -> AsyncIterator[dict[str, Any]]:
    """Statuses of these deployments as a command's replies: the first, or with `wait` all until the end."""
    while True:
        status = await news.get()
        if status["deploymentId"] in ids:
            done = status["status"] != "IN_PROGRESS" or not wait
            yield {"status": status, "last": done}
            if done:
                return


class _DeliveryPorts:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.now = agent._loop.time
        self.later = agent._loop.call_later

    def ack(self, link: str, ticket: int) -> None:
        self._agent.links[link].ack(ticket)

    def window(self, link: str) -> int:
        return self._agent.links[link].receive_maximum

    def put_inbox(self, delivery: Delivery, committed: Callable[[], None]) -> None:
        self._agent.spool.put_inbox(delivery.key, delivery.message, list(delivery.targets), committed)

    def drop_inbox(self, key: str) -> None:
        self._agent.spool.drop_inbox(key)


class _ExchangePorts:
    def __init__(self, agent: Agent) -> None:
        self.submit: Callable[[Request], None] = agent.dispatcher.submit
        self.ready: Callable[[str], bool] = agent.dispatcher.ready
        self.send: Callable[[str, str, Outbound, Callable[[], None]], None] = agent.outbox.send
        self.now = agent._loop.time
        self.random = random.random

    def timestamp(self) -> str:
        return reports.timestamp(time.time())


def _told(subscription: Subscription) -> str:
    return f"{subscription.source} {subscription.subject} -> {subscription.target}"


def _id_of(body: bytes) -> str | None:
    id = deployment_id_of(body)
    return None if id == UNREADABLE else id


def _read_filters(state: Path) -> dict[str, list[str]]:
    try:
        found = json.loads((state / FILTERS).read_text())
        return {str(name): [str(f) for f in filters] for name, filters in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
