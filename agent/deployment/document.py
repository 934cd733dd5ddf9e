"""Reads a deployment's document: bytes in, a `Deployment` or one `RejectedError` out, whatever the bytes are.

Pure: it opens no file and asks no network. All problems are listed in one error. What this project does not do yet is
refused as NOT_SUPPORTED, what the core's policy does not allow as NOT_ALLOWED; nothing is silently left out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgpack

from agent.deployment.definition import (
    ENDPOINT_ARN,
    FORCE_RESET,
    NEW,
    REDEPLOYMENT,
    RESET,
    TYPES,
    AccessPolicy,
    Batch,
    Capture,
    Deployment,
    FileSource,
    Function,
    HttpsSource,
    Owner,
    Probation,
    Resource,
    S3Source,
    SageMakerSource,
    Source,
)
from agent.deployment.fields import BAD, FORBIDDEN, UNSUPPORTED, Fields, Problems, shown
from agent.deployment.functions import read_functions
from agent.deployment.resources import ID, ID_WORDS, read_resources
from agent.deployment.subscriptions import read_subscriptions
from agent.errors import RejectedError
from agent.settings import Policy

__all__ = [
    "ENDPOINT_ARN", "FORCE_RESET", "NEW", "REDEPLOYMENT", "RESET", "TYPES", "UNREADABLE",
    "AccessPolicy", "Batch", "Capture", "Deployment", "FileSource", "Function", "HttpsSource", "Owner", "Probation",
    "Resource", "S3Source", "SageMakerSource", "Source", "deployment_id_of", "parse", "read_accepted",
]  # fmt: skip

UNREADABLE: Final = "-"  # the id under which a document without a readable id is answered
MAX_BYTES: Final = 8 * 1024 * 1024
MAX_DEPTH: Final = 32
MAX_LISTED: Final = 50  # problems in one answer
NOT_DONE: Final = ("Loggers", "Connectors", "Cores", "Devices")
LISTS: Final = ("Resources", "Functions", "Subscriptions", *NOT_DONE)
REMEDIES: Final = {
    BAD: "Correct the document and send it with a new DeploymentId.",
    UNSUPPORTED: "Leave it out and send the document with a new DeploymentId.",
    FORBIDDEN: "Add the lines to topics.yaml on the core and restart it, or ask for something that is allowed.",
}


def parse(body: bytes, *, core: str, policy: Policy, retained: bool = False) -> Deployment:
    """The deployment that `body` (JSON or msgpack) asks for.

    Args:
        core: this device's name, which Marram.Core is compared with.
        policy: what a deployment may do here.
        retained: whether the broker kept the message; then a Sequence is asked for.

    Raises:
        RejectedError: BAD_DOCUMENT, NOT_SUPPORTED, NOT_ALLOWED, WRONG_CORE or UNSIGNED; the message lists all problems.
    """
    values = _decode(body)
    _refuse_envelopes(values)
    if policy.trusted_keys:
        raise RejectedError(
            "UNSIGNED", "this core trusts signed documents only", "Sign it with a key of policy.trusted_keys."
        )
    problems = Problems()
    _check_meant(values, core, retained, problems)
    deployment = _deployment(body, values, policy.interpreters, problems)
    _check_policy(deployment.resources, policy, problems)
    _raise_if_any(problems)
    return replace(deployment, warnings=tuple(problems.warnings))


def read_accepted(body: bytes) -> Deployment:
    """The deployment of a document that `parse` has accepted before, whatever the policy says now.

    Raises:
        RejectedError: it is no such document.
    """
    problems = Problems()
    deployment = _deployment(body, _decode(body), None, problems)
    _raise_if_any(problems)
    return deployment


def _deployment(
    body: bytes, values: dict[str, Any], interpreters: Mapping[str, str] | None, problems: Problems
) -> Deployment:
    document = Fields(values, "", problems)
    id = document.text("DeploymentId", required=True, pattern=f"(?!-$){ID}", what=f"{ID_WORDS}, and not only -")
    type = document.choice("DeploymentType", TYPES, NEW) or NEW
    sequence, probation = _extra(document)
    if type != NEW:
        _refuse_body(document, type)
    resources = read_resources(document)
    functions = read_functions(document, {r.id: r for r in resources}, interpreters)
    subscriptions = read_subscriptions(document, {f.id: f for f in functions})
    for key in NOT_DONE:
        for value, where in document.items(key, 1000):
            name = value.get("Id") if isinstance(value, dict) else value
            problems.warn(where, f"{shown(name)} is not used by this core")
    document.done()
    digest = hashlib.sha256(body).hexdigest()
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
    )


def deployment_id_of(body: bytes) -> str:
    """The DeploymentId of a document that need not be right otherwise; ``-`` where it cannot be read."""
    try:
        values = _decode(body)
    except RejectedError:
        return UNREADABLE
    id = values.get("DeploymentId")
    return id if isinstance(id, str) and re.fullmatch(ID, id) else UNREADABLE


def _decode(body: bytes) -> dict[str, Any]:
    if len(body) > MAX_BYTES:
        raise _bad(f"the document has {len(body)} bytes; at most {MAX_BYTES} are read")
    try:
        if body.lstrip()[:1] == b"{":
            values = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
        else:
            values = msgpack.unpackb(body, object_pairs_hook=_object)
    except RecursionError:
        raise _bad("the document is nested too deeply") from None
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        text = str(error) or type(error).__name__
        raise _bad(f"the document is neither a JSON object nor a msgpack map: {text[:200]}") from error
    if not isinstance(values, dict):
        raise _bad(f"the document must be a JSON object or a msgpack map, not {shown(values)}")
    _check_depth(values)
    return values


def _object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError(f"a key is no text: {shown(key)}")
        if key in values:
            raise ValueError(f"the key {shown(key)} stands twice in one object")
        values[key] = value
    return values


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _check_depth(value: object, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise _bad(f"the document is nested deeper than {MAX_DEPTH} levels")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _check_depth(child, depth + 1)


def _bad(text: str) -> RejectedError:
    return RejectedError(BAD, text, REMEDIES[BAD])


def _refuse_envelopes(values: dict[str, Any]) -> None:
    """Signed documents and pointers have their own outer form; neither is built yet."""
    if "payloadType" in values or "signatures" in values:
        raise RejectedError(UNSUPPORTED, "signed documents (DSSE envelopes) are not supported yet", "Send it unsigned.")
    if "DocumentUrl" in values:
        raise RejectedError(UNSUPPORTED, "DocumentUrl: pointers to a document are not supported yet", "Send it whole.")


def _extra(document: Fields) -> tuple[int | None, Probation | None]:
    """Marram.Sequence and what else the document says about itself."""
    extra = document.fields("Marram")
    if extra is None:
        return None, None
    sequence = extra.integer("Sequence", None, 0, 2**63 - 1)
    extra.text("Core")
    if extra.take("Probation") is not None:
        extra.bad("Probation", "is not supported yet", UNSUPPORTED)
    extra.done()
    return sequence, None


def _check_meant(values: dict[str, Any], core: str, retained: bool, problems: Problems) -> None:
    """That the document is for this core, and that an old one cannot come back by being retained."""
    extra = values.get("Marram")
    extra = extra if isinstance(extra, dict) else {}
    meant = extra.get("Core")
    if isinstance(meant, str) and meant != core:
        raise RejectedError("WRONG_CORE", f"Marram.Core: the document is for {shown(meant)}, this core is {core}")
    if retained and extra.get("Sequence") is None:
        problems.note(BAD, "Marram.Sequence", "is asked for in a retained document")


def _refuse_body(document: Fields, type: str) -> None:
    for key in LISTS:
        if document.has(key) and document.take(key) != []:
            document.bad(key, f"a {type} has no body; leave it out")


def _check_policy(resources: tuple[Resource, ...], policy: Policy, problems: Problems) -> None:
    for resource in resources:
        name = resource.source.name
        if not any(allows(pattern, name) for pattern in policy.sources):
            line = f'sources: ["{_widened(name)}"]'
            text = f"its source {name} is not allowed here; add to policy in topics.yaml: {line}"
            problems.note(FORBIDDEN, f"the resource {resource.id}", text)
        destination = resource.destination
        if destination is not None and not any(is_below(destination, root) for root in policy.destinations):
            text = f"policy.destinations of this core does not hold {destination}: only its functions see it there"
            problems.warn(f"the resource {resource.id}", text)


def allows(pattern: str, name: str) -> bool:
    """Whether a pattern of the policy matches a source's name; ``*`` stands for any characters, ``/`` too."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def is_below(path: str, root: str) -> bool:
    """Whether `path` is `root` or lies below it; both absolute and normalised."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def _widened(name: str) -> str:
    return name.rpartition("/")[0] + "/*"


def _raise_if_any(problems: Problems) -> None:
    if not problems.found:
        return
    code = min((code for code, _ in problems.found), key=list(REMEDIES).index)
    texts = list(dict.fromkeys(text for _, text in problems.found))
    listed = "; ".join(texts[:MAX_LISTED])
    more = f"; and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
    count = f"{len(texts)} problems: " if len(texts) > 1 else ""
    raise RejectedError(code, count + listed + more, REMEDIES[code])
