"""Fills a new directory from members of an archive that may be hostile: names are checked and bytes counted.

Refused are names that are absolute, have ``..`` or an empty part, appear twice or differ only by case; caps bound how
much may come out. It makes regular files and directories only, below one directory descriptor; the caller syncs them.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from agent.deployment import durable
from agent.deployment.objects import Entry
from agent.errors import IntegrityError, RejectedError
from agent.settings import Caps

__all__ = ["Caps", "TreeWriter", "broken", "no_archive", "too_large", "unsafe"]

SYNC_AHEAD_BYTES = 8 * 1024 * 1024


class TreeWriter:
    """The tree that is being filled: the one place where names become files and bytes are counted."""

    def __init__(self, tree: Path, caps: Caps, size_in: int) -> None:
        self.entries: list[Entry] = []
        self._caps = caps
        self._size_in = size_in
        self._size_out = 0
        self._members = 0
        self._seen: dict[str, tuple[str, bool]] = {}  # by name without case: the name, and whether it is a directory
        self._root = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Lets go of the tree."""
        os.close(self._root)

    def name(self, raw: str) -> tuple[str, ...]:
        """The parts of a member's name, once it is found safe; empty for the tree itself (``./``)."""
        self._members += 1
        if self._members > self._caps.members:
            raise too_large(f"it holds more than {self._caps.members} members")
        parts = raw.rstrip("/").split("/") if raw.rstrip("/") else []
        if raw.startswith("/") or not raw:
            raise unsafe(f"the name {raw!r} is absolute or empty")
        while parts and parts[0] == ".":
            parts = parts[1:]
        if any(part in ("", ".", "..") for part in parts):
            raise unsafe(f"the name {raw!r} has an empty, '.' or '..' part")
        if "\\" in raw or not raw.isprintable():
            raise unsafe(f"the name {raw!r} holds a backslash or a character that cannot be printed")
        if len(parts) > self._caps.depth or len(raw.encode()) > self._caps.name_bytes:
            raise too_large(f"the name {raw[:80]!r} is too long or too deep")
        if any(len(part.encode()) > 255 for part in parts):
            raise too_large(f"a part of the name {raw[:80]!r} is longer than 255 bytes")
        return tuple(parts)

    def count_out(self, count: int) -> None:
        """Counts bytes that came out of the compression."""
        self._size_out += count
        if self._size_out > self._caps.total_bytes:
            raise too_large(f"more than {self._caps.total_bytes} bytes come out of it")
        if self._size_out > self._caps.ratio_from_bytes and self._size_out > self._caps.ratio * self._size_in:
            raise too_large(f"more than {self._caps.ratio} bytes come out of it for each byte in it")

    def counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, each counted as what came out."""
        for chunk in chunks:
            self.count_out(len(chunk))
            yield chunk

    def add_directory(self, parts: tuple[str, ...]) -> None:
        """Makes a directory and those that it lies in; it may be there already."""
        for depth in range(1, len(parts) + 1):
            if self._claim(parts[:depth], directory=True):
                os.mkdir("/".join(parts[:depth]), 0o755, dir_fd=self._root)

    def add_file(
        self, parts: tuple[str, ...], chunks: Iterator[bytes | memoryview], size: int, *, executable: bool
    ) -> None:
        """Makes a file of `chunks`, which must be `size` bytes in all; it must not be there."""
        if not parts:
            raise unsafe("a file in it has no name")
        self.add_directory(parts[:-1])
        self._claim(parts, directory=False)
        path = "/".join(parts)
        mode = 0o555 if executable else 0o444
        # No part of the path can be a link: every one was made here, and links are never made.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600, dir_fd=self._root)
        try:
            digest, count, begun = hashlib.sha256(), 0, 0
            for chunk in chunks:
                digest.update(chunk)
                count += _write(fd, chunk)
                if count - begun >= SYNC_AHEAD_BYTES:
                    durable.begin_sync(fd, begun, count - begun)
                    begun = count
            os.fchmod(fd, mode)
        finally:
            os.close(fd)
        if count != size:
            raise broken(f"{path!r} has {count} bytes instead of {size}")
        self.entries.append(Entry(path, size, digest.hexdigest(), mode))

    def _claim(self, parts: tuple[str, ...], *, directory: bool) -> bool:
        """Whether the name is new. A directory may be named again, anything else may not, nor by another case."""
        path = "/".join(parts)
        key = unicodedata.normalize("NFC", path).casefold()
        known = self._seen.get(key)
        if known is None:
            self._seen[key] = (path, directory)
            return True
        if directory and known == (path, True):
            return False
        raise unsafe(f"{path!r} is there twice, or as {known[0]!r}")


def _write(fd: int, chunk: bytes | memoryview) -> int:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(fd, rest) :]
    return len(chunk)


def unsafe(why: str) -> RejectedError:
    """An archive that holds what no archive of ours may hold."""
    remedy = "Make the archive from regular files and directories with plain relative names."
    return RejectedError("ARCHIVE_UNSAFE", f"the archive is refused: {why}", remedy)


def too_large(why: str) -> RejectedError:
    """An archive beyond a cap."""
    remedy = "Make it smaller, or raise the cap in topics.yaml (unpack)."
    return RejectedError("ARCHIVE_TOO_LARGE", f"the archive is refused: {why}", remedy)


def broken(why: str) -> IntegrityError:
    """An archive that is not what its maker made."""
    return IntegrityError("ARCHIVE_BROKEN", f"the archive is damaged: {why}", "Make it again and upload it again.")


def no_archive(why: str) -> RejectedError:
    """Bytes that are no archive."""
    return RejectedError(
        "NOT_AN_ARCHIVE", f"the source is no tar.gz, tar or zip: {why}", "Pack it with marram package."
    )
