"""Packs a model's or a function's directory into the archive that a deployment names. Blocks; for the command line.

The same files always give the same bytes (names sorted, times and owners left out), so that the same model has the
same version.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from agent.deployment.health import RESERVED
from agent.errors import ConfigError

SUFFIXES = (".tar.gz", ".tar", ".zip")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that zip can say
CHUNK_BYTES = 1024 * 1024


def pack(directory: Path, archive: Path, *, health: bytes | None = None) -> dict[str, Any]:
    """Writes `directory`'s files to `archive` (.tar.gz, .tar or .zip by its name), which may lie in it.

    What `archive` was before stays until the new one is whole.

    Args:
        health: a health check to travel with the files, under the name that is reserved for it.

    Returns:
        ``{"archive", "digest": "sha256:..", "bytes", "files"}``.

    Raises:
        ConfigError: NOT_A_DIRECTORY, EMPTY_DIRECTORY, NOT_PACKABLE (links, devices), FILE_UNREADABLE, ARCHIVE_NAME,
            ARCHIVE_UNWRITABLE.
    """
    check_directory(directory)
    if not archive.name.endswith(SUFFIXES):
        raise ConfigError(
            "ARCHIVE_NAME", f"{archive} ends in none of {', '.join(SUFFIXES)}.", "Give --output such a name."
        )
    draft = archive.with_name(f".{archive.name}.part")
    left_out = {archive.resolve(), draft.resolve()}
    files = sorted((path.relative_to(directory).as_posix(), path) for path in _files(directory, left_out))
    if not files:
        raise ConfigError("EMPTY_DIRECTORY", f"{directory} holds no files.", "Put the model's files there first.")
    with tempfile.TemporaryDirectory() as folder:
        if health is not None:
            beside = Path(folder, RESERVED)
            beside.write_bytes(health)
            files = sorted([*files, (RESERVED, beside)])
        digest = _write(archive, draft, files)
    return {
        "archive": str(archive),
        "digest": f"sha256:{digest}",
        "bytes": archive.stat().st_size,
        "files": [name for name, _ in files],
    }


def check_directory(directory: Path) -> None:
    """That a model's files can be in `directory`, and nothing that takes a reserved name.

    Raises:
        ConfigError: NOT_A_DIRECTORY, RESERVED_NAME.
    """
    if not directory.is_dir():
        raise ConfigError(
            "NOT_A_DIRECTORY", f"{directory} is no directory.", "Name the directory that holds the model's files."
        )
    if (directory / RESERVED).exists():
        text = f"{directory} holds {RESERVED}, the name that a health check has in an archive."
        raise ConfigError("RESERVED_NAME", text, "Take it out; --health records one.")


def _files(directory: Path, left_out: set[Path]) -> Iterator[Path]:
    """All files below `directory`, each readable, but for what Python keeps of its own."""
    try:
        paths = list(directory.iterdir())
    except OSError as error:
        raise _unreadable(directory, error.strerror) from error
    for path in paths:
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            if path.name != "__pycache__":
                yield from _files(path, left_out)
        elif not stat.S_ISREG(mode):
            raise ConfigError(
                "NOT_PACKABLE",
                f"{path} is neither a file nor a directory.",
                "A core unpacks no links and no devices: copy it.",
            )
        elif path.resolve() not in left_out:
            if not os.access(path, os.R_OK):
                raise _unreadable(path, "Permission denied")
            yield path


def _unreadable(path: Path, why: str | None) -> ConfigError:
    return ConfigError("FILE_UNREADABLE", f"{path} cannot be read: {why}.", "Make all of the directory readable.")


def _write(archive: Path, draft: Path, files: list[tuple[str, Path]]) -> str:
    """The archive's SHA-256, hex."""
    try:
        with draft.open("w+b") as target:
            _pack(target, archive.name, files)
            digest = _digest(target)
        draft.replace(archive)
    except OSError as error:
        if draft.is_file():
            draft.unlink()
        text = f"{archive} cannot be written: {error.strerror}."
        raise ConfigError("ARCHIVE_UNWRITABLE", text, "Name another place with --output.") from error
    return digest


def _pack(target: BinaryIO, name: str, files: list[tuple[str, Path]]) -> None:
    if name.endswith(".zip"):
        _pack_zip(target, files)
    elif name.endswith(".tar.gz"):
        with gzip.GzipFile("", "wb", 6, target, mtime=0) as stream:
            _pack_tar(stream, files)
    else:
        _pack_tar(target, files)


def _pack_zip(target: BinaryIO, files: list[tuple[str, Path]]) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for name, path in files:
            info = zipfile.ZipInfo(name, EPOCH)
            info.external_attr = (stat.S_IFREG | _mode(path)) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())


def _pack_tar(target: Any, files: list[tuple[str, Path]]) -> None:
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = path.stat().st_size, _mode(path)
            with path.open("rb") as source:
                archive.addfile(info, source)


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644


def _digest(file: BinaryIO) -> str:
    sha256 = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        sha256.update(chunk)
    return sha256.hexdigest()
