"""One connection to a broker, from CONNECT to its end: paho speaks the protocol on the stream of the event loop.

paho does CONNECT, CONNACK, SUBSCRIBE, UNSUBSCRIBE, keep-alive, a broker's DISCONNECT and QoS 2 (which nobody here asks
for). PUBLISH and PUBACK go past it to the link, see `codec`. paho never sees the socket: it reads and writes a `Pipe`
that holds one packet at a time. A session never reconnects; the link makes a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from agent.errors import AgentError, TransientError
from agent.mqtt import codec
from agent.mqtt.connecting import Address, ended
from agent.mqtt.control import Control, Identity, Pipe
from agent.mqtt.reasons import connack_error, disconnect_error
from agent.mqtt.stream import PacketStream
from agent.values import dataclass

logger = logging.getLogger(__name__)

_DISCONNECT = b"\xe0\x00"  # normal disconnection, in either version


@dataclass(frozen=True, slots=True)
class Terms:
    """What the broker's CONNACK grants."""

    session_present: bool = False
    receive_maximum: int = 65535
    max_packet_bytes: int = codec.MAX_PACKET_BYTES


class Owner(Protocol):
    """Who is told what happens on a session; all on the loop's thread."""

    def session_up(self, session: Session, terms: Terms) -> None:
        """CONNACK: the session can be used."""

    def session_publish(self, first: int, data: bytes, at: int, end: int) -> None:
        """A PUBLISH of QoS 0 or 1, not decoded."""

    def session_puback(self, packet_id: int, reason: int) -> None:
        """A PUBACK."""

    def session_answer(self, packet_id: int, codes: Sequence[int]) -> None:
        """A SUBACK or UNSUBACK."""

    def session_exactly_once(self, topic: str, payload: bytes) -> None:
        """A message of QoS 2, which paho has acknowledged."""

    def session_down(self, session: Session, error: AgentError) -> None:
        """It has ended, after `session_up`."""


class Session:
    """One connection. `version` is 5 or 4 (3.1.1)."""

    def __init__(
        self, owner: Owner, version: int, identity: Identity, address: Address, next_id: Callable[[], int]
    ) -> None:
        self.version = version
        self.stream: PacketStream | None = None
        self.over: asyncio.Future[AgentError] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self.publish = owner.session_publish
        self.puback = owner.session_puback
        self._address = address
        self._identity = identity
        self._up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._error: AgentError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pipe: Pipe | None = None
        self._paho = Control(version, identity, next_id)
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = self._on_disconnect
        self._paho.on_message = self._on_message
        self._paho.on_subscribe = self._paho.on_unsubscribe = self._on_answer

    async def open(self, stream: PacketStream, timeout_s: float) -> None:
        """Sends CONNECT and returns after the CONNACK, when the owner has had its `session_up`.

        Raises:
            TransientError: the broker refuses, is silent or closes the connection.
        """
        self.stream = stream
        self._pipe = Pipe(stream)
        self._paho.say_connect(self._address, self._pipe)
        try:
            await asyncio.wait_for(self._up, timeout_s)
        except asyncio.TimeoutError as error:
            raise TransientError(
                "BROKER_SILENT",
                f"{self._address} took the connection and does not answer in MQTT.",
                "Check that an MQTT broker listens on this port, with TLS where the url says mqtts.",
            ) from error
        finally:
            if not self._up.done() or self._up.cancelled() or self._up.exception() is not None:
                self.drop()

    def subscribe(self, filters: Sequence[str], retained: frozenset[str]) -> int:
        """Sends one SUBSCRIBE, see `Control.say_subscribe`, and returns its packet id."""
        return self._paho.say_subscribe(filters, retained)

    def unsubscribe(self, filters: Sequence[str]) -> int:
        """Sends one UNSUBSCRIBE and returns its packet id."""
        return self._paho.say_unsubscribe(filters)

    def leave(self, why: AgentError | None = None) -> None:
        """Says DISCONNECT, so that the broker keeps the will to itself, and closes when it has left."""
        if self.stream is not None:
            self._fail(why or TransientError("LINK_STOPPED", "The connection was closed by the agent."))
            self.stream.write(_DISCONNECT)
            self.stream.end_writing()

    def drop(self) -> None:
        """Closes at once, without a word to the broker or the owner."""
        if self._timer is not None:
            self._timer.cancel()
        if self.stream is not None:
            self.stream.detach()
        if not self.over.done():
            self.over.set_result(self._error or TransientError("LINK_STOPPED", "The connection was closed."))

    def fail(self, error: AgentError) -> None:
        """Closes because of `error`, which the owner is told."""
        self._fail(error)
        if self.stream is not None:
            self.stream.abort()

    # the stream's side

    def packet(self, first: int, data: bytes, at: int, end: int) -> None:
        if first & 0xF0 == codec.PUBACK:
            self._owner.session_puback(*codec.read_puback(data, at, end))
        else:
            self._to_paho(bytes((first,)) + codec.varint(end - at) + data[at:end])

    def stream_lost(self, error: Exception | None) -> None:
        self._fail(ended(error, self._address))
        assert self._error is not None
        if self._timer is not None:
            self._timer.cancel()
        if not self._up.done():
            self._up.set_exception(self._error)
            return
        self._owner.session_down(self, self._error)
        if not self.over.done():
            self.over.set_result(self._error)

    # paho's side

    def _to_paho(self, packet: bytes) -> None:
        assert self._pipe is not None
        self._pipe.feed(packet)
        try:
            self._paho.loop_read()
            if self._paho.want_write():  # what a callback asked for
                self._paho.loop_write()
        except Exception:
            logger.exception("a packet of %s cannot be handled", self._address)
            self.fail(ended(codec.MalformedError("a packet that cannot be handled"), self._address))
        if self._paho.socket() is None:
            self.fail(ended(codec.MalformedError("a packet out of place"), self._address))

    def _on_connect(self, _client: Any, _userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        if self._up.done():
            return
        if reason.is_failure:
            self._fail(connack_error(reason.value, self._address, self._identity.client_id))
            return
        self._up.set_result(None)
        self._tick_later()
        self._owner.session_up(
            self,
            Terms(
                bool(flags.session_present),
                getattr(properties, "ReceiveMaximum", 65535),
                getattr(properties, "MaximumPacketSize", codec.MAX_PACKET_BYTES),
            ),
        )

    def _on_disconnect(self, _client: Any, _userdata: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if flags.is_disconnect_packet_from_server:
            self._fail(disconnect_error(reason.value if reason else 0, self._address, self._identity.client_id))

    def _on_message(self, _client: Any, _userdata: Any, message: Any) -> None:
        self._owner.session_exactly_once(message.topic, bytes(message.payload))

    def _on_answer(self, _client: Any, _userdata: Any, packet_id: int, codes: Any, _properties: Any) -> None:
        self._owner.session_answer(packet_id, [code.value for code in codes])

    def _tick(self) -> None:
        # paho pings when a keep-alive has gone by, and gives up when another one has without an answer. Four looks an
        # interval keep the ping within the one and a half intervals that a broker allows.
        self._paho.loop_misc()
        if self._paho.socket() is None:
            self.fail(
                TransientError("BROKER_SILENT", f"{self._address} did not answer within {self._paho.keepalive} s.")
            )
        else:
            self._tick_later()

    def _tick_later(self) -> None:
        interval_s = max(self._paho.keepalive, 4) / 4
        self._timer = asyncio.get_running_loop().call_later(interval_s, self._tick)

    def _fail(self, error: AgentError) -> None:
        self._error = self._error or error
