"""Who signed a document: asked of a short-lived child, so that the agent itself never loads a cryptography library.

Fails closed: only a verdict that names a trusted key lets a document pass.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable
from typing import Final

from agent.deployment.envelope import Envelope, UnprovenError
from agent.deployment.short_lived import answer_of, main_of
from agent.errors import TransientError
from agent.trust.public_keys import key_id

VERIFIER: Final = main_of("agent.deployment.verifier")


def ask_child(request: bytes) -> object:
    """The verdict of a new child on a request: a key's id, or None.

    Raises:
        TransientError: VERIFIER_LOST.
    """
    answer = answer_of(VERIFIER, request, _lost)
    if "signer" not in answer:
        raise _lost("gave no verdict")
    return answer["signer"]


def signer_of(envelope: Envelope, keys: Iterable[bytes], ask: Callable[[bytes], object] = ask_child) -> str:
    """The id of the trusted key that signed an envelope. Blocks for a child's life, `DEADLINE_S` at most.

    Args:
        keys: the trusted public keys, 32 bytes each.
        ask: see `ask_child`.

    Raises:
        UnprovenError: SIGNATURE_INVALID, none did: it was altered on its way, or signed by somebody else.
        TransientError: VERIFIER_LOST, the child gave no verdict.
    """
    trusted = list(keys)
    found = ask(_request(envelope, trusted))
    if found in {key_id(raw) for raw in trusted}:
        return str(found)
    named = ", ".join(repr(each.key_id) for each in envelope.signatures)[:200]
    text = (
        "no key of policy.trusted_keys made a signature over the document as it came:"
        f" it was altered on its way, or signed with another key (it says: {named})"
    )
    raise UnprovenError("SIGNATURE_INVALID", text, "Sign it with a key that this core trusts.")


def _request(envelope: Envelope, keys: list[bytes]) -> bytes:
    values = {
        "parent": os.getpid(),
        "message": _text(envelope.signed_bytes),
        "signatures": [[each.key_id, _text(each.value)] for each in envelope.signatures],
        "keys": [_text(key) for key in keys],
    }
    return json.dumps(values).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _lost(how: str) -> TransientError:
    remedy = "See the agent's log, then send the document again."
    return TransientError("VERIFIER_LOST", f"the process that verifies signatures {how}", remedy)
