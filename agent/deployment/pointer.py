"""Pointers: a document that is too large for its channel is named by where it lies, and by its digest.

``{"DeploymentId", "DocumentUrl", "Digest"}``: the installer fetches what is there, from where the policy allows, and it
is then the document, as if it had come itself. A pointer that cannot be followed leaves no trace: anybody may have made
it, and its id is the document's.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Final

from agent.deployment.definition import HttpsSource, S3Source
from agent.deployment.document import deployment_id_of
from agent.deployment.encoded import MAX_BYTES, REMEDY, decode
from agent.deployment.fields import BAD, Fields, Problems
from agent.deployment.installation import fetch_document
from agent.deployment.permissions import forbidden
from agent.deployment.resources import DIGEST, DIGEST_WORDS, ID, ID_WORDS, read_url
from agent.deployment.threads import in_thread
from agent.errors import RejectedError, TransientError
from agent.settings import FetchLimits, Settings
from agent.values import dataclass

ATTEMPTS: Final = 3
DEADLINE_S: Final = 60.0  # other documents wait so long, and so do the acknowledgements of their messages


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where a document lies, and what it must be."""

    id: str
    source: S3Source | HttpsSource
    digest: str


def pointer_of(body: bytes) -> Pointer | None:
    """The pointer that `body` is; None where it is something else, right or wrong.

    Raises:
        RejectedError: BAD_DOCUMENT, a pointer that lacks something.
    """
    try:
        values = decode(body)
    except RejectedError:
        return None
    if "DocumentUrl" not in values:
        return None
    problems = Problems()
    fields = Fields(values, "", problems)
    id = fields.text("DeploymentId", required=True, pattern=ID, what=ID_WORDS)
    source = read_url(fields, "DocumentUrl")
    digest = fields.text("Digest", required=True, pattern=DIGEST, what=DIGEST_WORDS)
    fields.done()
    if id is None or source is None or digest is None or problems.found:
        raise RejectedError(BAD, "; ".join(text for _, text in problems.found), REMEDY)
    return Pointer(id, source, digest)


async def follow(body: bytes, settings: Settings, state: Path, limits: FetchLimits) -> bytes:
    """The document that `body` points to; `body` itself where it is no pointer.

    Raises:
        RejectedError: BAD_DOCUMENT, NOT_ALLOWED, DOCUMENT_DIGEST_MISMATCH.
        AgentError: as the sources raise.
    """
    pointer = await in_thread(pointer_of, body)
    if pointer is None:
        return body
    for why in forbidden(pointer.source, settings.policy):
        text = f"DocumentUrl: {pointer.source.name} {why}"
        raise RejectedError("NOT_ALLOWED", text, "Add the line to topics.yaml on the core and restart it.")
    limits = replace(limits, max_bytes=MAX_BYTES, attempts=min(limits.attempts, ATTEMPTS))
    fetched = fetch_document(state, pointer.source, settings.policy.sources, limits, settings.aws)
    try:
        document = await asyncio.wait_for(fetched, DEADLINE_S)
    except asyncio.TimeoutError:
        text = f"the document {pointer.source.name} was not there within {DEADLINE_S:g} s"
        raise TransientError("SOURCE_UNREACHABLE", text, "Send the pointer again.") from None
    _check(pointer, document)
    return document


def _check(pointer: Pointer, document: bytes) -> None:
    found = f"sha256:{hashlib.sha256(document).hexdigest()}"
    if found != pointer.digest:
        text = f"the document {pointer.source.name} has the digest {found}, promised was {pointer.digest}"
        raise RejectedError("DOCUMENT_DIGEST_MISMATCH", text, "Upload it again, or correct the pointer's Digest.")
    if pointer_of(document) is not None:
        raise RejectedError(BAD, "a pointer leads to another one", "Point to the document itself.")
    id = deployment_id_of(document)
    if id != pointer.id:
        text = f"the document {pointer.source.name} has the DeploymentId {id}, its pointer says {pointer.id}"
        raise RejectedError(BAD, text, "Give both the same DeploymentId.")
