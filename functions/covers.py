"""What a contained worker does not see: directories of the machine covered by others that hold only what it needs.

Covered are a private /tmp and /dev, what the agent hides (its state, its user's home, its keys) and each directory that
the worker's user could not enter though something in it is needed, as an interpreter below /root. All that is needed
below a cover is bound into it, at the path that it has.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from functions.system_calls import MS_BIND, MS_MOVE, MS_NODEV, MS_NOSUID, MS_PRIVATE, MS_REC, MS_UNBINDABLE, Libc

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
PLAIN = "mode=0555,size=1m"


class Needed(NamedTuple):
    """Something that is to be found at `place`.

    Attributes:
        source: where it is now: a directory, a file or a device.
    """

    source: str
    place: str
    writable: bool = False


def covered(needed: Sequence[Needed], hidden: Iterable[str], user: tuple[int, Collection[int]]) -> list[str]:
    """The directories to cover, sorted; `user` is (UID, GIDs)."""
    wanted = {os.path.realpath(each) for each in (*TEMPORARY, "/dev", *hidden) if os.path.isdir(each)}
    return sorted((wanted | set(barred(needed, user))) - {"/", "/dev/shm"})


def barred(needed: Iterable[Needed], user: tuple[int, Collection[int]]) -> list[str]:
    """The directories that the user cannot enter and that hold something needed, sorted; the outermost of each."""
    return sorted({above for each in needed for above in _barred(each.place, user)} - {"/"})


def outermost(covers: Iterable[str]) -> list[str]:
    """Those of the covers that do not lie within another."""
    every = list(covers)
    return [each for each in every if not any(is_within(each, other) for other in every if other != each)]


def _barred(place: str, user: tuple[int, Collection[int]]) -> Iterator[str]:
    """The outermost directory above `place` that the user cannot enter."""
    above = ""
    for name in os.path.realpath(place).split("/")[1:]:
        try:
            status = os.stat(above or "/")
        except OSError:
            return
        if not may_enter(status, *user):
            yield above or "/"
            return
        above = f"{above}/{name}"


def may_enter(status: os.stat_result, uid: int, gids: Collection[int]) -> bool:
    """Whether the user may look up names in a directory of that status."""
    if uid == status.st_uid:
        return bool(status.st_mode & stat.S_IXUSR)
    return bool(status.st_mode & (stat.S_IXGRP if status.st_gid in gids else stat.S_IXOTH))


def is_within(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies below it; both absolute and normalised."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def lay(libc: Libc, covers: Sequence[str], needed: Sequence[Needed], stage: str, tmp_bytes: int) -> None:
    """Covers the directories; the one that holds `stage`, an empty directory, comes last.

    The directories on the way to what is needed cannot be written, not by their owner either: what was written there
    would be gone with the worker.

    Raises:
        OSError: this machine does not allow it.
    """
    mask = os.umask(0o222)
    try:
        _lay(libc, covers, needed, stage, tmp_bytes)
    finally:
        os.umask(mask)


def _lay(libc: Libc, covers: Sequence[str], needed: Sequence[Needed], stage: str, tmp_bytes: int) -> None:
    for cover in sorted(outermost(covers), key=lambda each: is_within(stage, each)):
        size = f"mode=1777,size={tmp_bytes}"
        flags = MS_NOSUID if cover == "/dev" else MS_NOSUID | MS_NODEV
        libc.mount("tmpfs", stage, flags, "tmpfs", size if cover in TEMPORARY else PLAIN)
        try:
            libc.mount(None, stage, MS_UNBINDABLE)
            inner = [Needed("", each) for each in covers if each != cover]
            for each in sorted((*needed, *inner), key=lambda each: (each.place, each.source)):
                if is_within(each.place, cover):
                    _bind(libc, each.source, stage + each.place[len(cover) :])
            if cover == "/dev":
                _furnish(libc, stage, tmp_bytes)
            libc.mount(stage, cover, MS_MOVE)
            libc.mount(None, cover, MS_PRIVATE)
        except OSError:
            libc.unmount(stage)
            raise


def _bind(libc: Libc, source: str, place: str) -> None:
    """Makes `source` be found at `place`; without one, covers what came there with something around it."""
    if not source:
        if os.path.isdir(place):
            libc.mount("tmpfs", place, MS_NOSUID | MS_NODEV, "tmpfs", PLAIN)
        return
    if os.path.isdir(source):
        os.makedirs(place, mode=0o755, exist_ok=True)
    elif not os.path.exists(place):
        os.makedirs(os.path.dirname(place), mode=0o755, exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
    libc.mount(source, place, MS_BIND | MS_REC)


def _furnish(libc: Libc, stage: str, tmp_bytes: int) -> None:
    for name, target in LINKS.items():
        os.symlink(target, f"{stage}/{name}")
    os.mkdir(f"{stage}/shm")
    libc.mount("tmpfs", f"{stage}/shm", MS_NOSUID | MS_NODEV, "tmpfs", f"mode=1777,size={tmp_bytes}")


def devices(granted: Iterable[str]) -> list[Needed]:
    """The device files of a private /dev: those that give nothing away, and those granted."""
    usual = [f"/dev/{name}" for name in DEVICES]
    return [Needed(path, path, True) for path in dict.fromkeys((*usual, *granted)) if os.path.exists(path)]
