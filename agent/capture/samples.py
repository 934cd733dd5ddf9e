"""A sample as the cloud gets it, in JSON or msgpack. Pure."""

from __future__ import annotations

import base64
import json
from typing import Any, Final

import msgpack

from agent.inference.requests import Origin
from agent.messages import JSON, MSGPACK
from agent.values import dataclass

_INPUT: Final = b', "input": '
_OUTPUT: Final = b', "output": '
Payload = tuple[str, bytes]  # content type, bytes


@dataclass(frozen=True, slots=True)
class Reference:
    """A payload that lies in S3 and not in the sample.

    Attributes:
        type: its content type.
        uri: ``s3://bucket/key``.
        digest: ``sha256:`` and 64 hex digits.
        size: bytes.
    """

    type: str
    uri: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and what a function made of it.

    Attributes:
        value: what it is worth, in [0, 1].
        given: the request's payload, or where that lies.
        made: the first result's, likewise; None where there was none.
    """

    id: str
    reason: str
    value: float
    origin: Origin
    topic: str
    timestamp: str
    given: Payload | Reference
    made: Payload | Reference | None


def size(sample: Sample) -> int:
    """How many bytes the sample takes as JSON, before its payloads are encoded."""
    return len(_start(sample)) + len(_INPUT) + len(_OUTPUT) + 1 + _size(sample.given) + _size(sample.made)


def _size(part: Payload | Reference | None) -> int:
    if part is None or isinstance(part, Reference):
        return len(_in_json(part))
    content_type, payload = part
    return len(payload) if content_type == JSON else (len(payload) + 2) // 3 * 4 + 2


def head(sample: Sample) -> dict[str, Any]:
    """All of a sample but its payloads. The type of one that is not JSON is named: ``input_type``, ``output_type``."""
    values: dict[str, Any] = {
        "id": sample.id,
        "reason": sample.reason,
        "value": round(sample.value, 4),
        "function": sample.origin.function,
        "model": sample.origin.model,
        "version": sample.origin.version,
        "deployment": sample.origin.deployment,
        "topic": sample.topic,
        "timestamp": sample.timestamp,
    }
    for key, part in (("input_type", sample.given), ("output_type", sample.made)):
        if part is not None and type_of(part) != JSON:
            values[key] = type_of(part)
    return values


def type_of(part: Payload | Reference) -> str:
    """A payload's content type."""
    return part.type if isinstance(part, Reference) else part[0]


def to_json(sample: Sample) -> bytes:
    """The sample in JSON: JSON goes in as it is, anything else as base64."""
    return b"".join((_start(sample), _INPUT, _in_json(sample.given), _OUTPUT, _in_json(sample.made), b"}"))


def _start(sample: Sample) -> bytes:
    return json.dumps(head(sample), ensure_ascii=False)[:-1].encode(errors="replace")


def _in_json(part: Payload | Reference | None) -> bytes:
    if part is None:
        return b"null"
    if isinstance(part, Reference):
        return json.dumps(_reference(part)).encode()
    content_type, payload = part
    return payload if content_type == JSON else b'"' + base64.b64encode(payload) + b'"'


def to_msgpack(sample: Sample) -> bytes:
    """The sample in msgpack: JSON and msgpack go in as values, anything else as bytes."""
    values = head(sample)
    packer = msgpack.Packer()
    parts = [packer.pack_map_header(len(values) + 2)]
    for key, value in values.items():
        parts += [packer.pack(key), packer.pack(value)]
    parts += [packer.pack("input"), _in_msgpack(sample.given), packer.pack("output"), _in_msgpack(sample.made)]
    return b"".join(parts)


def _in_msgpack(part: Payload | Reference | None) -> bytes:
    if part is None or isinstance(part, Reference):
        packed: bytes = msgpack.packb(part and _reference(part))
        return packed
    content_type, payload = part
    if content_type == MSGPACK:
        return payload
    try:
        packed = msgpack.packb(json.loads(payload) if content_type == JSON else payload)
    except (ValueError, OverflowError):  # a number beyond 64 bits has no place in msgpack
        packed = msgpack.packb(payload)
    return packed


def _reference(reference: Reference) -> dict[str, Any]:
    return {"s3": reference.uri, "digest": reference.digest, "size": reference.size}
