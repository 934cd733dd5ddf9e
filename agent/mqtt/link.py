"""One MQTT connection of the agent, for as long as the agent runs: it comes back by itself and loses nothing of QoS 1.

MQTT 5 first and 3.1.1 where the broker refuses that. The session persists at the broker under a stable client id;
acknowledgements leave in the order of receipt; what was published at QoS 1 and not acknowledged is sent again after a
reconnect, and its `done` comes after that PUBACK. Everything runs on the loop's thread; nothing here blocks, and no
message makes a task. It keeps nothing on disk (that is the spool's), and routes nothing.

How it is put together, and why not paho for all of it: see `reconnecting`,
`session`, `stream`, `codec`, `in_flight` and `filters`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from agent import settings
from agent.errors import AgentError, RejectedError, TransientError
from agent.messages import NO_PROPERTIES, Inbound, Outbound
from agent.mqtt import codec
from agent.mqtt.connecting import address_of
from agent.mqtt.control import RECEIVE_MAXIMUM, SESSION_EXPIRY_S, Identity
from agent.mqtt.filters import FilterSet
from agent.mqtt.in_flight import Arrivals, Departure, Departures, Done, Encode, Refused
from agent.mqtt.reasons import FOR_NOW, name_of
from agent.mqtt.reconnecting import STABLE_S, STOP_TIMEOUT_S, Keeper
from agent.mqtt.session import Session, Terms
from agent.mqtt.stream import PacketStream
from agent.routing.topics import filter_problem

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 20.0
RECEIVE_MAXIMUM_311 = 20  # 3.1.1 has no Receive Maximum; brokers keep some 20 in flight
_UNEXPLAINED = frozenset(("BROKER_CLOSED", "BROKER_DISCONNECTED"))


class Link:
    """A connection to one broker.

    Args:
        settings: where the broker is.
        client_id: stable, so that the broker knows the session again.
        core: put into the user property ``core`` of what is published; messages that carry it are not received.
        will: gives what the broker is to publish when the agent vanishes; called at each CONNECT.
        max_backoff_s: longest wait between two tries to connect, seconds.
        on_message: called for each message, at QoS 1 with a ticket that must be given to `ack`.
        on_up, on_down: called after each CONNACK and when a connection that was up is lost.
        known_filters: what an earlier run was subscribed to; unsubscribed where it is not wanted any more.
        on_filters: called with the filters in force, before a new one is subscribed and when one is gone.
        retained: filters whose retained messages are wanted after each CONNACK, not only when they are new.
        session_expiry_s: how long the broker keeps the session, seconds; 0 for a short-lived client.

    Attributes:
        ack: acknowledges the message of a ticket; the PUBACK leaves when all older ones are acknowledged, with the
            next packet or some milliseconds later. Idempotent; a ticket of an earlier connection changes nothing. A
            second argument is what stands for the message in `not_acknowledged`.
        not_acknowledged: while `on_down` runs: what `ack` was called for, and the PUBACK did not leave.
        outstanding: QoS 1 messages published and not yet acknowledged by the broker, over reconnects, oldest first.
        divert: changes what is called for one of them.
        session_present: the broker knew the session when it last connected.
    """

    def __init__(
        self,
        settings: settings.Link,
        *,
        client_id: str,
        core: str,
        will: Callable[[], Outbound] | None = None,
        max_backoff_s: float,
        on_message: Callable[[Inbound], None],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        known_filters: Iterable[str] = (),
        on_filters: Callable[[frozenset[str]], None] | None = None,
        retained: Collection[str] = (),
        session_expiry_s: int = SESSION_EXPIRY_S,
    ) -> None:
        self.name = settings.name
        self.connected = False
        self.protocol = 0
        self.session_present = False
        self.generation = 0
        self.dropped = 0
        self._address = address_of(settings)
        identity = Identity(client_id, core, will, settings.keepalive_s, session_expiry_s)
        self._own = ("core", core)
        self._own_encoded = codec.user_property("core", core)
        self._on_message, self._on_up, self._on_down = on_message, on_up, on_down
        self._filters = FilterSet(known_filters, on_filters or (lambda _: None))
        self._retained = frozenset(retained)
        self._departures = Departures()
        self._arrivals = Arrivals()
        self.ack = self._arrivals.ack
        self.not_acknowledged: list[object] = []
        self.outstanding: Mapping[int, Departure] = self._departures.messages
        self.divert = self._departures.divert
        self._session: Session | None = None  # only while connected
        self._stream: PacketStream | None = None  # the session's, only while connected
        self._max_packet_bytes = codec.MAX_PACKET_BYTES
        self._encoded_for = 0
        self._encode_any: Encode
        self._encode: Encode  # refuses what this broker does not take
        self._up_since = self._asked_at = 0.0
        self._keeper = Keeper(settings, identity, self, self._departures.next_id, max_backoff_s)
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def last_error(self) -> str | None:
        """Why it is not connected; None while it is, and before the first try has ended."""
        return self._keeper.last_error

    @property
    def certificate_ends_s(self) -> float | None:
        """When the certificate is over with which it last connected, seconds since 1970; None: it shows none."""
        return self._keeper.certificate_ends_s

    @property
    def receive_maximum(self) -> int:
        """How many unacknowledged messages to count on: 100 on MQTT 5, where it is sent, 20 on 3.1.1."""
        return RECEIVE_MAXIMUM_311 if self.protocol == 4 else RECEIVE_MAXIMUM

    @property
    def max_packet_bytes(self) -> int:
        """The largest packet that the broker takes, as it said last."""
        return self._max_packet_bytes

    @property
    def unacknowledged(self) -> int:
        """Messages received on this connection whose PUBACK has not left."""
        return len(self._arrivals.order)

    @property
    def refused(self) -> dict[str, int]:
        """Filters that the broker refuses, with its reason code."""
        return dict(self._filters.refused)

    # use

    def start(self) -> None:
        """Begins to connect, for as long as it takes. Call it once, on the loop."""
        self._keeper.start()

    async def stop(self, last: Outbound | None = None) -> None:
        """Publishes `last`, waits for its PUBACK (2 s at most), disconnects normally and closes. Idempotent."""
        if self._session is not None and last is not None:
            acknowledged = asyncio.Event()
            try:
                self.publish(last, acknowledged.set)
                await asyncio.wait_for(acknowledged.wait(), STOP_TIMEOUT_S)
            except (AgentError, asyncio.TimeoutError):
                logger.warning("link %s: the last message has no acknowledgement", self.name)
        await self._keeper.stop(self._session)
        self._down()

    def publish(self, out: Outbound, done: Done | None = None, refused: Refused | None = None) -> None:
        """Publishes. `done` runs at the PUBACK, over reconnects too; at QoS 0 before this returns.

        Where the broker refuses it `refused` runs in its place, with why and whether it may take it later; without
        `refused` it is dropped, counted, and `done` runs.

        Never publish again what this took at QoS 1. A QoS 0 message is dropped, and counted in `dropped`, where the
        connection takes no more.

        Raises:
            TransientError: LINK_DOWN (nothing was taken), LINK_FULL.
            RejectedError: MESSAGE_TOO_LARGE for this broker, BAD_TOPIC, BAD_PROPERTY.
        """
        stream = self._stream
        if stream is None:
            raise TransientError("LINK_DOWN", f"The link {self.name} is not connected.")
        if out.qos:
            self._departures.send(out, done, self._encode, refused)
            return
        packet = self._encode(out, 0)
        if stream.congested:
            self.dropped += 1
        else:
            stream.write(packet)
        if done is not None:
            done()

    def set_filters(self, filters: Iterable[str]) -> None:
        """The filters that are wanted from now on. Filters that MQTT does not allow are logged and left out."""
        wanted = []
        for subject in filters:
            problem = filter_problem(subject)
            if problem:
                logger.error("link %s: not subscribed: %s", self.name, problem)
            else:
                wanted.append(subject)
        self._filters.want(wanted)
        self._subscribe()

    async def settled(self) -> None:
        """Returns when the broker has answered for every wanted filter, or the link is down."""
        while self._session is not None and not self._filters.settled:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    # a session's side

    def session_up(self, session: Session, terms: Terms) -> None:
        """CONNACK."""
        self._session, self._stream = session, session.stream
        assert self._stream is not None
        self.protocol = session.version
        self.session_present = terms.session_present
        self.generation += 1
        self.connected = True
        self._keeper.last_error = None
        self._up_since = asyncio.get_running_loop().time()
        self._max_packet_bytes = terms.max_packet_bytes
        logger.info("link %s: connected to %s, MQTT %s", self.name, self._address, {4: "3.1.1"}.get(self.protocol, "5"))
        self._encode_any = partial(codec.encode_publish, self._own_encoded if self.protocol == 5 else None)
        unlimited = self._max_packet_bytes >= codec.MAX_PACKET_BYTES
        self._encode = self._encode_any if unlimited else self._encode_within
        encode = self._encode_again if self._encoded_for not in (0, self.protocol) else None
        self._encoded_for = self.protocol
        self._arrivals.connected(self._stream.write_late)
        self._departures.connected(self._stream.write, terms.receive_maximum, encode)
        self._filters.connected(terms.session_present)
        self._subscribe()
        self._guarded(self._on_up)

    def session_down(self, session: Session, error: AgentError) -> None:
        """The connection is lost."""
        if session is self._session:
            self._keeper.note(error)
            lived_s = asyncio.get_running_loop().time() - self._up_since
            self._down(lived_s < STABLE_S and error.code in _UNEXPLAINED)

    def session_publish(self, first: int, data: bytes, at: int, end: int) -> None:
        """A PUBLISH of QoS 0 or 1."""
        topic, packet_id, properties, payload = codec.decode_publish(first, data, at, end, self.protocol == 5)
        ticket = self._arrivals.add(packet_id) if packet_id else 0
        if properties.user and self._own in properties.user:
            self.ack(ticket)
            return
        message = Inbound(
            self.name,
            topic,
            payload,
            first >> 1 & 1,
            bool(first & 1),
            bool(first & codec.DUP),
            properties,
            ticket,
            time.monotonic(),
        )
        try:
            self._on_message(message)
        except Exception:
            logger.exception("link %s: a message on %s could not be handled", self.name, topic)

    def session_puback(self, packet_id: int, reason: int) -> None:
        """The broker has a message, or refuses it for good."""
        departure = self._departures.acknowledged(packet_id)
        if departure is None:
            return
        if reason >= 0x80:
            self._lost(departure, f"refused by the broker ({name_of(reason)})", for_now=reason in FOR_NOW)
        elif departure.done is not None:
            try:
                departure.done()
            except Exception:
                self._blame()

    def session_answer(self, packet_id: int, codes: Sequence[int]) -> None:
        """SUBACK or UNSUBACK."""
        for subject, reason in self._filters.answered(packet_id, codes).items():
            logger.error("link %s: the broker refuses to subscribe %s (%s)", self.name, subject, name_of(reason))
        self._subscribe()

    def session_exactly_once(self, topic: str, payload: bytes) -> None:
        """A message of QoS 2, from a subscription that is not ours."""
        self._guarded(lambda: self._on_message(Inbound(self.name, topic, payload, 2, received_s=time.monotonic())))

    # inside

    def _down(self, suspicious: bool = False) -> None:
        left_behind = self._arrivals.forget()
        if not self.connected or self._stream is None:
            return
        self.not_acknowledged = [*self._stream.not_acknowledged, *left_behind]
        self.connected = False
        self._session = self._stream = None
        given_up = self._departures.disconnected(suspicious)
        self._release()
        if given_up is not None:
            self._lost(given_up, "given up: the broker closes the connection each time it is sent")
        self._guarded(self._on_down)
        self.not_acknowledged = []

    def _subscribe(self) -> None:
        session = self._session
        if session is None:
            return
        subscribe, packets = self._filters.next_round()
        for filters in packets:
            packet_id = session.subscribe(filters, self._retained) if subscribe else session.unsubscribe(filters)
            self._filters.sent(packet_id, subscribe, filters)
        if packets:
            loop = asyncio.get_running_loop()
            loop.call_later(ANSWER_TIMEOUT_S, self._check_answers, session, self._filters.rounds)
        if self._filters.settled:
            self._release()

    def _check_answers(self, session: Session, rounds: int) -> None:
        if session is self._session and self._filters.under_way and self._filters.rounds == rounds:
            session.fail(TransientError("BROKER_SILENT", f"{self._address} does not answer a SUBSCRIBE."))

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _encode_within(self, out: Outbound, packet_id: int) -> bytes:
        packet = self._encode_any(out, packet_id)
        if len(packet) > self._max_packet_bytes:
            raise RejectedError(
                "MESSAGE_TOO_LARGE",
                f"A message of {len(packet)} bytes on {out.topic} is over the {self._max_packet_bytes} that the broker"
                f" of the link {self.name} takes.",
                "Send less in one message, or raise the broker's limit.",
            )
        return packet

    def _encode_again(self, out: Outbound, packet_id: int) -> bytes:
        """For the other version, without refusing what was taken: what cannot be said in it is left out."""
        try:
            return self._encode_any(out, packet_id)
        except RejectedError:
            return self._encode_any(out._replace(properties=NO_PROPERTIES), packet_id)

    def _lost(self, departure: Departure, why: str, *, for_now: bool = False) -> None:
        if departure.refused is not None:
            refused = departure.refused
            self._guarded(lambda: refused(why, for_now))
            return
        self.dropped += 1
        logger.error("link %s: MESSAGE_REFUSED: a message on %s was %s", self.name, departure.out.topic, why)
        if departure.done is not None:
            self._guarded(departure.done)

    def _guarded(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            self._blame()

    def _blame(self) -> None:
        """Logs the exception that a callback raised."""
        logger.exception("link %s: a programming error in a callback", self.name)
