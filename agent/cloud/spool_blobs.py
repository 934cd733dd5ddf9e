"""Records too large for the database, as files beside it. Blocks; the spool's thread.

A file is whole and synced before the row that names it is committed, and removed after the row is gone: a crash leaves
a file that no row names, never a row without its file. Such orphans are removed at the start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from agent.cloud.spool_layout import sync_folder

SUFFIX = ".record"


class Blobs:
    """The files in `folder`, which is made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, body: bytes) -> str:
        """Writes and syncs a file; `sync` makes its name durable. Returns the name to keep.

        Raises:
            OSError: no room; nothing is left of it.
        """
        name += SUFFIX
        self._folder.mkdir(mode=0o700, exist_ok=True)
        try:
            with (self._folder / name).open("wb") as stream:
                stream.write(body)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            self.remove([name])
            raise
        return name

    def sync(self) -> None:
        """Makes the names of what was written durable."""
        sync_folder(self._folder)
        sync_folder(self._folder.parent)

    def read(self, name: str) -> bytes:
        """A file's bytes; none where it cannot be read."""
        try:
            return (self._folder / name).read_bytes()
        except OSError:
            return b""

    def remove(self, names: list[str]) -> None:
        """Removes files; those that are gone are none of its business."""
        for name in names:
            with contextlib.suppress(OSError):
                (self._folder / name).unlink()

    def remove_orphans(self, wanted: Callable[[str], bool]) -> int:
        """Removes what no row names; returns how many."""
        try:
            found = os.listdir(self._folder)
        except FileNotFoundError:
            return 0
        orphans = [name for name in found if not wanted(name)]
        self.remove(orphans)
        return len(orphans)
