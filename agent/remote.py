"""A short-lived MQTT client for the `marram` command, on the agent's own link."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

from agent.errors import AgentError
from agent.messages import Inbound, Outbound
from agent.mqtt.link import Link
from agent.settings import Link as LinkSettings

CONNECT_S = 10.0


class Remote:
    """What the command needs of a broker: some filters and their messages, and to publish."""

    def __init__(self, settings: LinkSettings) -> None:
        self.name = f"marram-{secrets.token_hex(6)}"
        self._messages: asyncio.Queue[Inbound] = asyncio.Queue()
        self._up = asyncio.Event()
        self._url = settings.url
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

    async def publish(self, out: Outbound) -> None:
        """Returns at its PUBACK."""
        done = asyncio.Event()
        self.link.publish(out, done.set)
        await asyncio.wait_for(done.wait(), CONNECT_S)

    async def receive(self, timeout_s: float) -> Inbound | None:
        """The next message, or None after `timeout_s`."""
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self._messages.get(), timeout_s)
        return None


@contextlib.asynccontextmanager
async def connected(settings: LinkSettings, *filters: str) -> AsyncIterator[Remote]:
    """A client that is connected and subscribed.

    Raises:
        AgentError: BROKER_UNREACHABLE with what the last try met.
    """
    remote = Remote(settings)
    remote.link.set_filters(filters)
    remote.link.start()
    try:
        try:
            await asyncio.wait_for(remote._up.wait(), CONNECT_S)
        except asyncio.TimeoutError as error:
            why = remote.link.last_error or "it does not answer"
            raise AgentError(
                "BROKER_UNREACHABLE",
                f"No connection to {settings.url} within {CONNECT_S:g} s: {why}.",
                "Check --broker.",
            ) from error
        await remote.link.settled()
        yield remote
    finally:
        await remote.link.stop()
