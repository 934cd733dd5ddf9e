"""The agent's side of the installer: starts the child, gives it its job, hears its events, ends it when not wanted.

Runs on the agent's loop and blocks nothing. The child dies with the agent; a cancelled `install` has killed it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Final

from agent.deployment.definition import (
    Deployment,
    FileSource,
    HttpsSource,
    S3Source,
    SageMakerSource,
    Source,
)
from agent.deployment.store import Known
from agent.deployment.threads import starting_aside
from agent.errors import AgentError, TransientError
from agent.settings import AwsRole, Caps, FetchLimits
from agent.values import dataclass
from functions import aside

logger = logging.getLogger(__name__)

ROOT: Final = str(Path(__file__).resolve().parents[2])
# Without the collector of cycles, which took a tenth of it all, and without taking Python apart at its end: it lives
# for one deployment.
BOOT: Final = (
    f"import gc, os, sys; gc.disable(); sys.path.insert(0, {ROOT!r}); "
    "from agent.deployment.installer import main; code = main(); sys.stdout.flush(); sys.stderr.flush(); os._exit(code)"
)
MAX_LINE_BYTES: Final = 16 * 1024 * 1024  # a document in base64 is the longest
KINDS: Final = {S3Source: "s3", HttpsSource: "https", FileSource: "file", SageMakerSource: "sagemaker"}
MAX_STDERR_BYTES: Final = 4096
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Installed:
    """What the installer brought: objects by resource Id and function Id, its sources' ETags, secrets sealed by Id."""

    objects: Mapping[str, str]
    code: Mapping[str, str]
    known: Mapping[str, Known]
    secrets: Mapping[str, bytes] = field(default_factory=dict)


def job_of(
    deployment: Deployment,
    folders: Mapping[str, Path],
    known: Mapping[str, Known],
    allowed: Iterable[str],
    limits: FetchLimits,
    caps: Caps,
    sealed: Mapping[str, Path] | None = None,
    role: AwsRole | None = None,
    *,
    aside: bool = False,
) -> dict[str, Any]:
    """The installer's job for a deployment, without what `install` adds.

    Args:
        folders: the folder of each function that has one, by function Id.
        known: by source, which object it gave last.
        allowed: the policy's patterns of sources.
        sealed: by ARN, where the newest seal of a secret is.
        role: whose AWS credentials are used; None: those of boto3's own variables and files.
        aside: whether others are at work meanwhile, see `functions.aside`.
    """
    older = {arn: str(file) for arn, file in (sealed or {}).items()}
    wanted = [(each.id, "resource", each.source, each.digest) for each in deployment.resources]
    wanted += [(each.id, "code", each.code, each.code_digest) for each in deployment.functions if each.code is not None]
    return {
        "archives": [
            {"id": id, "role": role, **_place(source), "digest": digest, "known": _known(known.get(source.name))}
            for id, role, source, digest in wanted
        ],
        "folders": [{"id": id, "path": str(path)} for id, path in folders.items()],
        "secrets": [
            {"id": each.id, "arn": each.arn, "labels": list(each.labels), "known": older.get(each.arn)}
            for each in deployment.secrets
        ],
        "allowed": list(allowed),
        "limits": asdict(limits),
        "caps": asdict(caps),
        "role": asdict(role) if role else None,
        "aside": aside,
    }


def _place(source: Source) -> dict[str, str | None]:
    url = source.url if isinstance(source, HttpsSource) else None
    return {"kind": KINDS[type(source)], "source": source.name, "url": url}


def _known(known: Known | None) -> list[str] | None:
    return [known.etag, known.hex] if known else None


async def fetch_document(
    state: Path, source: Source, allowed: Iterable[str], limits: FetchLimits, role: AwsRole | None = None
) -> bytes:
    """The document that lies at a source, in a child of its own; writes nothing.

    Raises:
        AgentError: as `install`.
    """
    job: dict[str, Any] = {"archives": [], "folders": [], "allowed": list(allowed), "document": _place(source)}
    job["aside"] = True
    job |= {"limits": asdict(limits), "caps": asdict(Caps()), "role": asdict(role) if role else None}
    events = await _run(state, job, lambda event: None)
    return base64.b64decode(next(event["body"] for event in events if event["event"] == "document"))


async def install(state: Path, job: dict[str, Any], on_event: OnEvent) -> Installed:
    """Runs one installer to its end.

    Args:
        state: the state directory.
        on_event: gets ``phase``, ``progress`` and ``object`` events as they come.

    Raises:
        TransientError: INSTALLER_LOST, it ended without a word; or what it said is worth another try.
        AgentError: what it said.
    """
    return _outcome(await _run(state, job, on_event))


async def _run(state: Path, job: dict[str, Any], on_event: OnEvent) -> list[dict[str, Any]]:
    """What a child says of its job, once it has done it."""
    spawned = asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", BOOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES, start_new_session=True,
    )  # fmt: skip
    if job.get("aside"):
        child = await starting_aside(spawned)
        aside.put(child.pid)
    else:
        child = await spawned
    try:
        assert child.stderr is not None
        noise = asyncio.create_task(child.stderr.read())
        events = await _converse(child, {**job, "state": str(state), "parent": os.getpid()}, on_event)
        code = await child.wait()
        said = (await noise)[-MAX_STDERR_BYTES:].decode(errors="replace").strip()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _done(events, code, said)


async def _converse(child: asyncio.subprocess.Process, job: dict[str, Any], on_event: OnEvent) -> list[dict[str, Any]]:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(job).encode())
        await child.stdin.drain()
        child.stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        pass  # it is gone already; its exit code tells
    events = []
    while line := await child.stdout.readline():
        try:
            event = json.loads(line)
        except ValueError:
            break  # a line cut off by its death
        if event["event"] in ("phase", "progress", "object"):
            on_event(event)
        if event["event"] not in ("phase", "progress"):
            events.append(event)
    return events


def _done(events: list[dict[str, Any]], code: int, said: str) -> list[dict[str, Any]]:
    """The events of a child that did its job."""
    for event in events:
        if event["event"] == "failed":
            kind = TransientError if event["transient"] else AgentError
            raise kind(event["code"], event["message"], event["remedy"])
        if event["event"] == "done":
            return events
    if said:
        logger.error("the installer said before it ended: %s", said.splitlines()[-1])
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    raise TransientError("INSTALLER_LOST", f"the installer ended {how} before its work was done", "Deploy again.")


def _outcome(events: Iterable[dict[str, Any]]) -> Installed:
    objects: dict[str, str] = {}
    code: dict[str, str] = {}
    known: dict[str, Known] = {}
    secrets: dict[str, bytes] = {}
    for event in events:
        if event["event"] == "object":
            (objects if event["role"] == "resource" else code)[event["id"]] = event["hex"]
            if event["etag"]:
                known[event["source"]] = Known(event["etag"], event["hex"])
        elif event["event"] == "code":
            code[event["id"]] = event["hex"]
        elif event["event"] == "secret":
            secrets[event["id"]] = base64.b64decode(event["sealed"])
    return Installed(objects, code, known, secrets)
