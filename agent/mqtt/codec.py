"""MQTT's two frequent packets, PUBLISH and PUBACK, to bytes and back. Pure: bytes in, values out.

paho builds some forty objects for the properties of one MQTT 5 packet, which caps a link at a few thousand messages a
second. So these two packets are read and written here, by offsets in the received bytes; all the others stay paho's.
It refuses what MQTT forbids (wildcards in a topic, NUL, strings over 65,535 bytes), because a broker closes the
connection on such a packet, and a QoS 1 message would then be sent again and again.

Source: OASIS MQTT 5.0, 2.2.2 (properties), 3.3 (PUBLISH), 3.4 (PUBACK); MQTT 3.1.1, 3.3, 3.4.
"""

from __future__ import annotations

from functools import lru_cache

from agent.errors import RejectedError
from agent.messages import NO_PROPERTIES, Outbound, Properties
from agent.routing.topics import name_problem

PUBLISH = 0x30
PUBACK = 0x40
PUBACK_HEAD = b"\x40\x02"  # of one that says success, in either version; its packet id follows
DUP = 0x08
MAX_PACKET_BYTES = 268_435_460  # the largest remaining length, 268,435,455, and its fixed header of five bytes

_EXPIRY, _CONTENT_TYPE, _RESPONSE_TOPIC, _CORRELATION, _USER = 0x02, 0x03, 0x08, 0x09, 0x26
# Properties that a PUBLISH may carry and that the agent does not read: identifier to size in bytes.
_IGNORED_SIZE = {0x01: 1, 0x23: 2}
_BYTES = tuple(bytes((value,)) for value in range(256))
_SUBSCRIPTION_IDENTIFIER = 0x0B


class MalformedError(ValueError):
    """The broker sent bytes that are no MQTT packet; the connection cannot go on."""


def varint(value: int) -> bytes:
    """`value` as a variable byte integer of one to four bytes (MQTT 5, 1.5.5)."""
    if value < 128:
        return _BYTES[value]
    if value < 16384:
        return _BYTES[value & 127 | 128] + _BYTES[value >> 7]
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | bytearray, at: int, end: int) -> tuple[int, int]:
    """The variable byte integer at `at` and the offset after it.

    Raises:
        MalformedError: it is longer than four bytes, or `end` comes first.
    """
    value = shift = 0
    for position in range(at, min(at + 4, end)):
        byte = data[position]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position + 1
        shift += 7
    raise MalformedError("a variable byte integer is cut off or longer than four bytes")


_SMALL = 1024
_SIZES = tuple(map(varint, range(_SMALL)))


def puback(packet_id: int) -> bytes:
    """A PUBACK that says success, in either version."""
    return PUBACK_HEAD + packet_id.to_bytes(2, "big")


