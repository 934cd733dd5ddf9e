"""A short-lived MQTT client for the `marram` command, on the agent's own link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator

from agent.errors import AgentError
from agent.messages import Inbound, Outbound
from agent.mqtt.link import Link
from agent.mqtt.reasons import name_of
from agent.settings import Link as LinkSettings

CONNECT_S = 10.0
GIVE_UP_S = 1.0  # after the first try that failed: a broker may just be starting, but somebody waits at a terminal
LOOK_S = 0.05


class Remote:
    """What the command needs of a broker: some filters and their messages, and to publish."""

    def __init__(self, settings: LinkSettings) -> None:
        self.name = f"marram-{secrets.token_hex(6)}"
        self._messages: asyncio.Queue[Inbound] = asyncio.Queue()
        self._up = asyncio.Event()
        self.link = Link(
            settings,
            client_id=self.name,
            core=self.name,
            will=None,
            max_backoff_s=1.0,
            session_expiry_s=0,
            on_message=self._on_message,
            on_up=self._up.set,
            on_down=self._up.clear,
        )

    def _on_message(self, message: Inbound) -> None:
        self.link.ack(message.ticket)
        self._messages.put_nowait(message)

    async def up(self) -> None:
        """Returns when it is connected.

        Raises:
            AgentError: what the last try met, or BROKER_UNREACHABLE where it met nothing at all.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + CONNECT_S
        first_failure = True
        while not self._up.is_set() and loop.time() < end:
            if self.link.last_error and first_failure:
                first_failure = False
                end = min(end, loop.time() + GIVE_UP_S)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._up.wait(), LOOK_S)
        if not self._up.is_set():
            raise self._unreachable()

    def _unreachable(self) -> AgentError:
        if self.link.last_error:
            code, _, text = self.link.last_error.partition(": ")
            return AgentError(code, text)
        text = f"The broker says nothing within {CONNECT_S:g} s."
        return AgentError("BROKER_UNREACHABLE", text, "Check the host and port of --broker.")

    async def subscribed(self) -> None:
        """Returns when the broker has agreed to all filters.

        Raises:
            AgentError: SUBSCRIPTION_REFUSED.
        """
        await self.link.settled()
        for subject, reason in self.link.refused.items():
            raise AgentError(
                "SUBSCRIPTION_REFUSED",
                f"The broker does not let this client subscribe to {subject} ({name_of(reason)}).",
                "Allow it in the broker's access rules, or log in as somebody who may.",
            )

    async def publish(self, out: Outbound) -> None:
        """Returns at its PUBACK.

        Raises:
            AgentError: BROKER_SILENT; whatever the link refuses.
        """
        done = asyncio.Event()
        self.link.publish(out, done.set)
        try:
            await asyncio.wait_for(done.wait(), CONNECT_S)
        except asyncio.TimeoutError as error:
            text = f"The broker did not acknowledge the message within {CONNECT_S:g} s."
            raise AgentError("BROKER_SILENT", text, "Look at the broker's log, then send it again.") from error

    async def receive(self, timeout_s: float) -> Inbound | None:
        """The next message, or None after `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._messages.get(), timeout_s)
        return None


@contextlib.asynccontextmanager
async def connected(settings: LinkSettings, *filters: str) -> AsyncIterator[Remote]:
    """A client that is connected and subscribed.

    Raises:
        AgentError: BROKER_UNREACHABLE, LOGIN_REFUSED and whatever else hinders the link; SUBSCRIPTION_REFUSED.
    """
    log, level = logging.getLogger("agent.mqtt"), logging.getLogger("agent.mqtt").level
    log.setLevel(logging.CRITICAL)  # said once, as the command's error
    remote = Remote(settings)
    remote.link.set_filters(filters)
    remote.link.start()
    try:
        await remote.up()
        await remote.subscribed()
        yield remote
    finally:
        await remote.link.stop()
        log.setLevel(level)
