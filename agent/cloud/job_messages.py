"""What travels on ``$aws/things/<thing>/jobs/..``: topics, the cloud's messages as values, a job's document. Pure.

Source: AWS IoT Core developer guide, "Jobs device MQTT API operations" and "Jobs device data types"; limits: AWS IoT
Device Management quotas.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from agent.values import dataclass

JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MAX_DETAILS: Final = 10  # pairs of statusDetails
MAX_DETAIL: Final = 1024  # characters of one value
MAX_BYTES: Final = 131_072  # AWS IoT Core's largest message
NEXT: Final = "$next"
IN_PROGRESS: Final = "IN_PROGRESS"
TOLD_BY_US: Final = frozenset({"SUCCEEDED", "FAILED", "REJECTED"})
TERMINAL: Final = frozenset({*TOLD_BY_US, "CANCELED", "TIMED_OUT", "REMOVED"})
# What a presigned URL's query says of the signature: the cloud makes it anew each time that it gives the document out.
_SIGNATURE: Final = re.compile(r"x-amz-.*|awsaccesskeyid|signature|expires", re.IGNORECASE)
_SIGNED: Final = re.compile(r"[?&](X-Amz-Signature|Signature)=")


class Kind(str, Enum):
    """What a message is about; the value is its part of the topic."""

    NOTIFY = "notify-next"
    START = "start-next"
    GET = "get"
    UPDATE = "update"


@dataclass(frozen=True, slots=True)
class Execution:
    """A job's execution on this thing, as far as a message says it.

    Attributes:
        version: rises with each update; what ``expectedVersion`` is compared with.
        number: tells executions of one job on one thing apart, from 1.
        document: the job's document, undecided what it is; None where the message has none.
    """

    job: str
    status: str
    version: int | None = None
    number: int | None = None
    document: Any = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the cloud's.

    Attributes:
        accepted: false for a ``rejected``; true for a notification.
        job: the job's id in the topic; None where the topic names none.
        token: our ``clientToken`` come back.
        code: of a ``rejected``.
    """

    kind: Kind
    accepted: bool = True
    job: str | None = None
    token: str | None = None
    code: str = ""
    text: str = ""
    execution: Execution | None = None


def filters(thing: str) -> tuple[str, ...]:
    """The filters that the channel needs; no two overlap."""
    prefix = prefix_of(thing)
    return (f"{prefix}notify-next", f"{prefix}start-next/+", f"{prefix}+/get/+", f"{prefix}+/update/+")


def prefix_of(thing: str) -> str:
    """What all topics of the thing's jobs begin with."""
    return f"$aws/things/{thing}/jobs/"


def topic_of(thing: str, kind: Kind, job: str = NEXT) -> str:
    """Where a request is published."""
    return prefix_of(thing) + (kind.value if kind is Kind.START else f"{job}/{kind.value}")


def read(thing: str, topic: str, payload: bytes) -> Message | None:
    """The message, or None where it is none that the channel understands. Never raises, whatever comes."""
    if not topic.startswith(prefix_of(thing)) or len(payload) > MAX_BYTES:
        return None
    values = _object(payload)
    parts = topic[len(prefix_of(thing)) :].split("/")
    if values is None:
        return None
    if parts == [Kind.NOTIFY.value]:
        return Message(Kind.NOTIFY, execution=_execution(values.get("execution"), None))
    if parts[-1] not in ("accepted", "rejected"):
        return None
    accepted = parts[-1] == "accepted"
    if parts[:-1] == [Kind.START.value]:
        return _reply(Kind.START, None, accepted, values, values.get("execution"))
    if len(parts) != 3 or not (parts[0] == NEXT or JOB_ID.fullmatch(parts[0])):
        return None
    job = None if parts[0] == NEXT else parts[0]
    if parts[1] == Kind.GET.value:
        return _reply(Kind.GET, job, accepted, values, values.get("execution" if accepted else "executionState"))
    if parts[1] == Kind.UPDATE.value:
        return _reply(Kind.UPDATE, job, accepted, values, values.get("executionState"))
    return None


