"""Unpacks an archive that may be hostile: tar.gz, tar or zip, told apart by their bytes, below a directory descriptor.

What comes out is regular files and directories, nothing else. Python's own extraction is not used, its filter ``data``
has been got round (CVE-2025-4517, -4330, -4138): `tree_writer` checks names and makes each file with O_EXCL and
O_NOFOLLOW, and every byte that really comes out is counted. The caller removes what a failed call leaves, and syncs.
"""

from __future__ import annotations

import errno
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from agent.deployment.gunzip import Gunzip, Readable, ReadAhead
from agent.deployment.objects import Entry
from agent.deployment.tree_writer import Caps, TreeWriter, broken, no_archive, too_large, unsafe

CHUNK_BYTES: Final = 1024 * 1024
MAX_HEADER_BYTES: Final = 1024 * 1024  # of one tar extension header: long names, pax records
EXTENSIONS: Final = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
TAR_MAGIC_AT: Final = 257
HEAD_BYTES: Final = 512
ZIP_STARTS: Final = (b"PK\x03\x04", b"PK\x05\x06")
DAMAGED: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,
    struct.error,
)


def unpack(archive: Path, tree: Path, caps: Caps = Caps()) -> list[Entry]:  # noqa: B008 - a frozen value
    """Unpacks `archive` into the empty directory `tree`; returns its files in the archive's order. Blocks.

    Raises:
        RejectedError: NOT_AN_ARCHIVE, ARCHIVE_UNSAFE or ARCHIVE_TOO_LARGE.
        IntegrityError: ARCHIVE_BROKEN, it is cut off, or its own checksums do not fit.
        OSError: the disk's fault.
    """
    with archive.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) in ZIP_STARTS:
            return _unpack(lambda output: _zip(file, output), tree, caps, size)
        file.seek(0)
        return unpack_stream(file, size, tree, caps)


def unpack_stream(stream: Readable, size: int, tree: Path, caps: Caps) -> list[Entry]:
    """As `unpack`, for a tar or tar.gz that is read once from front to back, be it still on its way.

    Args:
        size: the whole archive's bytes, as announced.
    """
    return _unpack(lambda output: _streamed(stream, output), tree, caps, size)


def is_streamable(head: bytes) -> bool:
    """Whether an archive that begins so can be unpacked from front to back: a zip's directory comes last."""
    return head[:4] not in ZIP_STARTS


def _unpack(members: Callable[[TreeWriter], None], tree: Path, caps: Caps, size: int) -> list[Entry]:
    output = TreeWriter(tree, caps, size)
    try:
        members(output)
    except DAMAGED as error:
        raise broken(str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # zipfile seeks where a damaged directory says, before the file's start too
            raise broken("its directory leads out of it") from error
        raise
    finally:
        output.close()
    if not output.entries:
        raise broken("it holds no file")
    return output.entries


def _streamed(stream: Readable, output: TreeWriter) -> None:
    head = b""
    while len(head) < HEAD_BYTES and (more := stream.read(HEAD_BYTES - len(head))):
        head += more
    whole = _Joined(head, stream)
    if head[:2] == b"\x1f\x8b":
        ahead = ReadAhead(Gunzip(whole))
        try:
            _tar(_Counted(ahead, output.count_out), output)
        finally:
            ahead.close()
    elif head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar":
        _tar(_Counted(whole, output.count_out), output)
    else:
        raise no_archive(f"it begins with {head[:16]!r}")


class _Joined:
    """A stream again from its beginning, when its head has been looked at."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        if not self._head:
            return self._rest.read(size)
        found, self._head = self._head[:size], self._head[size:]
        return found


def _tar(stream: Readable, output: TreeWriter) -> None:
    """The members of a tar stream, read once from front to back."""
    forward = _Forward(stream)
    try:
        archive = tarfile.TarFile(fileobj=forward, tarinfo=_Header)  # type: ignore[arg-type]
    except (tarfile.ReadError, _HeaderError) as error:
        raise no_archive(f"there is no tar in it ({error})") from error
    with archive:
        for member in archive:
            name = output.name(member.name)
            if member.isdir():
                output.add_directory(name)
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) or member.issparse():
                raise unsafe(f"{member.name!r} is neither a file nor a directory")
            if member.mode & 0o7000:
                raise unsafe(f"{member.name!r} has a setuid, setgid or sticky bit")
            forward.seek(member.offset_data)
            output.add_file(name, forward.chunks(member.size), member.size, executable=bool(member.mode & 0o111))
    while stream.read(CHUNK_BYTES):  # to the end, where gzip's checksum is
        pass


class _Forward:
    """A stream as the file that tarfile asks for, which is only ever read on; contents pass without being copied.

    tarfile's own mode for streams copies each byte four times, which took as long as decompressing it.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._at = 0
        self._rest = memoryview(b"")

    def tell(self) -> int:
        """Where the next byte to be read is."""
        return self._at

    def seek(self, position: int) -> None:
        """Reads on to `position`; tarfile finds out by itself when the stream ends before it."""
        if position < self._at:
            raise tarfile.ReadError("its headers lead backwards")
        for _ in self.chunks(position - self._at):
            pass

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer at the end only."""
        return b"".join(self.chunks(size))

    def chunks(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes as they come; fewer at the end only."""
        left = size
        while left > 0:
            if not self._rest:
                self._rest = memoryview(self._stream.read(CHUNK_BYTES))
                if not self._rest:
                    return
            chunk, self._rest = self._rest[:left], self._rest[left:]
            left -= len(chunk)
            self._at += len(chunk)
            yield chunk


class _Header(tarfile.TarInfo):
    """A member's header; tarfile takes a damaged one for the archive's end, here it is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise _HeaderError(f"a header in it is damaged or cut off ({error})") from error
        if header.type in EXTENSIONS and header.size > MAX_HEADER_BYTES:
            raise too_large(f"a header in it has {header.size} bytes")
        if header.size < 0:
            raise _HeaderError("a member's size is negative")
        return header


class _HeaderError(ValueError):
    """No tarfile error, so that tarfile passes it on."""


def _zip(file: IO[bytes], output: TreeWriter) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.orig_filename != member.filename:
                raise unsafe(f"{member.orig_filename!r} holds a null character")
            name = output.name(member.filename)
            kind = (member.external_attr >> 16) & 0o170000 if member.create_system == 3 else 0
            mode = (member.external_attr >> 16) & 0o7777 if member.create_system == 3 else 0
            if member.is_dir():
                output.add_directory(name)
                continue
            if kind not in (0, 0o100000):
                raise unsafe(f"{member.filename!r} is neither a file nor a directory")
            if mode & 0o7000:
                raise unsafe(f"{member.filename!r} has a setuid, setgid or sticky bit")
            if member.flag_bits & 1:
                raise unsafe(f"{member.filename!r} is encrypted")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise unsafe(f"{member.filename!r} is compressed in a way other than deflate")
            with archive.open(member) as content:
                chunks = output.counted(_chunks(content))
                output.add_file(name, chunks, member.file_size, executable=bool(mode & 0o111))


def _chunks(content: IO[bytes]) -> Iterator[bytes]:
    while chunk := content.read(CHUNK_BYTES):
        yield chunk


class _Counted:
    """A stream's bytes, each counted as what came out."""

    def __init__(self, stream: Readable, count: Callable[[int], None]) -> None:
        self._stream = stream
        self._count = count

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        data = self._stream.read(size)
        self._count(len(data))
        return data
