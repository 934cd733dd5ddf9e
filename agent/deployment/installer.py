"""The installer: a child process for each deployment that fetches, verifies, unpacks and syncs, and owns boto3.

An archive is unpacked while it is fetched, into staging; it becomes an object once its digest is verified. The child
reads one job as JSON on stdin and writes events as JSON lines on stdout (see `Job` and `main`). It may be killed at any
moment: what it left half done is removed or gone on with by the next one. It never touches groups or the journal.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from agent.deployment import durable
from agent.deployment.ahead import Ahead
from agent.deployment.download import Fetched, Part, fetch, fetch_bytes
from agent.deployment.objects import Objects
from agent.deployment.sources.kinds import source_of
from agent.deployment.sources.role import assume
from agent.deployment.troubles import inodes_gone, translated
from agent.errors import AgentError, IntegrityError, TransientError
from agent.settings import AwsRole, Caps, FetchLimits
from agent.values import dataclass

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
        archives: ``{id, role, kind, source, url, digest, known: [etag, hex] or null}`` each; role resource or code,
            kind s3, sagemaker, https or file.
        folders: ``{id, path}`` of each function with a folder.
        secrets: ``{id, arn, labels, known}`` each; known is the file of an older seal, or null.
        document: ``{kind, source, url}``: nothing is installed, the document there is what is wanted.
        allowed: the policy's patterns of sources; asked where a source leads elsewhere.
        role: whose AWS credentials are used; None: those of boto3's own variables and files.
    """

    state: Path
    parent: int
    archives: list[dict[str, Any]]
    folders: list[dict[str, str]]
    allowed: list[str]
    limits: FetchLimits
    caps: Caps
    document: dict[str, Any] | None = None
    secrets: Sequence[dict[str, Any]] = ()
    role: AwsRole | None = None

    @classmethod
    def read(cls, text: str) -> Job:
        """The job as `installation.start` wrote it."""
        values = json.loads(text)
        return cls(
            Path(values["state"]), values["parent"], values["archives"], values["folders"], values["allowed"],
            FetchLimits(**values["limits"]), Caps(**values["caps"]), values.get("document"), values.get("secrets", ()),
            AwsRole(**values["role"]) if values.get("role") else None,
        )  # fmt: skip


def main() -> int:
    """Does the job on stdin; the last event is ``done`` or ``failed``. Exit code 0 only after ``done``."""
    _bind_to_parent()
    job = Job.read(sys.stdin.read())
    if os.getppid() != job.parent:
        return 1
    assume(job.role)
    try:
        if job.document is None:
            Installer(job, emit).run()
        else:
            body = fetch_bytes(source_of(job.document, job.allowed, job.limits), job.limits)
            emit({"event": "document", "body": base64.b64encode(body).decode()})
    except AgentError as error:
        emit(failure(error))
    except OSError as error:
        emit(failure(_of_disk(error, job.state)))
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
    """Writes one event; ends us when the agent is gone.

    Not by SIGPIPE: a server that closes a TLS connection while something is written to it would end us, too.
    """
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)


def failure(error: AgentError) -> dict[str, Any]:
    """An error as an event: its code and message, and whether another try may help."""
    return {
        "event": "failed",
        "code": error.code,
        "message": error.message,
        "remedy": error.remedy,
        "transient": isinstance(error, TransientError),
    }


def _of_disk(error: OSError, state: Path) -> AgentError:
    """A disk's error with its code; "no space" has two causes."""
    if error.errno == errno.ENOSPC:
        disk = os.statvfs(state)
        if disk.f_files and not disk.f_favail:
            return inodes_gone("no inode is free on the disk of the state directory")
    return translated(error)


