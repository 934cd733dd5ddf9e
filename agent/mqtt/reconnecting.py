"""Keeps one session up: which version of MQTT, when to try again, and one line in the log for each new reason why not.

MQTT 5 first; 3.1.1 where the broker refuses 5, in words or by giving no answer. Tries end only with `stop`; waits grow
with jitter up to the link's longest. The first try after a connection that lasted follows at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from agent import settings
from agent.errors import AgentError, TransientError
from agent.mqtt.connecting import TIMEOUT_S, address_of, open_stream, with_login
from agent.mqtt.control import Identity
from agent.mqtt.renewal import Renewal
from agent.mqtt.session import Owner, Session, Terms
from agent.mqtt.stream import PacketStream
from agent.trust.certificates import SOON_S, day

T = TypeVar("T")
logger = logging.getLogger(__name__)

# After a connection that lasted so long the waits start small again.
PROVEN_S = 1.0
# One that the broker closed sooner than this may have been closed because of what was sent on it, or of another client.
STABLE_S = 10.0
FIRST_WAIT_S = 0.05  # at most; the longest wait doubles from try to try
LEAST_WAIT_S = 0.01
STOP_TIMEOUT_S = 2.0
WATCH_S = 5.0  # how often the files of a connection are looked at
RENEWED = "LINK_RENEWED"
SUSPECT_AFTER = 3  # short connections in a row
FIRST_PATIENCE_S = 2.0  # for the CONNACK of a broker that may not know MQTT 5; doubled each time
_NO_ANSWER = frozenset(("BROKER_CLOSED", "BROKER_SILENT"))
_NOT_THERE = frozenset(("BROKER_UNREACHABLE", "BROKER_NAME_UNKNOWN"))


class Keeper:
    """Keeps a session for `owner`, one after the other.

    Attributes:
        last_error: why the last try or connection ended; the owner clears it when a session is up.
        certificate_ends_s: when the certificate is over with which it last connected, seconds since 1970; None: none.
    """

    def __init__(
        self,
        link: settings.Link,
        identity: Identity,
        owner: Owner,
        next_id: Callable[[], int],
        max_backoff_s: float,
    ) -> None:
        self.last_error: str | None = None
        self.certificate_ends_s: float | None = None
        self._link = link
        self._address = address_of(link)
        self._identity = identity
        self._owner = owner
        self._next_id = next_id
        self._max_backoff_s = max_backoff_s
        self._spoke_v5 = False
        self._embedded = link.url == "embedded"  # amqtt: 3.1.1, as we know beforehand
        self._only_311 = self._embedded
        self._patience_s = FIRST_PATIENCE_S
        self._short_lives = 0
        self._renewal: Renewal | None = None
        self._warned: set[str] = set()
        self._said: set[str] = set()  # logged since the last connection that lasted
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to connect, for as long as it takes."""
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"link {self._link.name}")

    async def stop(self, session: Session | None) -> None:
        """Ends the tries, and `session` with a DISCONNECT; two seconds at most. Idempotent."""
        if self._task is not None:
            task, self._task = self._task, None
            # More than once: before Python 3.12, wait_for loses a cancellation that comes together with its result.
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.1)
        if session is not None:
            await _end(session)

    async def _keep(self) -> None:
        while True:
            error: AgentError = await self._tried(self._one_connection)
            self.note(error)

    async def _one_connection(self) -> AgentError:
        """Connects and returns why the connection ended; raises that where it did not last."""
        session: Session = await self._tried(self._negotiate)
        self._look_at_the_certificate()
        began = asyncio.get_running_loop().time()
        error = await self._until_over(session)
        if error.code == RENEWED:
            return error
        lived_s = asyncio.get_running_loop().time() - began
        if lived_s >= STABLE_S:
            self._short_lives = 0
            self._said.clear()
        else:
            self._short_lives += 1
            if error.code == "BROKER_CLOSED" and self._short_lives >= SUSPECT_AFTER:
                error = self._unstable()
        if lived_s < PROVEN_S:
            raise error
        return error

    async def _until_over(self, session: Session) -> AgentError:
        """Why the connection ended; ends it where the files that it was made with were renewed."""
        renewal = self._renewal
        while not session.over.done():
            await asyncio.wait([session.over], timeout=WATCH_S if renewal else None)
            if renewal and not session.over.done() and renewal.due() and self._usable():
                await self._renew(session)
        return session.over.result()

    def _usable(self) -> bool:
        """Whether one could connect with the files as they are now; else the connection that stands is kept."""
        try:
            if self._link.tls:
                from agent.mqtt import tls  # as below

                tls.context_of(self._link)
            with_login(self._link, self._address)
        except AgentError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                logger.error("link %s: the renewed files are not taken: %s", self._link.name, error)
            return False
        return True

    def _look_at_the_certificate(self) -> None:
        """Notes how long the one lasts that was just taken, and warns once where that is not long."""
        if not self._link.tls:
            return
        from agent.mqtt import tls  # ssl, and with it OpenSSL: only where a link is encrypted

        found = tls.validity_of(self._link)
        self.certificate_ends_s = found.ends_s if found else None
        if found is not None and found.ends_s - time.time() < SOON_S:
            text = f"this core's certificate {self._link.cert} is valid until {day(found.ends_s)} only: renew it"
            if text not in self._warned:
                self._warned.add(text)
                logger.warning("link %s: %s", self._link.name, text)

    async def _renew(self, session: Session) -> None:
        """Says DISCONNECT: the broker keeps the session, and what is not acknowledged is sent again on the next."""
        logger.info("link %s: its certificates or its password were renewed; connecting with these", self._link.name)
        session.leave(TransientError(RENEWED, "The link is connecting with renewed certificates."))
        await asyncio.wait([session.over], timeout=STOP_TIMEOUT_S)
        if session.stream is not None:
            session.stream.abort()
        await asyncio.wait([session.over], timeout=STOP_TIMEOUT_S)

    def _unstable(self) -> TransientError:
        # mosquitto 2.0 says nothing to a client whose connection another one takes over.
        return TransientError(
            "CONNECTION_UNSTABLE",
            f"{self._address} keeps closing the connection of {self._identity.client_id!r} soon after it began.",
            "Check that no other client uses this client id (one agent for one core name), and the broker's log.",
        )

    async def _tried(self, once: Callable[[], Awaitable[T]]) -> T:
        """What `once` gives in the end; its errors are noted, and it is tried again after a wait each time."""
        most_s = FIRST_WAIT_S
        while True:
            try:
                return await once()
            except AgentError as error:
                self.note(error)
            await self._pause(random.uniform(LEAST_WAIT_S, min(most_s, self._max_backoff_s)))
            most_s = min(most_s * 2, self._max_backoff_s)

    async def _pause(self, seconds: float) -> None:
        """A wait between two tries, which ends where files are renewed: perhaps these are better."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            await asyncio.sleep(min(left, WATCH_S))
            if self._renewal and left > WATCH_S and self._renewal.due():
                return

    async def _negotiate(self) -> Session:
        """A session in the highest version that the broker speaks.

        Raises:
            TransientError: there is none now.
        """
        try:
            return await self._session_of_some_version()
        except AgentError:
            raise
        except Exception as error:
            logger.exception("link %s: a programming error while connecting", self._link.name)
            raise TransientError("LINK_FAILED", f"Connecting failed: {type(error).__name__}.") from error

    async def _session_of_some_version(self) -> Session:
        if not self._only_311:
            try:
                patience_s = TIMEOUT_S if self._spoke_v5 else self._patience_s
                session = await self._open(5, self._identity, self._owner, patience_s)
                self._spoke_v5 = True
                return session
            except TransientError as refusal:
                if refusal.code != "PROTOCOL_REFUSED" and not await self._refuses_v5_silently(refusal):
                    raise
        try:
            session = await self._open(4, self._identity, self._owner, TIMEOUT_S)
        except TransientError as error:
            self._only_311 = self._embedded or (self._only_311 and error.code in _NOT_THERE)
            raise
        self._only_311 = True
        return session

    async def _refuses_v5_silently(self, refusal: TransientError) -> bool:
        """Whether no CONNACK was the answer to MQTT 5.

        amqtt misreads such a CONNECT and waits for more of it, other brokers close the connection. A broker that
        restarts does the same, and so does a relay with no broker behind it. So 3.1.1 is tried, which shows that a
        broker is there and how fast it answers, and then MQTT 5 once more.
        """
        if refusal.code not in _NO_ANSWER or self._spoke_v5:
            return False
        self._patience_s = min(self._patience_s * 2, TIMEOUT_S)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._probe(4, TIMEOUT_S)
        took_s = loop.time() - began
        try:
            await self._probe(5, min(max(20 * took_s, FIRST_PATIENCE_S / 4), TIMEOUT_S))
        except TransientError as second:
            return second.code in _NO_ANSWER
        return False

    async def _probe(self, version: int, timeout_s: float) -> None:
        await _end(await self._open(version, replace(self._identity, will=None), _Nobody(), timeout_s))

    async def _open(self, version: int, identity: Identity, owner: Owner, timeout_s: float) -> Session:
        # Before the files are read, so that what is written meanwhile is taken for newer.
        self._renewal = Renewal(self._link.files) if self._link.files else None
        address = with_login(self._link, self._address)
        session = Session(owner, version, identity, address, self._next_id)
        stream = await open_stream(self._link, lambda: PacketStream(session))
        await session.open(stream, timeout_s)
        return session

    def note(self, error: AgentError) -> None:
        """Keeps why there is no connection, and logs it where it is news."""
        self.last_error = text = str(error)
        if error.code != RENEWED and text not in self._said and self._task is not None:
            self._said.add(text)
            logger.warning("link %s: %s It is tried again.", self._link.name, error)


async def _end(session: Session) -> None:
    session.leave()
    await asyncio.wait([session.over], timeout=STOP_TIMEOUT_S)
    session.drop()


class _Nobody:
    """Owns a session that only asks whether a broker is there."""

    def session_up(self, session: Session, terms: Terms) -> None:
        pass

    def session_publish(self, first: int, data: bytes, at: int, end: int) -> None:
        pass

    def session_puback(self, packet_id: int, reason: int) -> None:
        pass

    def session_answer(self, packet_id: int, codes: Sequence[int]) -> None:
        pass

    def session_exactly_once(self, topic: str, payload: bytes) -> None:
        pass

    def session_down(self, session: Session, error: AgentError) -> None:
        pass
