"""What the `marram` command asks of a running agent: one handler a command, its replies as JSON objects.

Everything runs on the agent's thread; nothing here blocks. Changes of a deployment's state are followed, not polled.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from agent.capture.desk import CaptureDesk
from agent.capture.received import Waiting
from agent.cloud.outbox import Outbox
from agent.cloud.reports import timestamp
from agent.cloud.spool import Spool
from agent.deployment.deployer import Deployer
from agent.deployment.threads import in_thread
from agent.errors import RejectedError
from agent.messages import Inbound, Properties
from agent.mqtt.link import Link
from agent.routing.exchange import Exchange
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an agent that its commands are about.

    `state` gives what the state topic says now, `workers` what the workers of each function are and take.
    """

    loop: asyncio.AbstractEventLoop
    state: Callable[[], dict[str, Any]]
    workers: Callable[[], dict[str, dict[str, Any]]]
    links: Mapping[str, Link]
    spool: Spool
    outbox: Outbox
    captures: CaptureDesk
    deployer: Deployer
    exchange: Exchange


class Console:
    """The commands of one agent."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def handlers(self) -> dict[str, Callable[[Mapping[str, Any]], AsyncIterator[dict[str, Any]]]]:
        """Each command's handler by its name; the last of its replies holds ``"last": True``."""
        return {
            "status": self._status,
            "deploy": self._deploy,
            "rollback": self._rollback,
            "cancel": self._cancel,
            "infer": self._infer,
            "spool": self._spool,
            "capture": self._capture,
        }

    async def _status(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        links = {
            name: {
                "connected": link.connected,
                "protocol": {4: "3.1.1", 5: "5"}.get(link.protocol),
                "error": None if link.connected else link.last_error,
                "certificate_ends": timestamp(ends_s) if (ends_s := link.certificate_ends_s) is not None else None,
                "backlog": self._parts.spool.backlog(name),
            }
            for name, link in self._parts.links.items()
        }
        dropped = {
            "spool": dict(self._parts.spool.dropped),
            "outbox": dict(self._parts.outbox.dropped),
            "refused": dict(self._parts.outbox.refused),
            "expired": self._parts.exchange.expired,
        }
        yield {
            "state": self._parts.state(),
            "links": links,
            "dropped": dropped,
            "spool": self._parts.spool.summary(),
            "capture": self._parts.captures.told(),
            "answered_again": self._parts.exchange.answered_again,
            "quarantine": list(self._parts.deployer.quarantine),
            "workers": self._parts.workers(),
            "pid": os.getpid(),
            "last": True,
        }

    async def _spool(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Dead letters: listed, and with ``action`` ``retry`` or ``drop`` first tried again or dropped."""
        spool, action, ids = self._parts.spool, request.get("action"), request.get("ids")
        found = await spool.dead_letters()
        if action in ("retry", "drop"):
            missing = sorted(set(ids or ()) - {letter.seq for letter in found})
            if missing:
                raise RejectedError(
                    "NO_DEAD_LETTER",
                    f"There is no dead letter {', '.join(map(str, missing))}.",
                    "Look at `marram spool`.",
                )
            await spool.exhume(ids, retry=action == "retry")
            found = [letter for letter in found if ids is None or letter.seq in ids]
        letters = [
            {"id": each.seq, "link": each.link, "class": each.kind, "topic": each.topic, "bytes": each.size,
             "why": each.why, "at": timestamp(each.at)}
            for each in found
        ]  # fmt: skip
        yield {"spool": spool.summary(), "letters": letters, "last": True}

    async def _capture(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """The samples that wait: what there is of them, and with ``whole`` the samples themselves."""
        waiting = Waiting()
        async for bodies in self._parts.spool.peek("capture"):
            await in_thread(waiting.add, bodies)  # parsing many would hold up the requests
            if request.get("whole"):
                yield {"samples": [base64.b64encode(body).decode() for body in bodies]}
        yield {"waiting": waiting.told(), "capture": self._parts.captures.told(), "last": True}

    async def _deploy(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        news: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        with self._parts.deployer.followed(news.put_nowait):
            accepted = asyncio.Event()
            self._parts.deployer.receive(base64.b64decode(request["body"]), retained=False, accepted=accepted.set)
            await accepted.wait()
            async for reply in _followed(news, (request["id"], "-"), wait=request.get("wait")):
                yield reply

    async def _rollback(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        news: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        with self._parts.deployer.followed(news.put_nowait):
            id = await self._parts.deployer.roll_back()
            async for reply in _followed(news, (id,), wait=request.get("wait")):
                yield reply

    async def _cancel(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        news: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        with self._parts.deployer.followed(news.put_nowait):
            id = self._parts.deployer.cancel_by_hand()
            async for reply in _followed(news, (id,), wait=True):
                yield reply

    async def _infer(self, request: Mapping[str, Any]) -> AsyncIterator[dict[str, Any]]:
        answered: asyncio.Future[tuple[str, bytes]] = self._parts.loop.create_future()

        def respond(content_type: str, payload: bytes) -> None:
            if not answered.done():
                answered.set_result((content_type, payload))

        message = Inbound(
            "local",
            request["topic"],
            base64.b64decode(request["payload"]),
            qos=1,
            properties=Properties(content_type=request.get("content_type")),
            received_s=self._parts.loop.time(),
        )
        self._parts.exchange.invoke(request["function"], message, respond)
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