class Installer:
    """Does a job's work in order; any AgentError or OSError ends it."""

    def __init__(self, job: Job, emit: Emit) -> None:
        self._job = job
        self._emit = emit
        self._objects = Objects(job.state)
        self._told_s = 0.0
        self._installed: dict[str, tuple[str, str | None]] = {}  # by source: one deployment has one version of it

    def run(self) -> None:
        """Installs every secret, then every archive, then every folder."""
        self._objects.clean()
        for secret in self._job.secrets:
            self._seal(secret)
        for wanted in self._job.archives:
            hex, etag, unchanged = self._install(wanted)
            self._installed[wanted["source"]] = hex, etag
            self._emit({"event": "object", "id": wanted["id"], "role": wanted["role"], "source": wanted["source"],
                        "hex": hex, "etag": etag, "unchanged": unchanged})  # fmt: skip
        for folder in self._job.folders:
            ref = self._objects.add_folder(Path(folder["path"]))
            self._emit({"event": "code", "id": folder["id"], "hex": ref.hex})
        self._phase("staged", None)

    def _seal(self, wanted: dict[str, Any]) -> None:
        from agent.deployment.secret_install import install_secret  # boto3 and cryptography: only where there are any

        self._phase("fetching", wanted["id"])
        sealed, fetched = install_secret(self._job.state, wanted)
        text = base64.b64encode(sealed).decode()
        self._emit({"event": "secret", "id": wanted["id"], "sealed": text, "fetched": fetched})

    def _install(self, wanted: dict[str, Any]) -> tuple[str, str | None, bool]:
        """The object's name, its ETag, and whether it was there already."""
        promised = (wanted["digest"] or "").removeprefix("sha256:") or None
        self._phase("fetching", wanted["id"])
        if promised and self._objects.holds(promised):
            return promised, None, True
        if wanted["source"] in self._installed:
            hex, etag = self._installed[wanted["source"]]
            _check_digest(wanted, hex, promised)
            return hex, etag, True
        known = self._known(wanted, promised)
        part = Part(self._objects.staging / "downloads", wanted["source"], self._job.limits)
        try:
            return self._fetch(wanted, part, known, promised)
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

    def _fetch(
        self, wanted: dict[str, Any], part: Part, known: tuple[str, str] | None, promised: str | None
    ) -> tuple[str, str | None, bool]:
        staged = self._objects.stage("archive")
        ahead = Ahead(part.file, staged / "tree", self._job.caps)
        source = source_of(wanted, self._job.allowed, self._job.limits)
        progress = self._progress_of(wanted["id"], part, ahead, eager=promised is None)
        try:
            fetched = fetch(source, part, known[0] if known else None, self._job.limits, progress)
            if fetched is None:
                assert known is not None
                return known[1], known[0], True
            part.whole = True
            return self._take(wanted, fetched, promised, staged, ahead)
        except _EnoughError:
            part.whole = True
            ahead.entries()  # raises why
            raise
        except OSError as error:
            part.whole = True  # the disk may be full of it
            raise _of_disk(error, self._job.state) from error  # asked before anything is removed
        finally:
            ahead.close()
            durable.remove(staged)

    def _take(
        self, wanted: dict[str, Any], fetched: Fetched, promised: str | None, staged: Path, ahead: Ahead
    ) -> tuple[str, str | None, bool]:
        """Makes what was unpacked an object, if the archive is what was promised."""
        self._phase("verifying", wanted["id"])
        _check_digest(wanted, fetched.hex, promised)
        if not self._objects.holds(fetched.hex):
            self._phase("unpacking", wanted["id"])
            kind = "archive" if wanted["role"] == "resource" else "code"
            facts = {"kind": kind, "source": wanted["source"], "etag": fetched.etag, "bytes": fetched.size}
            self._objects.add(staged, fetched.hex, ahead.entries(), **facts)
        return fetched.hex, fetched.etag, False

    def _phase(self, phase: str, id: str | None) -> None:
        self._emit({"event": "phase", "phase": phase, "id": id})

    def _progress_of(self, id: str, part: Part, ahead: Ahead, *, eager: bool) -> Callable[[int, int], None]:
        """What is called for all that comes; `eager`: nothing more is fetched of what cannot be unpacked."""

        def tell(there: int, total: int) -> None:
            ahead.grown(there, total, part.downloads)
            if eager and ahead.failed:
                raise _EnoughError
            now = time.monotonic()
            if now - self._told_s >= PROGRESS_EVERY_S:
                self._told_s = now
                self._emit({"event": "progress", "id": id, "bytes": there, "total": total})

        return tell


class _EnoughError(Exception):
    """The archive cannot be unpacked, however it goes on."""


def _check_digest(wanted: dict[str, Any], hex: str, promised: str | None) -> None:
    """That the archive is the one that the document means."""
    if not promised or hex == promised:
        return
    text = f"of {wanted['id']} has the digest sha256:{hex}, promised was sha256:{promised}"
    remedy = "Upload the archive again or correct the Digest."
    if wanted["role"] == "resource":
        raise IntegrityError("MODEL_DIGEST_MISMATCH", f"the archive {text}", remedy)
    raise IntegrityError("CODE_DIGEST_MISMATCH", f"the code package {text}", remedy)


def _bind_to_parent() -> None:
    """Dies with the agent, yields to requests, and cannot eat the device's memory."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the agent's to handle
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


if __name__ == "__main__":
    sys.exit(main())
