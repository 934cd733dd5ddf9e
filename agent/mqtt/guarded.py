"""amqtt's broker with a guard, in a process of its own: the one owner of amqtt.

What amqtt lets pass and this does not: a client without a login can end the session of another one by taking its id; a
will is published where its client may not publish; and retained messages go to whoever connects. All three are decided
here before amqtt hears of the client. A login that fails takes a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import ssl
import time
from typing import Any

import amqtt.broker
from amqtt.broker import Broker
from amqtt.contexts import Action
from amqtt.errors import BrokerError, MQTTError
from amqtt.mqtt.connack import BAD_USERNAME_PASSWORD, IDENTIFIER_REJECTED, NOT_AUTHORIZED, ConnackPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.session import Session

from agent.errors import ConfigError
from agent.mqtt.access import OWN_NAME, Access, fits, hashed
from agent.mqtt.guard import Guard, access_of, load_pair, server_tls
from agent.mqtt.renewal import Renewal
from agent.routing.topics import name_problem

logger = logging.getLogger(__name__)

CONNECT_S = 10.0  # for a client's CONNECT
FAILURE_S = 1.0
HASHES_AT_ONCE = 2  # of passwords; each takes a core for a while
WATCH_S = 5.0
_NOBODY = hashed("", bytes(12))


class Doorkeeper:
    """Decides who is let in, and remembers whose password was good."""

    def __init__(self, guard: Guard) -> None:
        self.access = access_of(guard.users, guard.acl)
        self._secret = guard.secret
        self._known: dict[str, bytes] = {}
        self._pepper = secrets.token_bytes(32)
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)

    async def refusal(self, session: Session, sessions: dict[str, Any]) -> int | None:
        """The CONNACK code with which a client is refused; None: it is let in."""
        if not await self._login_is_good(session.username, session.password or ""):
            await asyncio.sleep(FAILURE_S)
            return int(BAD_USERNAME_PASSWORD)
        other, _ = sessions.get(session.client_id or "", (None, None))
        if other is not None and other.username != session.username:
            return int(IDENTIFIER_REJECTED)
        if session.will_flag and not self._may_leave(session):
            return int(NOT_AUTHORIZED)
        return None

    def _may_leave(self, session: Session) -> bool:
        topic = session.will_topic or ""
        if name_problem(topic) or topic.startswith("$"):
            return False
        return self.access.may(session.username, session.client_id or "", "write", topic)

    async def _login_is_good(self, name: str | None, password: str) -> bool:
        users = self.access.users
        if users is None:
            return True
        if name == OWN_NAME:
            return self._secret is not None and secrets.compare_digest(password.encode(), self._secret.encode())
        value = users.get(name or "", "")
        proof = hashlib.blake2b(f"{value}\0{password}".encode(), key=self._pepper).digest()
        if value and secrets.compare_digest(self._known.get(name or "", b""), proof):
            return True
        async with self._hashing:
            good = await asyncio.to_thread(fits, password, value or _NOBODY)
        if value and good:
            self._known[name or ""] = proof
        return bool(value) and good

    def renewed(self, access: Access) -> set[str]:
        """Takes other users and rules; returns who was let in before and would not be now."""
        before, self.access = self.access, access
        old, new = before.users or {}, access.users or {}
        return {name for name, value in old.items() if new.get(name) != value}


class GuardedBroker(Broker):  # type: ignore[misc] # amqtt's types are not known here
    """amqtt's broker behind a doorkeeper. Everybody in it counts as anonymous, for whom amqtt keeps nothing."""

    def __init__(self, host: str, port: int, guard: Guard) -> None:
        self.door = Doorkeeper(guard)
        self.tls = server_tls(guard)
        listener = {"type": "tcp", "bind": f"{host}:{port}", "max_connections": 0, "ssl": self.tls is not None}
        super().__init__({"listeners": {"default": listener}, "plugins": {}})

    def _create_ssl_context(self, listener: Any) -> ssl.SSLContext:
        assert self.tls is not None
        return self.tls

    async def _authenticate(self, session: Session, _: Any) -> bool:
        session.is_anonymous = True
        return True  # the doorkeeper has let it in

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        access, user, client = self.door.access, session.username, session.client_id or ""
        if action == Action.SUBSCRIBE:
            return access.may_subscribe(user, client, topic)
        return access.may(user, client, "write" if action == Action.PUBLISH else "read", topic)

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        subject, qos = subscription
        handler = self._get_handler(session)
        mine = any(each.client_id == session.client_id for each, _ in self._subscriptions.get(subject, ()))
        if handler is None or not mine:
            return  # amqtt asks for the filters of all others, too
        sending = [
            asyncio.ensure_future(handler.mqtt_publish(topic, kept.data, min(qos, kept.qos or qos), retain=True))
            for topic, kept in list(self._retained_messages.items())
            if self._matches(topic, subject) and await self._topic_filtering(session, topic, Action.RECEIVE)
        ]
        if sending:
            await asyncio.wait(sending)

    async def watch(self, guard: Guard) -> None:
        """Takes renewed certificates, users and rules while it runs; what cannot be used is said and not taken."""
        renewal = Renewal(guard.files)
        while guard.files:
            await asyncio.sleep(WATCH_S)
            if not renewal.due():
                continue
            renewal = Renewal(guard.files)
            try:
                access = access_of(guard.users, guard.acl)
                if self.tls is not None:
                    load_pair(self.tls, guard)
            except ConfigError as error:
                logger.error("embedded broker: the renewed files are not taken: %s", error)
                continue
            logger.info("embedded broker: its renewed files are in use")
            await self._dismiss(self.door.renewed(access))

    async def _dismiss(self, names: set[str]) -> None:
        for session, handler in list(self._sessions.values()):
            if session.username in names:
                with contextlib.suppress(Exception):  # amqtt's own, of a client that leaves just now
                    await handler.handle_connection_closed()
                    await handler.stop()


