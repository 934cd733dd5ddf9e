"""Archives that lie on the core already, such as on a stick that was put in."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

from agent.deployment.sources import Stream
from agent.errors import RejectedError

CHUNK_BYTES: Final = 1024 * 1024


class FileArchive:
    """A file.

    Args:
        path: absolute and normalised.
        allowed: whether the policy allows a source's name; asked about the file that links lead to.
    """

    def __init__(self, path: str, allowed: Callable[[str], bool]) -> None:
        self.name = f"file://{path}"
        self._path = path
        self._allowed = allowed

    def open(self, start: int, etag: str | None, known: str | None) -> Stream:
        """See `ArchiveSource.open`; always from the beginning, as a file has no ETag that says that it is the same."""
        real = os.path.realpath(self._path)
        if not self._allowed(f"file://{real}"):
            text = f"{self.name} leads to {real}, which policy.sources does not allow"
            raise RejectedError("NOT_ALLOWED", text, "Name the file itself.")
        try:
            fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError as error:
            remedy = "Let the agent's user read it."
            raise RejectedError("SOURCE_ACCESS_DENIED", f"{self.name} may not be read", remedy) from error
        except OSError as error:
            text = f"{self.name} cannot be read: {error.strerror}"
            raise RejectedError("SOURCE_NOT_FOUND", text, "Check the Path.") from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise RejectedError("SOURCE_REFUSED", f"{self.name} is no regular file", "Name an archive.")
        return Stream(0, found.st_size, None, _chunks(fd))


def _chunks(fd: int) -> Iterator[bytes]:
    with open(fd, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
