"""Signs deployment documents on the machine of whoever deploys. Blocks; for the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from agent.deployment.document import check_signable
from agent.deployment.encoded import decode, is_json
from agent.deployment.envelope import MAX_SIGNATURES, PAYLOAD_TYPE, Envelope, Signature, envelope_of, seal
from agent.errors import ConfigError, RejectedError
from agent.trust.keys import id_of, load_private

BINARY = (".msgpack", ".mpk")


def signed(body: bytes, key_file: Path, *, binary: bool = False) -> bytes:
    """An envelope over a document, or over an envelope's document with one signature more.

    A msgpack document is turned to JSON first; a JSON document is signed byte for byte as it is.

    Args:
        binary: whether the envelope is to be msgpack.

    Raises:
        ConfigError: what is wrong with the key.
        RejectedError: what a core would refuse; or TOO_MANY_SIGNATURES.
    """
    key = load_private(key_file)
    envelope = envelope_of(body) or Envelope(_as_json(body), PAYLOAD_TYPE, ())
    check_signable(envelope.payload)
    id = id_of(key)
    others = tuple(each for each in envelope.signatures if each.key_id != id)
    if len(others) >= MAX_SIGNATURES:
        text = f"the document has {len(others)} signatures; at most {MAX_SIGNATURES} are read"
        raise RejectedError("TOO_MANY_SIGNATURES", text, "Sign the document itself.")
    mine = Signature(id, key.sign(envelope.signed_bytes))
    return seal(replace(envelope, signatures=(*others, mine)), binary=binary)


def sign_file(body: bytes, key_file: Path, output: Path) -> None:
    """Writes the signed document to `output`: msgpack where it ends in .msgpack or .mpk, else JSON.

    Raises:
        ConfigError: FILE_UNWRITABLE, and as `signed`.
        RejectedError: as `signed`.
    """
    envelope = signed(body, key_file, binary=output.suffix.lower() in BINARY)
    try:
        output.write_bytes(envelope)
    except OSError as error:
        text = f"{output} cannot be written: {error.strerror}."
        raise ConfigError("FILE_UNWRITABLE", text, "Name a file that you may write with --output.") from error


def _as_json(body: bytes) -> bytes:
    """A document's JSON, whose exact bytes are what is signed."""
    values = decode(body)
    if is_json(body):
        return body
    try:
        return json.dumps(values, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        text = f"the document cannot be written as JSON, which is what is signed: {error}"
        raise RejectedError("BAD_DOCUMENT", text, "Leave out what JSON has no form for.") from error
