"""Signed documents: DSSE envelopes, opened and sealed. Pure; whether a signature is right is `proof`'s matter.

An envelope is ``{"payload": base64, "payloadType", "signatures": [{"keyid", "sig": base64}]}`` in JSON, or in msgpack,
where bytes may stand as they are. `Envelope.signed_bytes` is signed; the payload's exact bytes are the document.

Source: DSSE v1.0, https://github.com/secure-systems-lab/dsse (protocol.md, envelope.md): a key id is a hint that
nothing is decided by, fields that are not known are ignored, base64 is the standard or the URL-safe one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any, Final

import msgpack

from agent.deployment.encoded import decode, is_json
from agent.deployment.fields import BAD, shown
from agent.errors import RejectedError
from agent.values import dataclass

PAYLOAD_TYPE: Final = "application/vnd.marram.deployment+json"
MAX_SIGNATURES: Final = 16  # each costs a verification with each trusted key
KEYS: Final = ("payload", "payloadType", "signatures")


class UnprovenError(RejectedError):
    """Nobody who is trusted stands behind the document: refused, and neither its id nor its body is remembered.

    Otherwise anyone could use up the id of a document that is still to come.
    """


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature, and the id of the key that it says it is by."""

    key_id: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope of the right shape; its signatures may be anything."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]

    @property
    def signed_bytes(self) -> bytes:
        """What a signature is made of: DSSE's pre-authentication encoding."""
        kind = self.payload_type.encode()
        return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(self.payload), self.payload)


def envelope_of(body: bytes) -> Envelope | None:
    """The envelope that `body` is, or None where it is a document as it stands.

    Raises:
        RejectedError: BAD_DOCUMENT, it is neither; UnprovenError where it is an envelope of another shape or payload.
    """
    values = decode(body)
    if not any(key in values for key in KEYS):
        return None
    missing = [key for key in KEYS if key not in values]
    if missing:
        raise _wrong(f"{missing[0]} is missing")
    if values["payloadType"] != PAYLOAD_TYPE:
        raise _wrong(f"payloadType must be {PAYLOAD_TYPE}, not {shown(values['payloadType'])}")
    payload = _bytes(values["payload"], "payload")
    if not is_json(payload):
        raise _wrong("its payload is no JSON object")
    return Envelope(payload, PAYLOAD_TYPE, _signatures(values["signatures"]))


def payload_of(body: bytes) -> bytes:
    """The document's own bytes, which tell one document from another: an envelope's payload, else `body` itself."""
    try:
        envelope = envelope_of(body)
    except RejectedError:
        return body
    return envelope.payload if envelope else body


def seal(envelope: Envelope, *, binary: bool = False) -> bytes:
    """The envelope's bytes, JSON or (`binary`) msgpack."""
    values: dict[str, Any] = {
        "payload": envelope.payload,
        "payloadType": envelope.payload_type,
        "signatures": [{"keyid": each.key_id, "sig": each.value} for each in envelope.signatures],
    }
    if binary:
        packed: bytes = msgpack.packb(values)
        return packed
    return json.dumps(values, default=lambda data: base64.b64encode(data).decode()).encode()


def _signatures(values: object) -> tuple[Signature, ...]:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_SIGNATURES:
        raise _wrong(f"signatures must be a list of 1 to {MAX_SIGNATURES}")
    return tuple(_each_signature(values))


def _each_signature(values: Iterable[object]) -> Iterable[Signature]:
    for i, value in enumerate(values):
        where = f"signatures[{i}]"
        if not isinstance(value, dict) or "sig" not in value:
            raise _wrong(f"{where} must be an object with sig")
        key_id = value.get("keyid") or ""
        if not isinstance(key_id, str):
            raise _wrong(f"{where}.keyid must be a text, not {shown(key_id)}")
        yield Signature(key_id, _bytes(value["sig"], f"{where}.sig"))


def _bytes(value: object, where: str) -> bytes:
    """Bytes as they are (msgpack), or from base64 that has one spelling only."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and value.isascii():
        standard = value.replace("-", "+").replace("_", "/")
        try:
            data = base64.b64decode(standard, validate=True)
        except ValueError:
            data = b""
        if base64.b64encode(data).decode() == standard:
            return data
    raise _wrong(f"{where} must be base64")


def _wrong(text: str) -> UnprovenError:
    return UnprovenError(BAD, f"the signed document's envelope: {text}", "Sign the document with `marram sign`.")
