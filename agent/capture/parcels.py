"""Samples whose payloads go to S3 first: what is written of them until then, and which go when room is short. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from agent.capture.received import suffix
from agent.capture.samples import Payload, Reference, Sample, size
from agent.inference.requests import Origin
from agent.values import dataclass

FIELDS: Final = ("given", "made")


@dataclass(frozen=True, slots=True)
class Parcel:
    """A sample on its way.

    Attributes:
        sample: with references in place of what goes to S3.
        contents: these payloads' bytes, by field; empty once they are on the disk.
        bytes: of these payloads together.
    """

    sample: Sample
    contents: Mapping[str, bytes]
    bytes: int

    @property
    def name(self) -> str:
        """What its files are called."""
        return name_of(self.sample.id)

    def references(self) -> dict[str, Reference]:
        """What goes to S3, by field."""
        found = {field: getattr(self.sample, field) for field in FIELDS}
        return {field: each for field, each in found.items() if isinstance(each, Reference)}


def name_of(id: str) -> str:
    """A file name for a sample's id, which may be too long for one."""
    return hashlib.sha256(id.encode()).hexdigest()[:32]


def pack(sample: Sample, place: str, core: str, most_bytes: int) -> Parcel:
    """A parcel of a sample: the larger payload goes to S3, and the other too where the message is still too large.

    The digests are to be filled in with `sealed`, as they cost what the bytes do.

    Args:
        place: ``s3://bucket/prefix``.
        most_bytes: of the message.
    """
    payloads = {field: each for field in FIELDS if isinstance(each := getattr(sample, field), tuple)}
    contents: dict[str, bytes] = {}
    for field, (content_type, data) in sorted(payloads.items(), key=lambda pair: -len(pair[1][1])):
        uri = f"{place}/{_key(sample, core, field, content_type)}"
        sample = _with(sample, field, Reference(content_type, uri, f"sha256:{'0' * 64}", len(data)))
        contents[field] = data
        if size(sample) <= most_bytes:
            break
    return Parcel(sample, contents, sum(map(len, contents.values())))


def _with(sample: Sample, field: str, reference: Reference) -> Sample:
    return replace(sample, given=reference) if field == "given" else replace(sample, made=reference)


def _key(sample: Sample, core: str, field: str, content_type: str) -> str:
    day = re.sub(r"[^0-9/]", "", sample.timestamp[:10].replace("-", "/"))
    id = re.sub(r"[^A-Za-z0-9_-]", "-", sample.id)[:200]
    name = {"given": "input", "made": "output"}[field]
    return f"{core}/{sample.origin.function}/{day}/{id}.{name}.{suffix(content_type)}".replace(":", "-")


def sealed(parcel: Parcel) -> Parcel:
    """The parcel with its digests. Takes as long as SHA-256 over its bytes."""
    sample = parcel.sample
    for field, reference in parcel.references().items():
        digest = f"sha256:{hashlib.sha256(parcel.contents[field]).hexdigest()}"
        sample = _with(sample, field, replace(reference, digest=digest))
    return replace(parcel, sample=sample)


def victims(waiting: Iterable[Parcel], coming: Parcel, most_bytes: int) -> list[Parcel] | None:
    """Which parcels go so that one that comes has room: those worth least first. None where it is itself that."""
    standing = sorted(waiting, key=lambda each: each.sample.value)
    over = sum(each.bytes for each in standing) + coming.bytes - most_bytes
    gone: list[Parcel] = []
    for each in standing:
        if over <= 0:
            break
        if each.sample.value > coming.sample.value:
            return None
        gone.append(each)
        over -= each.bytes
    return gone if over <= 0 else None


# -- on the disk ------------------------------------------------------------------------------------------------------


def to_values(parcel: Parcel) -> dict[str, Any]:
    """What is written beside the payloads."""
    sample, origin = parcel.sample, parcel.sample.origin
    return {
        "id": sample.id,
        "reason": sample.reason,
        "value": sample.value,
        "origin": [origin.function, origin.model, origin.version, origin.deployment],
        "topic": sample.topic,
        "timestamp": sample.timestamp,
        "given": _part(sample.given),
        "made": _part(sample.made),
    }


def from_values(values: Any) -> Parcel | None:
    """What `to_values` gave, without the contents; None where it is no such thing."""
    try:
        given, made = _unpart(values["given"]), _unpart(values["made"])
        if given is None:
            return None
        sample = Sample(
            str(values["id"]),
            str(values["reason"]),
            float(values["value"]),
            Origin(*values["origin"]),
            str(values["topic"]),
            str(values["timestamp"]),
            given,
            made,
        )
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    bare = Parcel(sample, {}, 0)
    return replace(bare, bytes=sum(each.size for each in bare.references().values()))


def _part(part: Payload | Reference | None) -> Any:
    if part is None:
        return None
    if isinstance(part, Reference):
        return {"type": part.type, "s3": part.uri, "digest": part.digest, "size": part.size}
    return {"type": part[0], "data": base64.b64encode(part[1]).decode()}


def _unpart(values: Any) -> Payload | Reference | None:
    if values is None:
        return None
    if "s3" in values:
        return Reference(str(values["type"]), str(values["s3"]), str(values["digest"]), int(values["size"]))
    return str(values["type"]), base64.b64decode(values["data"], validate=True)
