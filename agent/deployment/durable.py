"""Writes that are whole after a power cut: the only place below the state directory's rules that calls fsync.

Each function blocks until the device has the bytes and may raise OSError; call them from a thread or a child. What must
be synced, and in which order, was found by cutting the power on ext4: a rename alone leaves files of 0 bytes behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from pathlib import Path

SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
TEMPORARY = ".new"  # suffix of what is written but not yet in its place


def sync(path: Path) -> None:
    """Flushes one file or directory to its device."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def begin_sync(fd: int, start: int, count: int) -> None:
    """Has the kernel begin to write some of a file's bytes, so that a later `sync` waits less. Promises nothing."""
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).sync_file_range(fd, ctypes.c_int64(start), ctypes.c_int64(count), SYNC_FILE_RANGE_WRITE)


def sync_tree(root: Path) -> None:
    """Flushes every file and directory below `root`, bottom up, and `root` itself. Links are not followed."""
    for folder, _, files in os.walk(root, topdown=False):
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                sync(path)
        sync(Path(folder))


def write(path: Path, data: bytes) -> None:
    """Puts `data` in place of the file `path`, wholly or not at all."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync(path.parent)


def link(path: Path, target: str) -> None:
    """Makes `path` a symbolic link to `target`, in one step also where it is a link already."""
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.rename(path)
    sync(path.parent)


def place(staged: Path, final: Path) -> None:
    """Moves a directory that is synced already to its final name, which must not exist.

    Raises:
        FileExistsError: something is there; nothing was moved.
    """
    if final.exists() or final.is_symlink():
        raise FileExistsError(f"{final} exists")
    staged.rename(final)
    sync(final.parent)
    sync(staged.parent)


def remove(path: Path) -> None:
    """Removes a file, a link or a directory with all in it; it need not exist. Never follows a link."""
    if path.is_dir() and not path.is_symlink():
        # Renamed first, so that what is half removed is never taken for whole.
        doomed = path if path.name.endswith(TEMPORARY) else path.with_name(path.name + TEMPORARY)
        if doomed != path:
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