def _handler_of(broker: GuardedBroker) -> type[BrokerProtocolHandler]:
    class Handler(BrokerProtocolHandler):  # type: ignore[misc]
        """Asks the doorkeeper about a CONNECT before the broker hears of it."""

        @classmethod
        async def init_from_connect(
            cls, reader: Any, writer: Any, plugins_manager: Any, loop: Any = None
        ) -> tuple[BrokerProtocolHandler, Session]:
            try:
                made = super().init_from_connect(reader, writer, plugins_manager, loop)
                handler, session = await asyncio.wait_for(made, CONNECT_S)
            except asyncio.TimeoutError as error:
                raise MQTTError("no CONNECT") from error
            code = await broker.door.refusal(session, broker.sessions)
            if code is not None:
                who = f"client {session.client_id!r} of user {session.username!r} from {session.remote_address}"
                _say(who, code)
                await ConnackPacket.build(0, code).to_stream(writer)
                raise MQTTError("refused")  # whereupon amqtt closes the connection
            return handler, session

    return Handler


_said: dict[str, float] = {}


def _say(who: str, code: int) -> None:
    """Says who is refused; the same at most once a minute."""
    now_s = time.monotonic()
    if now_s - _said.get(who, -60.0) >= 60.0:
        if len(_said) > 1000:
            _said.clear()
        _said[who] = now_s
        why = {2: "another user has its client id", 4: "wrong user name or password"}.get(
            code, "its will is not allowed"
        )
        logger.warning("embedded broker: BROKER_REFUSED: %s is not let in: %s", who, why)


async def serve(host: str, port: int, guard: Guard, ended: asyncio.Event) -> bool:
    """Runs the broker until `ended`; returns whether it could listen.

    Raises:
        ConfigError: its files cannot be used.
    """
    broker = GuardedBroker(host, port, guard)
    amqtt.broker.BrokerProtocolHandler = _handler_of(broker)  # amqtt has no other way in
    try:
        await broker.start()
    except BrokerError:
        return False
    watch = asyncio.get_running_loop().create_task(broker.watch(guard))
    await ended.wait()
    watch.cancel()
    return True
