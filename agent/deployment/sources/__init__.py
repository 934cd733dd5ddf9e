"""Where archives come from. A source opens a stream of bytes; `download` keeps, resumes and hashes what it gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Protocol

from agent.errors import TransientError
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Stream:
    """An archive's bytes from `start` on.

    Attributes:
        start: where the bytes begin; 0 where the server did not go on from where it was asked to.
        total: the whole archive's size, bytes.
        etag: the strong ETag of the whole archive; None: the server gave none, or a weak one.
        chunks: the bytes; raises TransientError when the connection breaks.
    """

    start: int
    total: int
    etag: str | None
    chunks: Iterator[bytes]


class ArchiveSource(Protocol):
    """One archive somewhere. Its methods block."""

    name: str

    def open(self, start: int, etag: str | None, known: str | None) -> Stream | None:
        """Begins to read.

        Args:
            start: how many bytes are there already, of the archive that had `etag`.
            known: the ETag at which nothing has to be read; only with `start` 0.

        Returns:
            None where the archive still has the ETag `known`.

        Raises:
            TransientError: worth another try; SOURCE_CHANGED where the archive is no longer the one that was begun.
            AgentError: not worth one.
        """
        ...


def content_range(text: str | None, length: int) -> tuple[int, int]:
    """(first byte, whole size) of an answer of `length` bytes with this Content-Range; rclone gives it with a 200.

    Raises:
        TransientError: SOURCE_CHANGED, the range is not one up to the end.
    """
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", text or "")
    if found is None:
        return 0, length
    begin, end, total = map(int, found.groups())
    if end - begin + 1 != length or end + 1 != total:
        raise changed("the server's Content-Range does not fit what was asked for")
    return begin, total


def changed(why: str) -> TransientError:
    """That what comes is not the rest of what was begun."""
    remedy = "Deploy again; if it goes on, see whether the source is being replaced or its server is at fault."
    return TransientError("SOURCE_CHANGED", why, remedy)


def strong(etag: str | None) -> str | None:
    """The ETag where it is a strong one (RFC 9110, 8.8.1): only that says that the bytes are the same."""
    return etag if etag and not etag.startswith("W/") else None
