"""Payloads that are too large for a message: kept on the disk, put into S3 by a child, then told of by their sample.

Runs on the event loop's thread; files are written by threads, and the uploader is a process. A parcel is safe once its
files are synced; after a crash it is uploaded again, and its sample may come twice, with the same id.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from agent.capture.parcels import Parcel, from_values, pack, sealed, to_values, victims
from agent.capture.samples import Sample
from agent.deployment import durable
from agent.deployment.threads import in_thread
from agent.errors import TransientError
from agent.settings import AwsRole

log = logging.getLogger(__name__)

ROOT: Final = str(Path(__file__).resolve().parents[2])
BOOT: Final = f"import sys; sys.path.insert(0, {ROOT!r}); from agent.capture.uploader import main; sys.exit(main())"
BACKOFF_S: Final = (2.0, 300.0)
PENDING_BYTES: Final = 64 * 1024 * 1024  # what may wait in memory for the disk
LINGER_S: Final = 10.0  # how long the uploader stays without work


class Uploads:
    """The way to S3.

    Args:
        folder: where parcels wait.
        place: ``s3://bucket/prefix``.
        max_bytes: of those that wait.
        publish: (sample, done) sends a sample whose payloads are in S3; `done` once it is safe.
        dropped: (function) says that a sample was dropped for want of room.
        role: whose AWS credentials the uploader gets; None: those of boto3's own variables and files.
    """

    def __init__(
        self,
        folder: Path,
        place: str,
        core: str,
        max_bytes: int,
        *,
        publish: Callable[[Sample, Callable[[], None]], None],
        dropped: Callable[[str], None],
        role: AwsRole | None = None,
    ) -> None:
        self._role = asdict(role) if role else None
        self._folder = folder
        self._place = place
        self._core = core
        self._max_bytes = max_bytes
        self._publish = publish
        self._dropped = dropped
        self._waiting: dict[str, Parcel] = {}
        self._under_way: str | None = None
        self._pending_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._hurry = asyncio.Event()
        self._error: str | None = None

    async def open(self) -> None:
        """Takes up what waited when the last run ended."""
        for parcel in await in_thread(_found, self._folder):
            self._waiting[parcel.name] = parcel
        self._spawn(self._run())
        self._news.set()

    async def close(self) -> None:
        """Ends; what waits, waits for the next run."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def hurry(self) -> None:
        """Tries again at once: the network is back."""
        self._hurry.set()

    def told(self) -> dict[str, Any]:
        """What waits, for `marram status`."""
        size = sum(each.bytes for each in self._waiting.values())
        return {"waiting": len(self._waiting), "bytes": size, "error": self._error}

    def put(self, sample: Sample, most_bytes: int, done: Callable[[], None]) -> bool:
        """Takes a sample whose message would be over `most_bytes`; `done` once it is on the disk, or was dropped.

        False where it is worth less than all that fill the room, or the disk does not keep up.
        """
        parcel = pack(sample, self._place, self._core, most_bytes)
        standing = [each for name, each in self._waiting.items() if name != self._under_way]
        busy = sum(each.bytes for each in self._waiting.values()) - sum(each.bytes for each in standing)
        gone = victims(standing, parcel, self._max_bytes - busy)
        if gone is None or self._pending_bytes + parcel.bytes > PENDING_BYTES:
            return False
        for each in gone:
            del self._waiting[each.name]
            self._dropped(each.sample.origin.function)
        self._pending_bytes += parcel.bytes
        self._spawn(self._store(parcel, [each.name for each in gone], done))
        return True

    async def _store(self, parcel: Parcel, gone: list[str], done: Callable[[], None]) -> None:
        try:
            stored = await in_thread(_write, self._folder, parcel, gone)
            self._waiting[stored.name] = stored
            self._news.set()
        except OSError as error:
            log.error("a sample cannot be kept for its upload: %s", error)
            self._dropped(parcel.sample.origin.function)
        finally:
            self._pending_bytes -= parcel.bytes
            done()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the uploader -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        failures = 0
        while True:
            await self._news.wait()
            failures = 0 if await self._converse() else failures + 1
            if failures:
                pause_s = min(BACKOFF_S[0] * 2 ** (failures - 1), BACKOFF_S[1]) * (0.5 + random.random() / 2)
                self._hurry.clear()
                try:
                    await asyncio.wait_for(self._hurry.wait(), pause_s)
                except asyncio.TimeoutError:
                    pass

    async def _converse(self) -> bool:
        """Gives one uploader all that waits, the most valuable first; False where it came to a failure."""
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", BOOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            while True:
                while self._waiting:
                    if not await self._upload(child, max(self._waiting.values(), key=lambda each: each.sample.value)):
                        return False
                self._news.clear()
                try:
                    await asyncio.wait_for(self._news.wait(), LINGER_S)
                except asyncio.TimeoutError:
                    return True
        finally:
            self._under_way = None
            if child.returncode is None:
                child.kill()
                await child.wait()

    async def _upload(self, child: asyncio.subprocess.Process, parcel: Parcel) -> bool:
        self._under_way = parcel.name
        for field, reference in parcel.references().items():
            bucket, _, key = reference.uri.removeprefix("s3://").partition("/")
            file = self._folder / f"{parcel.name}.{field}"
            job: dict[str, Any] = {
                "name": file.name,
                "file": str(file),
                "bucket": bucket,
                "key": key,
                "type": reference.type,
            }
            job["role"] = self._role
            error = await _ask(child, job)
            if error is not None:
                self._note(error)
                return False
        self._note(None)
        del self._waiting[parcel.name]
        self._under_way = None
        self._publish(parcel.sample, lambda: self._spawn(in_thread(_remove, self._folder, [parcel.name])))
        return True

    def _note(self, error: str | None) -> None:
        if error is not None and (self._error or "").partition(":")[0] != error.partition(":")[0]:
            log.error("samples wait for their upload: %s", error)
        self._error = error


