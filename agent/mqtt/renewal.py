"""Tells when the files that a connection was made with (certificates, key, password) are others on the disk.

They are looked at by their modification, and read only where that has changed, so that to ask every few seconds costs
nothing. Whoever renews them writes one after the other: what differs counts once it stood still from one look to the
next.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_Look = tuple[tuple[int, int, int] | None, ...]


class Renewal:
    """The files of one connection."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._files = tuple(files)
        self._looked = self._look()
        self._used = self._digest()
        self._moved = False

    def due(self) -> bool:
        """Whether they are others than at the beginning, and stood still since the last time that this was asked."""
        look = self._look()
        if look != self._looked:
            self._looked, self._moved = look, True
            return False
        return self._moved and self._digest() != self._used

    def _look(self) -> _Look:
        return tuple(_modified(file) for file in self._files)

    def _digest(self) -> bytes:
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(_content(file) + b"\0")
        return digest.digest()


def _modified(file: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _content(file: Path) -> bytes:
    try:
        return hashlib.sha256(file.read_bytes()).digest()
    except OSError:
        return b"-"
