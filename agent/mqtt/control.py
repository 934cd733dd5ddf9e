"""paho-mqtt's client on a pipe instead of a socket, for all but the two frequent packets.

It opens no connection, runs no thread and never reconnects: a client lives as long as one `Session`. It owns everything
that needs paho's types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agent.imports import postponed

# 1.4 MB and 10 ms, with http and email: paho asks for proxies on sockets of its own, and makes client ids up.
with postponed("urllib.request"), postponed("uuid"):
    import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from agent.messages import Outbound
from agent.mqtt.connecting import Address
from agent.mqtt.stream import MAX_PACKET_BYTES, PacketStream
from agent.values import dataclass

SESSION_EXPIRY_S = 7 * 24 * 3600  # the longest that AWS IoT Core keeps a session
RECEIVE_MAXIMUM = 100
_RETAINED_ALWAYS, _RETAINED_IF_NEW = 0, 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Who connects: the same for all connections of a link.

    Attributes:
        session_expiry_s: how long the broker keeps the session (MQTT 5), seconds; 0 asks 3.1.1 for a clean session.
    """

    client_id: str
    core: str
    will: Callable[[], Outbound] | None  # asked at each CONNECT, so that it is of that time
    keepalive_s: int
    session_expiry_s: int = SESSION_EXPIRY_S


class Pipe:
    """What paho takes for its socket."""

    def __init__(self, stream: PacketStream) -> None:
        self._stream = stream
        self._data = b""
        self._at = 0

    def feed(self, packet: bytes) -> None:
        """Gives paho one packet to read."""
        self._data, self._at = packet, 0

    def recv(self, size: int) -> bytes:
        if self._at >= len(self._data):
            raise BlockingIOError
        part = self._data[self._at : self._at + size]
        self._at += len(part)
        return part

    def send(self, data: bytes | bytearray) -> int:
        self._stream.write(bytes(data))
        return len(data)

    def setblocking(self, _flag: bool) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        self._stream.abort()


class Control(paho.Client):
    """paho on a pipe, with our packet ids. The two methods below are its only private ones that we touch."""

    def __init__(self, version: int, identity: Identity, next_id: Callable[[], int]) -> None:
        self.pipe: Pipe | None = None
        self._next_id = next_id
        self._identity = identity
        super().__init__(
            CallbackAPIVersion.VERSION2,
            identity.client_id,
            clean_session=None if version == 5 else identity.session_expiry_s == 0,
            protocol=MQTTProtocolVersion.MQTTv5 if version == 5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=False,
        )

    def _create_socket(self) -> Any:
        return self.pipe

    def _mid_generate(self) -> int:
        return self._next_id()

    def say_connect(self, address: Address, pipe: Pipe) -> None:
        """Writes CONNECT. The session outlives the connection, on 3.1.1 for as long as the broker likes."""
        self.pipe = pipe
        if address.username is not None:
            self.username_pw_set(address.username, address.password)
        options: dict[str, Any] = {}
        if self._identity.will is not None:
            self._set_will(self._identity.will())
        if self.protocol == MQTTProtocolVersion.MQTTv5:
            properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = self._identity.session_expiry_s
            properties.ReceiveMaximum = RECEIVE_MAXIMUM
            properties.MaximumPacketSize = MAX_PACKET_BYTES
            options = {"clean_start": False, "properties": properties}
        self.connect_async(address.host, address.port, self._identity.keepalive_s, **options)
        self.reconnect()

    def say_subscribe(self, filters: Sequence[str], retained: frozenset[str]) -> int:
        """Writes one SUBSCRIBE and returns its packet id. Retained messages come only for a subscription that is new,
        but always for the filters in `retained` (3.1.1 cannot choose)."""
        if self.protocol == MQTTProtocolVersion.MQTTv5:
            asked: list[Any] = [(one, _options(one, one in retained)) for one in filters]
        else:
            asked = [(one, 1) for one in filters]
        return self.subscribe(asked)[1] or 0

    def say_unsubscribe(self, filters: Sequence[str]) -> int:
        """Writes one UNSUBSCRIBE and returns its packet id."""
        return self.unsubscribe(list(filters))[1] or 0

    def _set_will(self, will: Outbound) -> None:
        properties: Any = None
        if self.protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.WILLMESSAGE)  # type: ignore[no-untyped-call]
            properties.UserProperty = ("core", self._identity.core)
        self.will_set(will.topic, will.payload, will.qos, will.retain, properties)


def _options(subject: str, retained: bool) -> SubscribeOptions:
    # MQTT 5, 3.8.3.1: noLocal on a shared subscription is a protocol error.
    shared = subject.startswith("$share/")
    handling = _RETAINED_ALWAYS if retained else _RETAINED_IF_NEW
    # Retain as published: a deployment that is to be kept is seen to be so when it is first sent, too.
    return SubscribeOptions(qos=1, noLocal=not shared, retainAsPublished=True, retainHandling=handling)
