"""Unpacks an archive into staging while the rest of it is still being fetched.

Nothing of it is an object before the archive's digest has been verified: what was unpacked stays in staging, as a
directory that the next installer removes, until the caller takes it. What goes wrong here is kept and comes out of
`entries`, so that an archive whose digest is wrong is told as such, whatever else is wrong with it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from agent.deployment import durable
from agent.deployment.objects import Entry
from agent.deployment.tree_writer import Caps
from agent.deployment.unpack import is_streamable, unpack, unpack_stream
from agent.errors import AgentError

MIN_BYTES: Final = 1024 * 1024  # of a whole archive: below that a thread is no gain


class Growing:
    """A file that another thread writes at its end, read from its beginning; `read` waits for what is to come."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._changed = threading.Condition()
        self._there = 0
        self._read = 0
        self._whole = False
        self._given_up = False

    def grow(self, there: int, *, whole: bool = False) -> None:
        """So many bytes are there now; `whole`: and no more will come."""
        with self._changed:
            self._there, self._whole = there, whole
            self._changed.notify_all()

    def give_up(self) -> None:
        """No more will come, and what came is not wanted; `read` raises."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. Blocks.

        Raises:
            GivenUpError: the download was begun anew, or has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._read < self._there or self._whole or self._given_up)
            if self._given_up:
                raise GivenUpError
            left = self._there - self._read
        data = self._file.read(min(size, left)) if left else b""
        self._read += len(data)
        return data

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()


class GivenUpError(Exception):
    """Nobody wants it any more."""


class Ahead:
    """The unpacking of one archive.

    Args:
        file: where the download is written.
        tree: an empty directory.
    """

    def __init__(self, file: Path, tree: Path, caps: Caps) -> None:
        self._file = file
        self._tree = tree
        self._caps = caps
        self._growing: Growing | None = None
        self._thread: threading.Thread | None = None
        self._entries: list[Entry] | None = None
        self._error: Exception | None = None
        self._download = -1

    @property
    def failed(self) -> bool:
        """Whether it is known already that the archive cannot be unpacked."""
        return self._error is not None

    def grown(self, there: int, total: int, download: int) -> None:
        """So many bytes of `total` are in the file now; another `download`: it was begun anew."""
        if self._download not in (-1, download):
            self.give_up()
        self._download = download
        if self._growing is not None:
            self._growing.grow(there, whole=there == total)
        elif total >= MIN_BYTES and there >= 4 and self._error is None:
            self._begin(there, total)

    def _begin(self, there: int, total: int) -> None:
        with self._file.open("rb") as file:
            head = file.read(4)
        if not is_streamable(head):
            return
        self._growing = Growing(self._file)
        self._growing.grow(there, whole=there == total)
        self._thread = threading.Thread(target=self._run, args=(self._growing, total), name="ahead", daemon=True)
        self._thread.start()

    def _run(self, growing: Growing, total: int) -> None:
        try:
            self._entries = unpack_stream(growing, total, self._tree, self._caps)
        except GivenUpError:
            pass
        except (AgentError, OSError, MemoryError) as error:
            self._error = error

    def give_up(self) -> None:
        """Ends it and removes what came out; it can begin anew."""
        self.close()
        self._entries = self._error = None
        durable.remove(self._tree)
        os.mkdir(self._tree)

    def close(self) -> None:
        """Ends it; what came out stays."""
        if self._growing is not None and self._thread is not None:
            self._growing.give_up()
            self._thread.join()
            self._growing.close()
        self._growing = self._thread = None

    def entries(self) -> list[Entry]:
        """All files that came out, once the whole archive is in the file. Blocks.

        Raises:
            AgentError, OSError: as `unpack`.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error
        if self._entries is None:
            self._entries = unpack(self._file, self._tree, self._caps)
        return self._entries
