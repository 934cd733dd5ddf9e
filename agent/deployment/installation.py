"""The agent's side of the installer: starts the child, gives it its job, hears its events, ends it when not wanted.

Runs on the agent's loop and blocks nothing. The child dies with the agent; a cancelled `install` has killed it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from agent.deployment.definition import Deployment, FileSource, HttpsSource, Resource, S3Source
from agent.deployment.download import FetchLimits
from agent.deployment.store import Known
from agent.deployment.tree_writer import Caps
from agent.errors import AgentError, TransientError

logger = logging.getLogger(__name__)

ROOT: Final = str(Path(__file__).resolve().parents[2])
BOOT: Final = f"import sys; sys.path.insert(0, {ROOT!r}); from agent.deployment.installer import main; sys.exit(main())"
MAX_LINE_BYTES: Final = 1024 * 1024
MAX_STDERR_BYTES: Final = 4096
OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Installed:
    """What the installer brought: objects by resource Id and function Id, and what its sources' ETags were."""

    objects: Mapping[str, str]
    code: Mapping[str, str]
    known: Mapping[str, Known]


def job_of(
    deployment: Deployment,
    folders: Mapping[str, Path],
    known: Mapping[str, Known],
    allowed: Iterable[str],
    limits: FetchLimits,
    caps: Caps,
) -> dict[str, Any]:
    """The installer's job for a deployment, without what `install` adds.

    Args:
        folders: the folder of each function that has one, by function Id.
        known: by source, which object it gave last.
        allowed: the policy's patterns of sources.
    """
    return {
        "resources": [_wanted(resource, known.get(resource.source.name)) for resource in deployment.resources],
        "folders": [{"id": id, "path": str(path)} for id, path in folders.items()],
        "allowed": list(allowed),
        "limits": asdict(limits),
        "caps": asdict(caps),
    }


def _wanted(resource: Resource, known: Known | None) -> dict[str, Any]:
    source = resource.source
    kinds = {S3Source: "s3", HttpsSource: "https", FileSource: "file"}
    return {
        "id": resource.id,
        "kind": kinds.get(type(source), "sagemaker"),
        "source": source.name,
        "url": source.url if isinstance(source, HttpsSource) else None,
        "digest": resource.digest,
        "known": [known.etag, known.hex] if known else None,
    }


async def install(state: Path, job: dict[str, Any], on_event: OnEvent) -> Installed:
    """Runs one installer to its end.

    Args:
        state: the state directory.
        on_event: gets ``phase`` and ``progress`` events as they come.

    Raises:
        TransientError: INSTALLER_LOST, it ended without a word; or what it said is worth another try.
        AgentError: what it said.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", BOOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
    )  # fmt: skip
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
    return _outcome(events, code, said, job["resources"])


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
        if event["event"] in ("phase", "progress"):
            on_event(event)
        else:
            events.append(event)
    return events


def _outcome(events: Iterable[dict[str, Any]], code: int, said: str, resources: list[dict[str, Any]]) -> Installed:
    sources = {wanted["id"]: wanted["source"] for wanted in resources}
    objects: dict[str, str] = {}
    folders: dict[str, str] = {}
    known: dict[str, Known] = {}
    for event in events:
        if event["event"] == "object":
            objects[event["id"]] = event["hex"]
            if event["etag"]:
                known[sources[event["id"]]] = Known(event["etag"], event["hex"])
        elif event["event"] == "code":
            folders[event["id"]] = event["hex"]
        elif event["event"] == "failed":
            kind = TransientError if event["transient"] else AgentError
            raise kind(event["code"], event["message"], event["remedy"])
        elif event["event"] == "done":
            return Installed(objects, folders, known)
    if said:
        logger.error("the installer said before it ended: %s", said.splitlines()[-1])
    how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    raise TransientError("INSTALLER_LOST", f"the installer ended {how} before its work was done", "Deploy again.")
