"""What the spool keeps free on its disk: a floor below which it does not grow, and a file whose room it can give up.

A full disk takes no write at all, not even the one that would delete captures: SQLite needs its log for that. So a file
of some megabytes lies beside the database, whose room is given to that deletion. Blocks; the spool's thread.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agent.cloud.spool_layout import WAL_BYTES
from agent.settings import SpoolLimits

RESERVE_BYTES = WAL_BYTES
SHARE = 20  # of a disk, that stays free at most


class Reserve:
    """The reserve at `file`."""

    def __init__(self, file: Path, limits: SpoolLimits) -> None:
        self._file = file
        self._limits = limits
        self._bytes = min(RESERVE_BYTES, limits.max_bytes // 16)

    def disk_is_short(self) -> bool:
        """Whether less is free than has to be; the room of a reserve that was given up is not to be grown into."""
        free, size = self._disk()
        given_up = 0 if self._file.exists() else self._bytes
        return free < min(self._limits.free_bytes, size // SHARE) + given_up

    def free_bytes(self) -> int:
        """What is free on the disk."""
        return self._disk()[0]

    def take(self) -> None:
        """Lays the reserve in where it is missing and the disk has room to spare."""
        free, size = self._disk()
        if self._file.exists() or free < 4 * self._bytes + min(self._limits.free_bytes, size // SHARE):
            return
        try:
            with self._file.open("wb") as stream:
                os.posix_fallocate(stream.fileno(), 0, self._bytes)
        except OSError:
            self.release()

    def release(self) -> None:
        """Gives its room to who needs it."""
        with contextlib.suppress(OSError):
            self._file.unlink()

    def give_way_if_full(self) -> None:
        """Before a start: a database can hardly be opened on a full disk."""
        free, _ = self._disk()
        if free < self._bytes:
            self.release()

    def _disk(self) -> tuple[int, int]:
        found = os.statvfs(self._file.parent)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
