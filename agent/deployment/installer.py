"""The installer: a child process for each deployment that fetches, verifies, unpacks and syncs, and owns boto3.

It reads one job as JSON on stdin and writes events as JSON lines on stdout (see `Job` and `main`). It may be killed at
any moment: what it left half done is removed or gone on with by the next one. It never touches groups or the journal.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.deployment import durable
from agent.deployment.document import allows
from agent.deployment.download import Fetched, FetchLimits, Part, fetch
from agent.deployment.objects import Objects
from agent.deployment.sources import ArchiveSource
from agent.deployment.sources.file import FileArchive
from agent.deployment.tree_writer import Caps
from agent.deployment.troubles import translated
from agent.deployment.unpack import unpack
from agent.errors import AgentError, IntegrityError, RejectedError, TransientError

NICENESS: Final = 10
MAX_MEMORY_BYTES: Final = 2 * 1024**3  # of address space: boto3 and its threads take some 300 MiB of it
PROGRESS_EVERY_S: Final = 1.0
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What one installer does.

    Attributes:
        state: the state directory.
        parent: the agent's process id; without it there is nothing to do.
        resources: ``{id, kind, source, url, digest, known: [etag, hex] or null}`` each; kind s3, https or file.
        folders: ``{id, path}`` of each function with a folder.
        allowed: the policy's patterns of sources; asked where a source leads elsewhere.
    """

    state: Path
    parent: int
    resources: list[dict[str, Any]]
    folders: list[dict[str, str]]
    allowed: list[str]
    limits: FetchLimits
    caps: Caps

    @classmethod
    def read(cls, text: str) -> Job:
        """The job as `installation.start` wrote it."""
        values = json.loads(text)
        return cls(
            Path(values["state"]), values["parent"], values["resources"], values["folders"], values["allowed"],
            FetchLimits(**values["limits"]), Caps(**values["caps"]),
        )  # fmt: skip


def main() -> int:
    """Does the job on stdin; the last event is ``done`` or ``failed``. Exit code 0 only after ``done``."""
    _bind_to_parent()
    job = Job.read(sys.stdin.read())
    if os.getppid() != job.parent:
        return 1
    try:
        Installer(job, emit).run()
    except AgentError as error:
        emit(failure(error))
    except OSError as error:
        emit(failure(translated(error)))
    except MemoryError:
        emit(
            failure(
                AgentError("INSTALLER_OUT_OF_MEMORY", "the installer ran out of memory", "Make the archive smaller.")
            )
        )
    except Exception as error:  # anything else is our mistake, and still must be told apart from a kill
        text = f"the installer failed: {type(error).__name__}: {error}"
        emit(failure(AgentError("INSTALLER_FAILED", text, "Report this as a bug, with the agent's log.")))
    else:
        emit({"event": "done"})
        return 0
    return 1


def emit(event: dict[str, Any]) -> None:
    """Writes one event; SIGPIPE ends us when the agent is gone."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def failure(error: AgentError) -> dict[str, Any]:
    """An error as an event: its code and message, and whether another try may help."""
    return {
        "event": "failed",
        "code": error.code,
        "message": error.message,
        "remedy": error.remedy,
        "transient": isinstance(error, TransientError),
    }


class Installer:
    """Does a job's work in order; any AgentError or OSError ends it."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self._job = job
        self._emit = emit
        self._objects = Objects(job.state)
        self._told_s = 0.0

    def run(self) -> None:
        """Installs every resource, then every folder."""
        self._objects.clean()
        for wanted in self._job.resources:
            self._install(wanted)
        for folder in self._job.folders:
            ref = self._objects.add_folder(Path(folder["path"]))
            self._emit({"event": "code", "id": folder["id"], "hex": ref.hex})
        self._phase("staged", None)

    def _install(self, wanted: dict[str, Any]) -> None:
        promised = (wanted["digest"] or "").removeprefix("sha256:") or None
        self._phase("fetching", wanted["id"])
        if promised and self._objects.holds(promised):
            self._installed(wanted, promised, None, unchanged=True)
            return
        known = self._known(wanted, promised)
        part = Part(self._objects.staging / "downloads", wanted["source"], self._job.limits.sync_bytes)
        try:
            progress = self._progress_of(wanted["id"])
            fetched = fetch(
                _source(wanted, self._job.allowed), part, known[0] if known else None, self._job.limits, progress
            )
            if fetched is None:
                assert known is not None
                self._installed(wanted, known[1], known[0], unchanged=True)
            else:
                self._unpack(wanted, part, fetched, promised)
        finally:
            part.close()

    def _known(self, wanted: dict[str, Any], promised: str | None) -> tuple[str, str] | None:
        """The ETag at which nothing has to be fetched, and the object that it stands for."""
        if not wanted["known"]:
            return None
        etag, hex = wanted["known"]
        if (promised and promised != hex) or not self._objects.holds(hex):
            return None
        return etag, hex

    def _unpack(self, wanted: dict[str, Any], part: Part, fetched: Fetched, promised: str | None) -> None:
        self._phase("verifying", wanted["id"])
        if promised and fetched.hex != promised:
            part.remove()
            text = f"the archive of {wanted['id']} has the digest sha256:{fetched.hex}, promised was sha256:{promised}"
            raise IntegrityError("MODEL_DIGEST_MISMATCH", text, "Upload the archive again or correct the Digest.")
        if not self._objects.holds(fetched.hex):
            self._phase("unpacking", wanted["id"])
            staged = self._objects.stage(f"resource-{fetched.hex[:16]}")
            try:
                entries = unpack(fetched.file, staged / "tree", self._job.caps)
            except (AgentError, OSError):
                part.remove()
                durable.remove(staged)
                raise
            facts = {"kind": "archive", "source": wanted["source"], "etag": fetched.etag, "bytes": fetched.size}
            self._objects.add(staged, fetched.hex, entries, **facts)
        part.remove()
        self._installed(wanted, fetched.hex, fetched.etag, unchanged=False)

    def _installed(self, wanted: dict[str, Any], hex: str, etag: str | None, *, unchanged: bool) -> None:
        self._emit({"event": "object", "id": wanted["id"], "hex": hex, "etag": etag, "unchanged": unchanged})

    def _phase(self, phase: str, id: str | None) -> None:
        self._emit({"event": "phase", "phase": phase, "id": id})

    def _progress_of(self, id: str) -> Callable[[int, int], None]:
        def tell(there: int, total: int) -> None:
            now = time.monotonic()
            if now - self._told_s >= PROGRESS_EVERY_S:
                self._told_s = now
                self._emit({"event": "progress", "id": id, "bytes": there, "total": total})

        return tell


def _source(wanted: dict[str, Any], patterns: list[str]) -> ArchiveSource:
    def allowed(name: str) -> bool:
        return any(allows(pattern, name) for pattern in patterns)

    if wanted["kind"] == "s3":
        from agent.deployment.sources.s3 import S3Archive  # 42 MB of boto3, only where it is needed

        return S3Archive(wanted["source"])
    if wanted["kind"] == "https":
        from agent.deployment.sources.https import HttpsArchive

        return HttpsArchive(wanted["url"], allowed)
    if wanted["kind"] == "file":
        return FileArchive(wanted["source"].removeprefix("file://"), allowed)
    raise RejectedError("NOT_SUPPORTED", f"sources of the kind {wanted['kind']} are not supported yet")


def _bind_to_parent() -> None:
    """Dies with the agent, yields to requests, and cannot eat the device's memory."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the agent's to handle
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


if __name__ == "__main__":
    sys.exit(main())
