"""Fetches an archive into a file that survives: resumed after a broken connection, a killed installer or a power cut.

A download is ``downloads/<key>.part`` with ``<key>.json`` beside it, which says what it is of and how many of its bytes
are synced; only those are gone on from. The SHA-256 is taken as the bytes pass. Nothing here believes what it fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from agent.deployment import durable
from agent.deployment.sources import ArchiveSource, Stream
from agent.deployment.troubles import disk_full
from agent.errors import RejectedError, TransientError

SYNC_BYTES: Final = 32 * 1024 * 1024
READ_BYTES: Final = 1024 * 1024
MIN_FREE_INODES: Final = 1000
Progress = Callable[[int, int], None]  # bytes there, bytes in all


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one fetch.

    Attributes:
        max_bytes: of one archive.
        free_bytes: what must stay free on the disk.
        attempts: tries in a row that bring nothing; one that brings bytes starts the count again.
        backoff_s: longest pause between tries, seconds.
        sync_bytes: how often what was fetched is synced; what was not is fetched again after a crash.
    """

    max_bytes: int = 4 * 1024**3
    free_bytes: int = 64 * 1024**2
    attempts: int = 6
    backoff_s: float = 10.0
    sync_bytes: int = SYNC_BYTES


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole archive: its file, SHA-256 (hex), size and strong ETag."""

    file: Path
    hex: str
    size: int
    etag: str | None


class Part:
    """What is there of one archive; writes durably in steps.

    Args:
        directory: where downloads are kept.
        name: the source's name.
        sync_bytes: see `FetchLimits`.
    """

    def __init__(self, directory: Path, name: str, sync_bytes: int = SYNC_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(name.encode()).hexdigest()[:32]
        self.file = directory / f"{key}.part"
        self._facts = directory / f"{key}.json"
        self.etag: str | None = None
        self.size = 0
        self._synced = 0
        self._sync_bytes = sync_bytes
        self._digest = hashlib.sha256()
        self._fd = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._take_up()

    def _take_up(self) -> None:
        """Goes on from what the last installer synced; anything odd begins anew."""
        try:
            facts = json.loads(self._facts.read_bytes())
            synced, etag = int(facts["synced"]), str(facts["etag"])
        except (OSError, ValueError, KeyError, TypeError):
            synced, etag = 0, ""
        if not etag or os.fstat(self._fd).st_size < synced:
            synced = 0
        os.ftruncate(self._fd, synced)
        while self.size < synced:
            chunk = os.pread(self._fd, min(READ_BYTES, synced - self.size), self.size)
            self._digest.update(chunk)
            self.size += len(chunk)
        os.lseek(self._fd, self.size, os.SEEK_SET)
        self._synced = self.size
        self.etag = etag if self.size else None

    def restart(self, etag: str | None) -> None:
        """Drops what is there; what comes is of the archive with this ETag."""
        self._facts.unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = self._synced = 0
        self.etag = etag
        self._digest = hashlib.sha256()

    def append(self, chunk: bytes) -> None:
        """Adds bytes at the end."""
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._digest.update(chunk)
        self.size += len(chunk)
        if self.size - self._synced >= self._sync_bytes:
            self.sync()

    def sync(self) -> None:
        """Makes what is there worth going on from after a power cut; without an ETag nothing is."""
        if self.etag and self.size > self._synced:
            os.fdatasync(self._fd)
            durable.write(self._facts, json.dumps({"etag": self.etag, "synced": self.size}).encode())
            self._synced = self.size

    @property
    def hex(self) -> str:
        """The SHA-256 of what is there."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Lets go of the file, which stays."""
        os.close(self._fd)

    def remove(self) -> None:
        """Removes the file; `close` is still needed."""
        self._facts.unlink(missing_ok=True)
        self.file.unlink(missing_ok=True)


def fetch(
    source: ArchiveSource, part: Part, known: str | None, limits: FetchLimits, progress: Progress
) -> Fetched | None:
    """The whole archive, or None where it still has the ETag `known`. Blocks; tries again by itself.

    Raises:
        AgentError: the source's, after the last try; SOURCE_TOO_LARGE or DISK_FULL.
        OSError: the disk's.
    """
    tries = _Tries(limits.attempts)
    wait = wait_random_exponential(multiplier=min(0.5, limits.backoff_s), max=limits.backoff_s)
    for attempt in Retrying(retry=retry_if_exception_type(TransientError), stop=tries.stop, wait=wait, reraise=True):
        with attempt:
            before = part.size
            try:
                return _fetch_once(source, part, known, limits, progress)
            except TransientError as error:
                if error.code == "SOURCE_CHANGED":
                    part.restart(None)
                tries.note(part.size > before)
                part.sync()
                raise
    raise AssertionError("unreachable: tenacity raises")


def _fetch_once(
    source: ArchiveSource, part: Part, known: str | None, limits: FetchLimits, progress: Progress
) -> Fetched | None:
    stream = source.open(part.size, part.etag, known if not part.size else None)
    if stream is None:
        return None
    if not stream.start:
        part.restart(stream.etag)
    elif stream.start != part.size:
        raise TransientError("SOURCE_CHANGED", f"{source.name}: the server went on from another place than asked")
    _check_room(part, stream, limits)
    progress(part.size, stream.total)
    for chunk in stream.chunks:
        if part.size + len(chunk) > stream.total:
            raise TransientError("SOURCE_CHANGED", f"{source.name}: more came than the server had announced")
        part.append(chunk)
        progress(part.size, stream.total)
    if part.size != stream.total:
        text = f"{source.name}: the connection ended after {part.size} of {stream.total} bytes"
        raise TransientError("SOURCE_UNREACHABLE", text, "Deploy again; what was fetched is kept.")
    return Fetched(part.file, part.hex, part.size, part.etag)


def _check_room(part: Part, stream: Stream, limits: FetchLimits) -> None:
    """That the archive is within its limit, and that it and what comes out of it have room on the disk."""
    if stream.total > limits.max_bytes:
        text = f"the archive has {stream.total} bytes; at most {limits.max_bytes} are fetched"
        raise RejectedError("SOURCE_TOO_LARGE", text, "Make it smaller.")
    disk = os.statvfs(part.file.parent)
    free = disk.f_bavail * disk.f_frsize
    needed = stream.total - part.size + stream.total + limits.free_bytes
    if free < needed:
        text = f"{free // 2**20} MiB are free for the state directory, this deployment needs {needed // 2**20}"
        raise disk_full(text)
    if disk.f_files and disk.f_favail < MIN_FREE_INODES:
        raise disk_full(f"only {disk.f_favail} inodes are free")


class _Tries:
    """Counts tries in a row that brought nothing."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_vain = 0

    def note(self, brought: bool) -> None:
        self._in_vain = 0 if brought else self._in_vain + 1

    def stop(self, _: RetryCallState) -> bool:
        return self._in_vain >= self._most
