"""What is written to the spool, and how a message becomes bytes there and a message again. Pure.

A record is msgpack with a CRC-32 before it: SQLite notices a broken page, not a flipped bit in a payload.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from agent.messages import Inbound, Outbound, Properties

_CRC_BYTES = 4

Key = tuple[str, str]  # (link, kind)


@dataclass(slots=True, eq=False)
class Append:
    """Keep `out` for `link`. `value`: how much a capture is worth, 0 to 1; those worth least go first."""

    seq: int
    link: str
    kind: str
    out: Outbound
    committed: Callable[[], None] | None = None
    value: float = 0.0


@dataclass(slots=True, eq=False)
class Forget:
    """These records are in the next broker's hands."""

    seqs: list[int]


@dataclass(slots=True, eq=False)
class PutInbox:
    """Keep a request that is acknowledged before its outcome."""

    key: str
    message: Inbound
    targets: list[str]
    received_at: float
    committed: Callable[[], None] | None = None


@dataclass(slots=True, eq=False)
class DropInbox:
    """The request has its outcome."""

    key: str


Write = Append | Forget | PutInbox | DropInbox


class DamagedRecordError(Exception):
    """The bytes are not what was written."""


def pack_outbound(out: Outbound) -> bytes:
    """`out` as bytes."""
    return _pack([out.topic, out.payload, out.qos, out.retain, _properties(out.properties)])


def unpack_outbound(body: bytes) -> Outbound:
    """What `pack_outbound` was given; raises DamagedRecordError."""
    topic, payload, qos, retain, properties = _unpack(body, 5)
    return Outbound(topic, payload, qos, retain, _as_properties(properties))


def pack_inbound(message: Inbound, targets: Sequence[str], received_at: float) -> bytes:
    """`message` and its targets as bytes.

    Args:
        received_at: when it was received, seconds since 1970: the monotonic clock does not outlive a boot.
    """
    return _pack(
        [
            message.link,
            message.topic,
            message.payload,
            message.qos,
            message.retain,
            _properties(message.properties),
            list(targets),
            received_at,
        ]
    )


def unpack_inbound(body: bytes, now: float, monotonic: float) -> tuple[Inbound, list[str]]:
    """What `pack_inbound` was given, without its ticket: no acknowledgement outlives its connection.

    Args:
        now: seconds since 1970.
        monotonic: the monotonic clock at `now`; the message's receipt is given on it, so that its expiry goes on.

    Raises:
        DamagedRecordError: these are not the bytes that were written.
    """
    link, topic, payload, qos, retain, properties, targets, received_at = _unpack(body, 8)
    age_s = max(0.0, now - received_at)  # a clock that was set back makes nothing younger than new
    message = Inbound(link, topic, payload, qos, retain, False, _as_properties(properties), 0, monotonic - age_s)
    return message, list(targets)


def _pack(values: list[Any]) -> bytes:
    body: bytes = msgpack.packb(values)
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "big") + body


def _unpack(record: bytes, count: int) -> list[Any]:
    body = memoryview(record)[_CRC_BYTES:]
    if len(record) <= _CRC_BYTES or zlib.crc32(body) != int.from_bytes(record[:_CRC_BYTES], "big"):
        raise DamagedRecordError
    values: list[Any] = msgpack.unpackb(body)
    if len(values) != count:
        raise DamagedRecordError
    return values


def _properties(properties: Properties) -> list[Any]:
    return [
        properties.content_type,
        properties.response_topic,
        properties.correlation,
        properties.expiry_s,
        [list(pair) for pair in properties.user],
    ]


def _as_properties(values: list[Any]) -> Properties:
    content_type, response_topic, correlation, expiry_s, user = values
    return Properties(content_type, response_topic, correlation, expiry_s, tuple((k, v) for k, v in user))
