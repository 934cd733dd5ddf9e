"""Fetches an archive into a file that survives: resumed after a broken connection, a killed installer or a power cut.

A download is ``downloads/<key>.part`` with ``<key>.json`` beside it, which says what it is of and how many of its bytes
are synced; only those are gone on from. The SHA-256 is taken as the bytes pass. Nothing here believes what it fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from agent.deployment import durable
from agent.deployment.sources import ArchiveSource, Stream, changed
from agent.deployment.troubles import disk_full, inodes_gone
from agent.errors import RejectedError, TransientError
from agent.settings import FetchLimits
from agent.values import dataclass

__all__ = ["FetchLimits", "Fetched", "Part", "Progress", "fetch", "fetch_bytes"]

READ_BYTES: Final = 1024 * 1024
MIN_FREE_INODES: Final = 1000
Progress = Callable[[int, int], None]  # bytes there, bytes in all
T = TypeVar("T")


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
    """

    def __init__(self, directory: Path, name: str, limits: FetchLimits) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(name.encode()).hexdigest()[:32]
        self.file = directory / f"{key}.part"
        self._facts = directory / f"{key}.json"
        self.etag: str | None = None
        self.total: int | None = None  # the whole archive's size; None: not known
        self.size = 0
        self.downloads = 0  # how often it was begun anew
        self.whole = False  # whether nothing is left to go on with
        self._limits = limits
        self._synced = 0
        self._synced_s = time.monotonic()
        self._digest = hashlib.sha256()
        self._fd = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._take_up()

    def _take_up(self) -> None:
        """Goes on from what the last installer synced; anything odd begins anew."""
        try:
            facts = json.loads(self._facts.read_bytes())
            synced, etag, total = int(facts["synced"]), str(facts["etag"]), int(facts["total"])
        except (OSError, ValueError, KeyError, TypeError):
            synced, etag, total = 0, "", 0
        if not etag or os.fstat(self._fd).st_size < synced:
            synced = 0
        os.ftruncate(self._fd, synced)
        while self.size < synced:
            chunk = os.pread(self._fd, min(READ_BYTES, synced - self.size), self.size)
            self._digest.update(chunk)
            self.size += len(chunk)
        os.lseek(self._fd, self.size, os.SEEK_SET)
        self._synced = self.size
        self.etag, self.total = (etag, total) if self.size else (None, None)

    def restart(self, etag: str | None, total: int | None = None) -> None:
        """Drops what is there; what comes is of the archive with this ETag and size."""
        self._facts.unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = self._synced = 0
        self.etag, self.total = etag, total
        self.downloads += 1
        self._digest = hashlib.sha256()

    def append(self, chunk: bytes) -> None:
        """Adds bytes at the end."""
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        self._digest.update(chunk)
        self.size += len(chunk)
        late = time.monotonic() - self._synced_s >= self._limits.sync_s
        if late or self.size - self._synced >= self._limits.sync_bytes:
            self.sync()

    def sync(self) -> None:
        """Makes what is there worth going on from after a power cut; without an ETag nothing is."""
        if self.etag and self.size > self._synced:
            os.fdatasync(self._fd)
            facts = {"etag": self.etag, "total": self.total, "synced": self.size}
            durable.write(self._facts, json.dumps(facts).encode())
            self._synced = self.size
        self._synced_s = time.monotonic()

    @property
    def hex(self) -> str:
        """The SHA-256 of what is there."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Lets go of the file, which stays unless `whole` says that it has served."""
        os.close(self._fd)
        if self.whole:
            self.remove()

    def remove(self) -> None:
        """Removes the file; `close` is still needed. May be done twice."""
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

    def once() -> Fetched | None:
        try:
            return _fetch_once(source, part, known, limits, progress)
        except TransientError as error:
            if error.code == "SOURCE_CHANGED":
                part.restart(None)
            part.sync()
            raise

    return _tried(once, lambda: part.size, limits)


def fetch_bytes(source: ArchiveSource, limits: FetchLimits) -> bytes:
    """All that a source gives, which is small. Blocks; tries again by itself.

    Raises:
        AgentError: the source's, after the last try; SOURCE_TOO_LARGE.
    """

    def once() -> bytes:
        stream = source.open(0, None, None)
        assert stream is not None
        if stream.total > limits.max_bytes:
            raise _too_large(stream.total, limits)
        data = b"".join(_bounded(stream, 0, source.name, limits))
        if len(data) != stream.total:
            raise _cut_off(source.name, len(data), stream.total)
        return data

    return _tried(once, lambda: 0, limits)