def _object(payload: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _reply(kind: Kind, job: str | None, accepted: bool, values: Mapping[str, Any], execution: object) -> Message:
    return Message(
        kind,
        accepted,
        job,
        _text(values.get("clientToken")),
        _text(values.get("code")) or "",
        _text(values.get("message")) or "",
        _execution(execution, job),
    )


def _execution(value: object, job: str | None) -> Execution | None:
    """An ``execution`` or an ``executionState``, which does not name its job."""
    if not isinstance(value, dict):
        return None
    id, status = value.get("jobId", job), value.get("status")
    if not isinstance(id, str) or not JOB_ID.fullmatch(id) or not isinstance(status, str):
        return None
    document = value.get("jobDocument")
    if isinstance(document, str):  # as the HTTPS API gives it
        document = _object(document.encode(errors="replace"))
    return Execution(id, status, _number(value.get("versionNumber")), _number(value.get("executionNumber")), document)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# -- the document -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Document:
    """What a job asks to deploy.

    Attributes:
        body: the deployment's document, JSON.
        identity: the same without what the cloud makes anew each time that it gives the document out, so that a job
            whose document comes twice is one deployment; None where there is no such thing in it.
    """

    deployment: str
    body: bytes
    identity: bytes | None = None


def document_of(execution: Execution, id_of: Callable[[bytes], str | None]) -> Document | None:
    """The deployment that a job's document is; None where it is none.

    Without an id of its own (`DeploymentId`, or what a signature covers) the job's id is the deployment's; a further
    execution of the job is another deployment, and its number is added.

    Args:
        id_of: reads the id of a deployment's document; None where it has none that can be read.
    """
    values = execution.document
    if not isinstance(values, dict) or not values:
        return None
    if "DeploymentId" not in values and "payloadType" not in values:
        number = execution.number or 1
        values = {"DeploymentId": execution.job if number == 1 else f"{execution.job}:{number}", **values}
    body, identity = _encoded(values), _encoded(_without_signatures(values))
    id = id_of(body)
    return Document(id, body, identity if identity != body else None) if id else None


def _encoded(values: Mapping[str, Any]) -> bytes:
    """The same bytes for the same values, in whatever order the cloud gives them."""
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def _without_signatures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_signatures(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_signatures(each) for each in value]
    if isinstance(value, str) and value.startswith("https://") and _SIGNED.search(value):
        url, _, query = value.partition("?")
        kept = [(k, v) for k, v in parse_qsl(query, keep_blank_values=True) if not _SIGNATURE.fullmatch(k)]
        return url + ("?" + urlencode(kept) if kept else "")
    return value


# -- what is told -----------------------------------------------------------------------------------------------------


def details_of(status: Mapping[str, Any]) -> dict[str, str]:
    """A deployment's status as ``statusDetails``, within AWS's limits."""
    reason, progress = status.get("reason") or {}, status.get("progress") or {}
    versions = [f"{each['id']}={each['version']}" for each in status.get("resources") or ()]
    found = {
        "deployment": status.get("deploymentId"),
        "phase": status.get("phase"),
        "progress": f"{progress.get('id')} {progress.get('bytes')}/{progress.get('total')}" if progress else None,
        "code": reason.get("code"),
        "message": reason.get("message"),
        "warnings": "; ".join(status.get("warnings") or ()),
        "resources": " ".join(versions) if status.get("status") == "SUCCEEDED" else None,
    }
    return dict(list(details(found).items())[:MAX_DETAILS])


def details(found: Mapping[str, object]) -> dict[str, str]:
    """The values as AWS takes them: no control characters, none empty, none too long."""
    clean = {key: "".join(_plain(c) for c in str(value)).strip() for key, value in found.items() if value is not None}
    return {key: _short(text) for key, text in clean.items() if text}


def _short(text: str) -> str:
    return text if len(text) <= MAX_DETAIL else text[: MAX_DETAIL - 2] + ".."


def _plain(character: str) -> str:
    return " " if unicodedata.category(character).startswith("C") else character
