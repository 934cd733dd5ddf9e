"""Reads a deployment's document: bytes in, a `Deployment` or one `RejectedError` out, whatever the bytes are.

Pure: it opens no file and asks no network. All problems are listed in one error. What this project does not do yet is
refused as NOT_SUPPORTED, what the core's policy does not allow as NOT_ALLOWED; nothing is silently left out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from agent.deployment.definition import (
    ENDPOINT_ARN,
    FORCE_RESET,
    NEW,
    REDEPLOYMENT,
    RESET,
    TYPES,
    AccessPolicy,
    Batch,
    Deployment,
    FileSource,
    Function,
    HttpsSource,
    LocalResource,
    Owner,
    Probation,
    Resource,
    S3Source,
    SageMakerSource,
    SecretResource,
    Source,
)
from agent.deployment.encoded import REMEDY, bad, decode
from agent.deployment.envelope import UnprovenError, envelope_of, payload_of
from agent.deployment.fields import BAD, FORBIDDEN, UNSUPPORTED, Fields, Problems, shown
from agent.deployment.functions import read_functions
from agent.deployment.health import read_probation
from agent.deployment.permissions import check_permitted
from agent.deployment.resources import ID, ID_WORDS, read_resources
from agent.deployment.subscriptions import read_subscriptions
from agent.errors import RejectedError
from agent.settings import Policy

__all__ = [
    "ENDPOINT_ARN", "FORCE_RESET", "NEW", "REDEPLOYMENT", "RESET", "TYPES", "UNREADABLE",
    "AccessPolicy", "Batch", "Deployment", "FileSource", "Function", "HttpsSource", "Owner", "Probation",
    "Resource", "S3Source", "SageMakerSource", "Source", "deployment_id_of", "parse", "read_accepted", "unsupported_in",
]  # fmt: skip

UNREADABLE: Final = "-"  # the id under which a document without a readable id is answered
UNPINNED: Final = "DIGEST_MISSING"
MAX_LISTED: Final = 50  # problems in one answer
NOT_DONE: Final = ("Loggers", "Connectors", "Cores", "Devices")
MAX_NOT_DONE: Final = 10_000  # V1: 2,500 devices a group are the most of these
MAX_NAMED: Final = 10
DEFINITIONS: Final = ("Connector", "Core", "Device", "Function", "Logger", "Resource", "Subscription")
LISTS: Final = ("Resources", "Functions", "Subscriptions", *NOT_DONE)
REMEDIES: Final = {
    BAD: REMEDY,
    UNSUPPORTED: "Leave it out and send the document with a new DeploymentId.",
    UNPINNED: "Give the Digest that `marram package` printed, and sign the document again.",
    FORBIDDEN: "Add the lines to topics.yaml on the core and restart it, or ask for something that is allowed.",
}


def parse(
    body: bytes, *, core: str, policy: Policy, retained: bool = False, signed_by: str | None = None
) -> Deployment:
    """The deployment that `body` (JSON or msgpack, or a signed document's envelope) asks for.

    Args:
        core: this device's name, which Marram.Core is compared with.
        policy: what a deployment may do here.
        retained: whether the broker kept the message; then a Sequence is asked for.
        signed_by: the id of the trusted key whose signature over the envelope was verified; None: nobody did that.

    Raises:
        RejectedError: BAD_DOCUMENT, NOT_SUPPORTED, NOT_ALLOWED, DIGEST_MISSING or WRONG_CORE; the message lists all
            problems. UnprovenError: UNSIGNED, or the envelope is none.
    """
    envelope = envelope_of(body)
    if policy.trusted_keys and (envelope is None or signed_by is None):
        text, remedy = "this core takes signed documents only, and this one is not", "a key of policy.trusted_keys"
        raise UnprovenError("UNSIGNED", text, f"Sign it with {remedy}: marram deploy FILE --sign KEY.")
    problems = Problems()
    payload = envelope.payload if envelope else body
    values = _document(payload)
    _check_meant(values, core, retained, problems)
    deployment = _deployment(payload, values, policy.interpreters, problems)
    if envelope is not None:
        _check_complete(values, deployment, problems)
        if signed_by is None:
            problems.warn("", "the document is signed, but this core has no policy.trusted_keys: nobody checked it")
    check_permitted(deployment, policy, signed_by, problems)
    _raise_if_any(problems)
    return replace(deployment, warnings=tuple(problems.warnings), signed_by=signed_by)


def check_signable(payload: bytes) -> None:
    """That a document has what a signed one needs, so that its signer learns what is wrong and not each core.

    Raises:
        RejectedError: as `parse`, with all problems that do not depend on a core.
    """
    problems = Problems()
    values = _document(payload)
    _check_complete(values, _deployment(payload, values, None, problems), problems)
    _raise_if_any(problems)


def unsupported_in(body: bytes) -> list[tuple[str, str]]:
    """The path and the problem of all that a document asks for and this version does not do.

    Raises:
        RejectedError: the document cannot be read at all.
    """
    problems = Problems()
    _deployment(body, _document(body), None, problems)
    return problems.unsupported


def read_accepted(body: bytes) -> Deployment:
    """The deployment of a document that `parse` has accepted before, whatever the policy says now.

    Raises:
        RejectedError: it is no such document.
    """
    problems = Problems()
    payload = payload_of(body)
    deployment = _deployment(payload, _document(payload), None, problems)
    _raise_if_any(problems)
    return deployment


def _deployment(
    payload: bytes, values: dict[str, Any], interpreters: Mapping[str, str] | None, problems: Problems
) -> Deployment:
    document = Fields(values, "", problems)
    id = document.text("DeploymentId", required=True, pattern=f"(?!-$){ID}", what=f"{ID_WORDS}, and not only -")
    type = document.choice("DeploymentType", TYPES, NEW) or NEW
    sequence, probation, retry_quarantined = _extra(document)
    if type != NEW:
        _refuse_body(document, type)
    found = read_resources(document)
    resources = tuple(each for each in found if isinstance(each, Resource))
    local = tuple(each for each in found if isinstance(each, LocalResource))
    secrets = tuple(each for each in found if isinstance(each, SecretResource))
    functions = read_functions(document, {each.id: each for each in found}, interpreters)
    subscriptions = read_subscriptions(document, {f.id: f for f in functions})
    _refuse_definitions(document)
    for key in NOT_DONE:
        _warn_of(key, [each for each, _ in document.items(key, MAX_NOT_DONE)], problems)
    document.done()
    digest = hashlib.sha256(payload).hexdigest()
    return Deployment(
        id or UNREADABLE,
        type,
        sequence,
        digest,
        resources,
        functions,
        subscriptions,
        tuple(problems.warnings),
        probation,
        retry_quarantined=retry_quarantined,
        local=local,
        secrets=secrets,
    )


def _warn_of(key: str, found: list[object], problems: Problems) -> None:
    """One warning each, or one for all where they are many: warnings go into every status."""
    if len(found) > MAX_NAMED:
        problems.warn(key, f"its {len(found)} entries are not used by this core")
        return
    for i, value in enumerate(found):
        name = value.get("Id") if isinstance(value, dict) else value
        problems.warn(f"{key}[{i}]", f"{shown(name)} is not used by this core")


def _refuse_definitions(document: Fields) -> None:
    """A V1 group version names its parts by ARNs of a service that is no more."""
    for name in DEFINITIONS:
        key = f"{name}DefinitionVersionArn"
        if document.take(key) is not None:
            text = "the definition itself is asked for; `marram import-greengrass` puts a saved group together"
            document.bad(key, text, UNSUPPORTED)


def deployment_id_of(body: bytes) -> str:
    """The DeploymentId of a document that need not be right otherwise; ``-`` where it cannot be read."""
    try:
        values = decode(payload_of(body))
    except RejectedError:
        return UNREADABLE
    id = values.get("DeploymentId")
    return id if isinstance(id, str) and re.fullmatch(ID, id) else UNREADABLE


def _document(payload: bytes) -> dict[str, Any]:
    """The values of a document, which is no envelope (any more) and no pointer (any more)."""
    values = decode(payload)
    if "payloadType" in values or "signatures" in values:
        raise bad("an envelope holds another one; sign the document itself")
    if "DocumentUrl" in values:
        raise bad("a pointer leads to another one, or was signed itself; point to the document, and sign that")
    return values


def _extra(document: Fields) -> tuple[int | None, Probation | None, bool]:
    """Marram.Sequence and what else the document says about itself."""
    extra = document.fields("Marram")
    if extra is None:
        return None, None, False
    sequence = extra.integer("Sequence", None, 0, 2**63 - 1)
    extra.text("Core")
    probation = extra.fields("Probation")
    retry_quarantined = extra.flag("RetryQuarantined", default=False)
    extra.done()
    return sequence, read_probation(probation) if probation else None, retry_quarantined


def _check_meant(values: dict[str, Any], core: str, retained: bool, problems: Problems) -> None:
    """That the document is for this core, and that an old one cannot come back by being retained."""
    extra = values.get("Marram")
    extra = extra if isinstance(extra, dict) else {}
    meant = extra.get("Core")
    if isinstance(meant, str) and meant != core:
        raise RejectedError("WRONG_CORE", f"Marram.Core: the document is for {shown(meant)}, this core is {core}")
    if retained and extra.get("Sequence") is None:
        problems.note(BAD, "Marram.Sequence", "is asked for in a retained document")


def _check_complete(values: dict[str, Any], deployment: Deployment, problems: Problems) -> None:
    """What a signed document must say, so that it means one thing, here, and only once.

    Without Core and Sequence a right signature could be used again elsewhere or later; without a Digest the signature
    would say nothing about the bytes that a source gives.
    """
    extra = values.get("Marram")
    for key in ("Sequence", "Core"):
        if not isinstance(extra, dict) or extra.get(key) is None:
            problems.note(BAD, f"Marram.{key}", "is asked for in a signed document")
    for resource in deployment.resources:
        if resource.digest is None:
            problems.note(UNPINNED, f"the resource {resource.id}", "a signed document needs its Marram.Digest")
    for function in deployment.functions:
        if function.code is not None and function.code_digest is None:
            problems.note(UNPINNED, f"the function {function.id}", "a signed document needs its Marram.Code.Digest")


def _refuse_body(document: Fields, type: str) -> None:
    for key in LISTS:
        if document.has(key) and document.take(key) != []:
            document.bad(key, f"a {type} has no body; leave it out")


def _raise_if_any(problems: Problems) -> None:
    if not problems.found:
        return
    code = min((code for code, _ in problems.found), key=list(REMEDIES).index)
    texts = list(dict.fromkeys(text for _, text in problems.found))
    listed = "; ".join(texts[:MAX_LISTED])
    more = f"; and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    count = f"{len(texts)} problems: " if len(texts) > 1 else ""
    raise RejectedError(code, count + listed + more, REMEDIES[code])
