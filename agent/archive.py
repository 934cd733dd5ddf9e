"""Packs a model's or a function's directory into the archive that a deployment names. Blocks; for the command line.

The same files always give the same bytes (names sorted, times and owners left out), so that the same model has the
same version.
"""

from __future__ import annotations

import gzip
import hashlib
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent.errors import ConfigError

SUFFIXES = (".tar.gz", ".tar", ".zip")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that zip can say


def pack(directory: Path, archive: Path) -> dict[str, Any]:
    """Writes `directory`'s files to `archive` (.tar.gz, .tar or .zip by its name).

    Returns:
        ``{"archive", "digest": "sha256:..", "bytes", "files"}``.

    Raises:
        ConfigError: NOT_A_DIRECTORY, EMPTY_DIRECTORY, NOT_PACKABLE (links, devices), ARCHIVE_NAME, ARCHIVE_UNWRITABLE.
    """
    if not directory.is_dir():
        raise ConfigError(
            "NOT_A_DIRECTORY", f"{directory} is no directory.", "Name the directory that holds the model's files."
        )
    files = sorted(_files(directory), key=lambda pair: pair[0])
    if not files:
        raise ConfigError("EMPTY_DIRECTORY", f"{directory} holds no files.")
    try:
        _write(archive, files)
        data = archive.read_bytes()
    except OSError as error:
        raise ConfigError("ARCHIVE_UNWRITABLE", f"{archive} cannot be written: {error.strerror}.") from error
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return {"archive": str(archive), "digest": digest, "bytes": len(data), "files": [name for name, _ in files]}


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for path in directory.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            if "__pycache__" not in path.parts:
                yield path.relative_to(directory).as_posix(), path
        elif not stat.S_ISDIR(mode):
            raise ConfigError(
                "NOT_PACKABLE",
                f"{path} is neither a file nor a directory.",
                "A core unpacks no links and no devices: copy it.",
            )


def _write(archive: Path, files: list[tuple[str, Path]]) -> None:
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
            for name, path in files:
                info = zipfile.ZipInfo(name, EPOCH)
                info.external_attr = (stat.S_IFREG | _mode(path)) << 16
                info.compress_type = zipfile.ZIP_DEFLATED
                target.writestr(info, path.read_bytes())
    elif archive.name.endswith(".tar.gz"):
        with archive.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
            _write_tar(stream, files)
    elif archive.name.endswith(".tar"):
        with archive.open("wb") as raw:
            _write_tar(raw, files)
    else:
        raise ConfigError(
            "ARCHIVE_NAME", f"{archive} ends in none of {', '.join(SUFFIXES)}.", "Give --output such a name."
        )


def _write_tar(stream: Any, files: list[tuple[str, Path]]) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as target:
        for name, path in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = path.stat().st_size, _mode(path)
            with path.open("rb") as source:
                target.addfile(info, source)


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