def _tried(once: Callable[[], T], there: Callable[[], int], limits: FetchLimits) -> T:
    """What `once` gives, tried again while it raises a TransientError; `there` tells how many bytes were brought."""
    tries = _Tries(limits.attempts)
    wait = wait_random_exponential(multiplier=min(0.5, limits.backoff_s), max=limits.backoff_s)
    for attempt in Retrying(retry=retry_if_exception_type(TransientError), stop=tries.stop, wait=wait, reraise=True):
        with attempt:
            before = there()
            try:
                return once()
            except TransientError as error:
                tries.note(there() > before and error.code != "SOURCE_SLOW", changed=error.code == "SOURCE_CHANGED")
                raise
    raise AssertionError("unreachable: tenacity raises")


def _fetch_once(
    source: ArchiveSource, part: Part, known: str | None, limits: FetchLimits, progress: Progress
) -> Fetched | None:
    stream = source.open(part.size, part.etag, known if not part.size else None)
    if stream is None:
        return None
    if not stream.start:
        part.restart(stream.etag, stream.total)
    elif stream.start != part.size:
        raise changed(f"{source.name}: the server went on from another place than asked")
    elif stream.total != part.total:
        raise changed(f"{source.name}: its size is another than it was, its ETag is the same")
    _check_room(part, stream, limits)
    progress(part.size, stream.total)
    for chunk in _bounded(stream, part.size, source.name, limits):
        part.append(chunk)
        progress(part.size, stream.total)
    if part.size != stream.total:
        raise _cut_off(source.name, part.size, stream.total)
    return Fetched(part.file, part.hex, part.size, part.etag)


def _bounded(stream: Stream, there: int, name: str, limits: FetchLimits) -> Iterator[bytes]:
    """The chunks, never more than announced, not faster than allowed; given up where they only drip."""
    pace = _Pace(limits.max_bytes_per_s)
    begun_s, brought = time.monotonic(), 0
    for chunk in stream.chunks:
        there += len(chunk)
        if there > stream.total:
            raise changed(f"{name}: more came than the server had announced")
        yield chunk
        brought += len(chunk)
        pace.wait(len(chunk))
        now = time.monotonic()
        if now - begun_s >= limits.stall_s:
            rate = brought / (now - begun_s)
            if rate < limits.min_bytes_per_s and there < stream.total:
                text = f"{name}: the server gives {rate:.0f} bytes a second, less than {limits.min_bytes_per_s}"
                raise TransientError("SOURCE_SLOW", text, "Check the network and the server, then deploy again.")
            begun_s, brought = now, 0


class _Pace:
    """Keeps what comes to a rate by waiting; what was not used for a second or more is not made up for."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._due_s = time.monotonic()

    def wait(self, count: int) -> None:
        """Waits until the bytes that came were allowed to."""
        if self._bytes_per_s is None:
            return
        now = time.monotonic()
        self._due_s = max(self._due_s, now - 1.0) + count / self._bytes_per_s
        if self._due_s > now:
            time.sleep(self._due_s - now)


def _check_room(part: Part, stream: Stream, limits: FetchLimits) -> None:
    """That the archive is within its limit, and that it and what comes out of it have room on the disk."""
    if stream.total > limits.max_bytes:
        raise _too_large(stream.total, limits)
    disk = os.statvfs(part.file.parent)
    free = disk.f_bavail * disk.f_frsize
    needed = stream.total - part.size + stream.total + limits.free_bytes
    if free < needed:
        text = f"{free // 2**20} MiB are free for the state directory, this deployment needs {needed // 2**20}"
        raise disk_full(text)
    if disk.f_files and disk.f_favail < MIN_FREE_INODES:
        raise inodes_gone(f"only {disk.f_favail} inodes are free")


def _too_large(total: int, limits: FetchLimits) -> RejectedError:
    text = f"the source has {total} bytes; at most {limits.max_bytes} are fetched"
    return RejectedError("SOURCE_TOO_LARGE", text, "Make it smaller, or raise fetch.max_bytes in topics.yaml.")


def _cut_off(name: str, there: int, total: int) -> TransientError:
    text = f"{name}: the connection ended after {there} of {total} bytes"
    return TransientError("SOURCE_UNREACHABLE", text, "Deploy again; what was fetched is kept.")


class _Tries:
    """Counts tries in a row that brought nothing, and all after which it had to begin anew."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_vain = 0
        self._changes = 0

    def note(self, brought: bool, *, changed: bool) -> None:
        self._in_vain = 0 if brought else self._in_vain + 1
        self._changes += changed

    def stop(self, _: RetryCallState) -> bool:
        return max(self._in_vain, self._changes) >= self._most