async def _ask(child: asyncio.subprocess.Process, job: dict[str, Any]) -> str | None:
    """What the uploader says is wrong, ``CODE: message``, or None once the object is there."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(job).encode() + b"\n")
        await child.stdin.drain()
        answer = json.loads(await child.stdout.readline())
    except (OSError, ValueError):
        lost = TransientError("UPLOADER_LOST", "The process that uploads samples has ended.", "It is started again.")
        return str(lost)
    error = answer.get("error")
    return f"{error['code']}: {error['message']}" if error else None


# -- files; these block ---------------------------------------------------------------------------------------------


def _write(folder: Path, parcel: Parcel, gone: list[str]) -> Parcel:
    """Puts a parcel on the disk, its payloads before what tells of them; returns it without its contents."""
    _remove(folder, gone)
    folder.mkdir(exist_ok=True)
    whole = sealed(parcel)
    for field, data in whole.contents.items():
        durable.write(folder / f"{whole.name}.{field}", data)
    durable.write(folder / f"{whole.name}.json", json.dumps(to_values(whole)).encode())
    bare = from_values(to_values(whole))
    assert bare is not None
    return bare


def _remove(folder: Path, names: list[str]) -> None:
    """Removes parcels, what tells of them first."""
    for name in names:
        for file in (folder / f"{name}.json", *folder.glob(f"{name}.*")):
            file.unlink(missing_ok=True)


def _found(folder: Path) -> list[Parcel]:
    """All whole parcels; what is left of others is removed."""
    if not folder.is_dir():
        return []
    found: dict[str, Parcel] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            parcel = from_values(json.loads(file.read_bytes()))
        except (OSError, ValueError):
            parcel = None
        if parcel is not None and parcel.name == file.stem and _is_whole(folder, parcel):
            found[parcel.name] = parcel
    for file in folder.iterdir():
        if file.name.partition(".")[0] not in found:
            file.unlink(missing_ok=True)
    return list(found.values())


def _is_whole(folder: Path, parcel: Parcel) -> bool:
    files = {folder / f"{parcel.name}.{field}": each.size for field, each in parcel.references().items()}
    return all(file.is_file() and os.path.getsize(file) == size for file, size in files.items())
