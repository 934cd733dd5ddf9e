"""What is written to the spool, and how a message becomes bytes there and a message again. Pure.

A record is msgpack with a CRC-32 before it: SQLite notices a broken page, not a flipped bit in a payload.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

import msgpack

from agent.messages import Inbound, Outbound, Properties
from agent.values import dataclass

_CRC_BYTES = 4

Key = tuple[str, str]  # (link, kind)
KINDS = ("report", "result", "capture")
DEAD = "dead"  # the kind under which dead letters are counted


@dataclass(slots=True, eq=False)
class Append:
    """Keep `out` for `link`.

    Attributes:
        value: how much a capture is worth, 0 to 1; those worth least go first.
        stored_at: by the spool's clock, seconds.
        dead: why it can never be handed over; None: it can.
        sent: it is on its way already, and not given out again by this run.
    """

    seq: int
    link: str
    kind: str
    out: Outbound
    committed: Callable[[], None] | None = None
    value: float = 0.0
    stored_at: float = 0.0
    dead: str | None = None
    sent: bool = False


@dataclass(slots=True, eq=False)
class Forget:
    """These records leave: they are in the next broker's hands, or lost: `why` is ``expired`` or ``damaged`` then."""

    seqs: list[int]
    why: str | None = None


@dataclass(slots=True, eq=False)
class Lose:
    """So many records of each kind were dropped before they came to the disk."""

    counts: Counter[str]


@dataclass(slots=True, eq=False)
class Tried:
    """The broker refused this record for now, so many times."""

    seq: int
    tries: int


@dataclass(slots=True, eq=False)
class Bury:
    """This record can never be handed over, because of `why`: it is a dead letter."""

    seq: int
    why: str


@dataclass(slots=True, eq=False)
class Exhume:
    """Dead letters back among the records (`retry`), or away for good. `seqs`: None for all."""

    seqs: list[int] | None
    retry: bool
    committed: Callable[[], None] | None = None


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


Write = Append | Forget | Lose | Tried | Bury | Exhume | PutInbox | DropInbox


@dataclass(slots=True, eq=False)
class Record:
    """A committed record as the outbox gets it.

    Attributes:
        id: the same whenever it is sent: who gets it twice knows it by that.
        expires_at: by the spool's clock, seconds; None: never.
        tries: how often the broker has refused it.
    """

    seq: int
    kind: str
    id: str
    out: Outbound
    expires_at: float | None = None
    tries: int = 0


@dataclass(slots=True, eq=False)
class DeadLetter:
    """What can never be handed over as it is."""

    seq: int
    link: str
    kind: str
    size: int
    topic: str
    why: str
    at: float


@dataclass(slots=True)
class Outcome:
    """What became of a group of writes.

    Attributes:
        dropped: for want of room, for a quota or because they cannot be written.
        expired: because their time was over.
        revived: dead letters that are records again.
        lost: all that was there before, with a broken file.
        bytes: how much the records of each key take now; None where nothing was written.
    """

    dropped: Counter[Key] = field(default_factory=Counter)
    expired: Counter[Key] = field(default_factory=Counter)
    revived: Counter[Key] = field(default_factory=Counter)
    lost: bool = False
    bytes: dict[Key, int] | None = None
    dead: int = 0


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
        received_at: when it was received, by the spool's clock: the monotonic clock does not outlive a boot.
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
        now: by the spool's clock.
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
