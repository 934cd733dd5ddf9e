"""Ed25519 public keys as files hold them, read without a cryptography library, and the ids that they go by. Pure.

An Ed25519 public key has one encoding only: the algorithm's twelve bytes, then the key's 32. So the agent can look at
its trusted keys itself; whatever is computed with a key is done in other processes, see `agent.trust.keys`.

Source: RFC 8410, section 4 (SubjectPublicKeyInfo); RFC 7468, section 13 (PEM).
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

MAX_FILE_BYTES: Final = 64 * 1024
ID_DIGITS: Final = 16
_PREFIX: Final = bytes.fromhex("302a300506032b6570032100")
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s*(.*?)-----END \1-----", re.DOTALL)


def raw_public_key(pem: bytes) -> bytes:
    """The 32 bytes of the one Ed25519 public key in a PEM file.

    Raises:
        ValueError: it holds something else; the text says what.
    """
    blocks = _BLOCK.findall(pem)
    if any(label.endswith(b"PRIVATE KEY") for label, _ in blocks):
        raise ValueError("holds a private key; name the public one, NAME.pub")
    if len(blocks) != 1 or blocks[0][0] != b"PUBLIC KEY":
        raise ValueError("is no PEM file with one public key")
    try:
        encoded = base64.b64decode(b"".join(blocks[0][1].split()), validate=True)
    except ValueError:
        raise ValueError("is no PEM file: its lines are no base64") from None
    if len(encoded) != len(_PREFIX) + 32 or not encoded.startswith(_PREFIX):
        raise ValueError("holds a public key of another kind than Ed25519")
    return encoded[len(_PREFIX) :]


def key_id(raw: bytes) -> str:
    """The id that a key goes by: the first digits of the SHA-256 of its 32 bytes."""
    return hashlib.sha256(raw).hexdigest()[:ID_DIGITS]
