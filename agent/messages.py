"""The values that travel between the links and the rest of the agent; no MQTT library type goes beyond a link."""

from __future__ import annotations

from typing import NamedTuple

from agent.values import dataclass

JSON = "application/json"
MSGPACK = "application/msgpack"
BINARY = "application/octet-stream"


class Properties(NamedTuple):
    """The MQTT 5 properties that the agent reads and writes (MQTT 5, 3.3.2.3).

    A tuple, because one is made for each result: a frozen dataclass takes four times as long to make.
    """

    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: int | None = None
    user: tuple[tuple[str, str], ...] = ()


NO_PROPERTIES = Properties()


@dataclass(slots=True, eq=False)
class Inbound:
    """A message that a link received.

    Attributes:
        link: the link's name, ``local`` or ``cloud``.
        ticket: what `Link.ack` takes; 0 where there is nothing to acknowledge (QoS 0).
        received_s: monotonic clock at receipt, seconds.
    """

    link: str
    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    properties: Properties = NO_PROPERTIES
    ticket: int = 0
    received_s: float = 0.0


class Outbound(NamedTuple):
    """A message to publish. `properties` are dropped where the broker speaks MQTT 3.1.1."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False
    properties: Properties = NO_PROPERTIES
