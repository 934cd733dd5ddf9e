"""A sample read back from the message that it was published as. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgpack

from agent.errors import RejectedError
from agent.messages import BINARY, JSON, MSGPACK
from agent.values import dataclass

REFERENCE: Final = "application/vnd.marram.reference+json"  # of a payload that lies in S3
TEXTS: Final = ("id", "reason", "function", "topic", "timestamp")


@dataclass(frozen=True, slots=True)
class Part:
    """A payload: its content type and bytes. Of one that lies in S3, `REFERENCE` and where, as JSON."""

    type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """A sample.

    Attributes:
        head: all of it but the payloads.
        made: None where there was no result.
    """

    head: dict[str, Any]
    given: Part
    made: Part | None

    @property
    def id(self) -> str:
        """The sample's id: who gets two with the same has one of them twice."""
        return str(self.head["id"])


def parse(body: bytes) -> Received:
    """The sample that a message holds, in JSON or msgpack, whichever it is.

    Raises:
        RejectedError: NOT_A_SAMPLE.
    """
    packed = body.lstrip()[:1] != b"{"
    try:
        values = msgpack.unpackb(body) if packed else json.loads(body)
        given, made = values.pop("input"), values.pop("output")
        types = [values.pop(key, None) or JSON for key in ("input_type", "output_type")]
        if not all(isinstance(values[key], str) for key in TEXTS):
            raise TypeError(values)
        return Received(values, _part(given, types[0], packed), None if made is None else _part(made, types[1], packed))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, msgpack.UnpackException) as error:
        text = f"What came is no sample ({type(error).__name__})."
        raise RejectedError("NOT_A_SAMPLE", text, "Give messages of a core's capture topic.") from error


def _part(value: Any, type: str, packed: bool) -> Part:
    if isinstance(value, dict) and {"s3", "digest", "size"} == value.keys():
        return Part(REFERENCE, json.dumps({**value, "type": type}).encode())
    if type == JSON:
        return Part(JSON, json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    if packed:
        return Part(type, msgpack.packb(value) if type == MSGPACK else bytes(value))
    try:
        return Part(type, base64.b64decode(value, validate=True))
    except binascii.Error as error:
        raise ValueError(value) from error


class Waiting:
    """What waits, by function and reason: how many, bytes, values from and to, since when."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], dict[str, Any]] = {}

    def add(self, bodies: Iterable[bytes]) -> None:
        """Counts messages; what is no sample is nothing."""
        for body in bodies:
            self._add(body)

    def _add(self, body: bytes) -> None:
        try:
            head = parse(body).head
        except RejectedError:
            return
        value, since = float(head.get("value") or 0.0), str(head["timestamp"])
        key = str(head["function"]), str(head["reason"])
        fresh = {"function": key[0], "reason": key[1], "count": 0, "bytes": 0, "least": value, "most": value}
        each = self._found.setdefault(key, {**fresh, "since": since})
        each["count"] += 1
        each["bytes"] += len(body)
        each["least"], each["most"] = min(each["least"], value), max(each["most"], value)
        each["since"] = min(each["since"], since)

    def told(self) -> list[dict[str, Any]]:
        return [each for _, each in sorted(self._found.items())]


def lines(data: bytes) -> Iterator[bytes]:
    """The messages in a file of one JSON object a line, as `mosquitto_sub` writes them (with or without the topic)."""
    for line in data.splitlines():
        start = line.find(b"{")
        if start >= 0:
            yield line[start:]


def suffix(type: str) -> str:
    """A file name's end for a content type, without the dot."""
    return {JSON: "json", MSGPACK: "msgpack", REFERENCE: "s3.json", BINARY: "bin"}.get(type, "bin")
