"""What a gzip file holds, decompressed ahead in a thread of its own; by isal where it is installed, else by zlib.

Decompressing lets go of Python's lock, so that with two processors it costs the reader no time.
"""

from __future__ import annotations

import queue
import threading
import zlib
from typing import Any, Final, Protocol

from agent.deployment.tree_writer import broken

inflate: Any
try:  # twice as fast; the extra `fast` brings it
    from isal import isal_zlib as inflate
except ImportError:
    inflate = zlib

CHUNK_BYTES: Final = 1024 * 1024
CHUNKS_AHEAD: Final = 4
GZIP: Final = 31  # zlib's wbits for one gzip member with its header and checksum
PATIENCE_S: Final = 0.1
_END: Final = b""


class Readable(Protocol):
    """Bytes from front to back."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class Gunzip:
    """The decompressed bytes of `file`; its checksums are verified as they pass.

    Args:
        library: ``zlib`` or what has its face.
    """

    def __init__(self, file: Readable, library: Any = inflate) -> None:
        self._file = file
        self._library = library
        self._member = library.decompressobj(GZIP)
        self._rest = b""  # read from the file and not yet used

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end.

        Raises:
            IntegrityError: ARCHIVE_BROKEN, the file is cut off or damaged.
        """
        while not self._at_end():
            fresh = self._rest or self._file.read(CHUNK_BYTES)
            data = self._decompress(fresh, size)
            self._rest = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if data:
                return data
            if not fresh and not self._member.eof:
                raise broken("it is cut off")
        return b""

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            found: bytes = self._member.decompress(data, size)
        except (
            zlib.error,
            self._library.error,
        ) as error:  # translated here: tarfile would take it for the lack of a tar
            raise broken(str(error)) from error
        return found

    def _at_end(self) -> bool:
        """Whether the last gzip member has ended; if another follows, it is begun. Zeros after the last are padding."""
        if not self._member.eof:
            return False
        rest = self._rest or self._file.read(CHUNK_BYTES)
        while rest and not rest.strip(b"\0"):
            rest = self._file.read(CHUNK_BYTES)
        self._rest = rest.lstrip(b"\0")
        if self._rest:
            self._member = self._library.decompressobj(GZIP)
        return not self._rest


class ReadAhead:
    """Reads `source` in a thread, a few chunks ahead; an error of its comes out of `read`."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._chunks: queue.Queue[bytes | Exception] = queue.Queue(CHUNKS_AHEAD)
        self._closed = False
        self._error: Exception | None = None
        self._rest = b""
        self._thread = threading.Thread(target=self._run, name="gunzip", daemon=True)
        self._thread.start()

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. What one step of the source's gave comes as it is where it fits."""
        if self._error is not None:
            raise self._error
        found = self._rest or self._chunks.get()
        if isinstance(found, Exception):
            self._error = found
            raise found
        if not found:
            self._chunks.put(_END)  # whoever asks again gets the end again
        self._rest = found[size:] if len(found) > size else b""
        return found[:size]

    def close(self) -> None:
        """Lets the thread end, once the source's read has; that may be waiting for a slow network."""
        self._closed = True

    def _run(self) -> None:
        try:
            while self._pass_on(chunk := self._source.read(CHUNK_BYTES)) and chunk:
                pass
        except Exception as error:  # whatever it is: the reader waits for it
            self._pass_on(error)

    def _pass_on(self, found: bytes | Exception) -> bool:
        while not self._closed:
            try:
                self._chunks.put(found, timeout=PATIENCE_S)
            except queue.Full:
                continue
            return True
        return False
