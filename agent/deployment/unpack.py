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

from agent.deployment.objects import Entry
from agent.deployment.tree_writer import Caps, TreeWriter, broken, no_archive, too_large, unsafe

CHUNK_BYTES: Final = 256 * 1024
MAX_HEADER_BYTES: Final = 1024 * 1024  # of one tar extension header: long names, pax records
EXTENSIONS: Final = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip
TAR_MAGIC_AT: Final = 257
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
        output = TreeWriter(tree, caps, os.fstat(file.fileno()).st_size)
        try:
            _members(file, output)
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


def _members(file: IO[bytes], output: TreeWriter) -> None:
    head = file.read(512)
    file.seek(0)
    if head[:2] == b"\x1f\x8b":
        _tar(_Gunzip(file, output.count_out), output)
    elif head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        _zip(file, output)
    elif head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar":
        _tar(_Plain(file, output.count_out), output)
    else:
        raise no_archive(f"it begins with {head[:16]!r}")


def _tar(stream: _Plain | _Gunzip, output: TreeWriter) -> None:
    """The members of a tar stream, read once from front to back."""
    try:
        archive = tarfile.open(  # type: ignore[call-overload]  # noqa: SIM115 - closed below
            fileobj=stream, mode="r|", tarinfo=_Header, bufsize=CHUNK_BYTES
        )
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
            content = archive.extractfile(member)
            assert content is not None
            output.add_file(name, _chunks(content), member.size, executable=bool(member.mode & 0o111))
    while stream.read(CHUNK_BYTES):  # to the end, where gzip's checksum is
        pass


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


class _Plain:
    """A file's bytes, each counted."""

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self._file = file
        self._count = count

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end."""
        data = self._file.read(size)
        self._count(len(data))
        return data


class _Gunzip:
    """What a gzip file holds, each byte counted as it comes out; zlib itself checks the CRC of every member.

    gzip.GzipFile does the same in steps of 8 KiB before Python 3.12.
    """

    def __init__(self, file: IO[bytes], count: Callable[[int], None]) -> None:
        self._file = file
        self._count = count
        self._zlib = zlib.decompressobj(wbits=31)
        self._rest = b""  # read from the file and not yet used

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end.

        Raises:
            IntegrityError: ARCHIVE_BROKEN, the file is cut off or damaged.
        """
        while not self._at_end():
            fresh = self._rest or self._file.read(CHUNK_BYTES)
            data = self._decompress(fresh, size)
            self._rest = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail
            if data:
                self._count(len(data))
                return data
            if not fresh and not self._zlib.eof:
                raise broken("it is cut off")
        return b""

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            return self._zlib.decompress(data, size)
        except zlib.error as error:  # translated here: tarfile would take it for the lack of a tar
            raise broken(str(error)) from error

    def _at_end(self) -> bool:
        """Whether the last gzip member has ended; if another follows, it is begun. Zeros after the last are padding."""
        if not self._zlib.eof:
            return False
        rest = self._rest or self._file.read(CHUNK_BYTES)
        while rest and not rest.strip(b"\0"):
            rest = self._file.read(CHUNK_BYTES)
        self._rest = rest.lstrip(b"\0")
        if self._rest:
            self._zlib = zlib.decompressobj(wbits=31)
        return not self._rest