def read_puback(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(packet id, reason code) of the PUBACK whose body is ``data[at:end]``; 3.1.1's has no reason: 0."""
    if end - at < 2:
        raise MalformedError("a PUBACK without a packet id")
    return data[at] << 8 | data[at + 1], data[at + 2] if end - at > 2 else 0


def encode_publish(extra: bytes | None, out: Outbound, packet_id: int) -> bytes:
    """The whole PUBLISH packet.

    Args:
        extra: properties that are encoded already, put behind the others; None: it is MQTT 3.1.1, without any.
        out: what to publish, QoS 0 or 1.
        packet_id: 1 to 65,535; not used for QoS 0.

    Raises:
        RejectedError: BAD_TOPIC, BAD_PROPERTY, or MESSAGE_TOO_LARGE for what no MQTT packet can hold.
    """
    topic, payload, qos, retain, properties = out
    content_type, response_topic, correlation, expiry_s, user = properties
    first = _BYTES[PUBLISH | qos << 1 | retain]
    packet = packet_id.to_bytes(2, "big") if qos else b""
    head = _topic(topic)
    if extra is None:
        told = b""
    elif not user or user[0][0] != _ONCE or (response_topic, correlation, expiry_s) != _NEITHER:
        told = encode_properties(properties, extra)
    else:  # most results
        request = user[0][1]
        before, after, size = _around.get((content_type, user[1:], extra)) or _enclose(content_type, user[1:], extra)
        size += len(request)
        if size < _SMALL and request.isascii() and "\0" not in request:
            length = len(head) + len(packet) + len(_SIZES[size]) + size + len(payload)
            return b"".join((
                first, _SIZES[length] if length < _SMALL else varint(length), head, packet,
                _SIZES[size], before, len(request).to_bytes(2, "big"), request.encode(), after, payload,
            ))  # fmt: skip
        told = encode_properties(properties, extra)
    length = len(head) + len(packet) + len(told) + len(payload)
    if length > MAX_PACKET_BYTES - 5:
        raise RejectedError(
            "MESSAGE_TOO_LARGE",
            f"A message of {len(payload)} bytes on {topic} is larger than MQTT allows.",
            "Send less in one message.",
        )
    return b"".join((first, varint(length), head, packet, told, payload))


def decode_publish(first: int, data: bytes, at: int, end: int, v5: bool) -> tuple[str, int, Properties, bytes]:
    """(topic, packet id or 0, properties, payload) of the PUBLISH whose body is ``data[at:end]``.

    Args:
        first: the packet's first byte, with its flags.

    Raises:
        MalformedError: it is no PUBLISH packet.
    """
    try:
        begin = at + 2
        at = begin + (data[at] << 8 | data[at + 1])
        topic = str(data[begin:at], "utf-8")
        packet_id = 0
        if first & 0x06:
            packet_id = data[at] << 8 | data[at + 1]
            at += 2
        properties = NO_PROPERTIES
        if v5:
            length, at = (data[at], at + 1) if data[at] < 128 else read_varint(data, at, end)
            if length:
                properties = decode_properties(data, at, at + length)
                at += length
    except (IndexError, UnicodeDecodeError) as error:
        raise MalformedError(f"a PUBLISH that cannot be read ({error})") from error
    if at > end:
        raise MalformedError("a PUBLISH whose parts are longer than the packet")
    return topic, packet_id, properties, data[at:end]


def user_property(name: str, value: str) -> bytes:
    """One user property, encoded.

    Raises:
        RejectedError: BAD_PROPERTY.
    """
    return b"\x26" + _text(name) + _sized_text(value)


def encode_properties(properties: Properties, extra: bytes = b"") -> bytes:
    """The properties of a PUBLISH with their length in front.

    Args:
        extra: properties that are encoded already, put behind the others.

    Raises:
        RejectedError: BAD_PROPERTY, one of them cannot be sent in MQTT.
    """
    if properties is NO_PROPERTIES:
        return varint(len(extra)) + extra
    content_type, response_topic, correlation, expiry_s, user = properties
    parts = []
    if expiry_s is not None:
        parts.append(b"\x02" + min(max(expiry_s, 0), 0xFFFFFFFF).to_bytes(4, "big"))
    if content_type is not None:
        parts.append(b"\x03" + _text(content_type))
    if response_topic is not None:
        parts.append(b"\x08" + _topic(response_topic))
    if correlation is not None:
        parts.append(b"\x09" + _sized(correlation))
    parts += [user_property(*pair) for pair in user]
    parts.append(extra)
    body = b"".join(parts)
    return varint(len(body)) + body


def decode_properties(data: bytes, at: int, end: int) -> Properties:
    """The properties in ``data[at:end]`` of a PUBLISH; those that the agent does not use are skipped.

    Raises:
        MalformedError: one is unknown, cut off or no UTF-8.
    """
    content_type = response_topic = correlation = expiry_s = None
    user: list[tuple[str, str]] = []
    while at < end:
        identifier = data[at]
        at += 1
        if identifier == _USER:
            name, at = _read_sized(data, at, end)
            value, at = _read_sized(data, at, end)
            user.append((str(name, "utf-8"), str(value, "utf-8")))
        elif identifier == _CORRELATION:
            correlation, at = _read_sized(data, at, end)
        elif identifier == _RESPONSE_TOPIC:
            text, at = _read_sized(data, at, end)
            response_topic = str(text, "utf-8")
        elif identifier == _CONTENT_TYPE:
            text, at = _read_sized(data, at, end)
            content_type = str(text, "utf-8")
        elif identifier == _EXPIRY:
            expiry_s = int.from_bytes(data[at : at + 4], "big")
            at += 4
        elif identifier == _SUBSCRIPTION_IDENTIFIER:
            _, at = read_varint(data, at, end)
        elif identifier in _IGNORED_SIZE:
            at += _IGNORED_SIZE[identifier]
        else:
            raise MalformedError(f"a PUBLISH with the property {identifier:#04x}")
    if at != end:
        raise MalformedError("a PUBLISH whose properties are longer than they say")
    return Properties(content_type, response_topic, correlation, expiry_s, tuple(user))


def _read_sized(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    begin = at + 2
    if begin > end:
        raise MalformedError("a property that is cut off")
    after = begin + (data[at] << 8 | data[at + 1])
    if after > end:
        raise MalformedError("a property that is cut off")
    return data[begin:after], after


def _sized(value: bytes) -> bytes:
    if len(value) > 0xFFFF:
        raise RejectedError("BAD_PROPERTY", "A message property is longer than the 65,535 bytes that MQTT allows.")
    return len(value).to_bytes(2, "big") + value


# Properties come back: all of a function's results have the same, but for their request, which is the first of the
# user's. What stands before and after its value is encoded once; all are forgotten when there are so many.
_ONCE = "request"
_NEITHER = (None, None, None)
_MAX_KEPT = 512
_Around = tuple[bytes, bytes, int]
_around: dict[tuple[str | None, tuple[tuple[str, str], ...], bytes], _Around] = {}


def _enclose(content_type: str | None, others: tuple[tuple[str, str], ...], extra: bytes) -> _Around:
    """What stands before and after the length and the text of a result's request, and its size with that length.

    Raises:
        RejectedError: BAD_PROPERTY.
    """
    before = (b"" if content_type is None else b"\x03" + _text(content_type)) + b"\x26" + _text(_ONCE)
    after = b"".join([user_property(*pair) for pair in others]) + extra
    around = before, after, len(before) + 2 + len(after)
    if around[2] < _SMALL:
        if len(_around) >= _MAX_KEPT:
            _around.clear()
        _around[content_type, others, extra] = around
    return around


def _sized_text(value: str) -> bytes:
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        encoded = b"\0"
    if b"\0" in encoded:
        raise RejectedError("BAD_PROPERTY", f"The message property {value[:64]!r} holds what MQTT forbids in a text.")
    return _sized(encoded)


_text = lru_cache(maxsize=512)(_sized_text)


@lru_cache(maxsize=1024)
def _topic(topic: str) -> bytes:
    problem = name_problem(topic)
    if problem:
        raise RejectedError("BAD_TOPIC", f"Nothing can be published there: {problem[:200]}.")
    encoded = topic.encode()
    return len(encoded).to_bytes(2, "big") + encoded
