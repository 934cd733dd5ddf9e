"""The objects of the state directory: unpacked archives and copied folders that never change once they are there.

``objects/<hex>/`` holds ``tree/``, nothing but what the archive held, and ``manifest.json``: the SHA-256 of every file,
so that a tree can be proven whole at any later time. A health check that the archive carries is no part of the model
and lies beside the tree, as ``health.json``. An archive's object is named by the archive's SHA-256, a folder's
by a digest over its files. All methods block. The installer is the only writer; readers need no lock, as a name appears
with all that it names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from agent.deployment import durable
from agent.deployment.health import RESERVED, invalid, read_recorded
from agent.errors import IntegrityError, RejectedError
from agent.values import dataclass

FORMAT: Final = 1
CHUNK_BYTES: Final = 1024 * 1024
MAX_FOLDER_BYTES: Final = 1024**3
MAX_FOLDER_FILES: Final = 20_000
HEALTH: Final = "health.json"
NOT_COPIED: Final = frozenset({"__pycache__", ".git"})


@dataclass(frozen=True, slots=True)
class Entry:
    """A regular file of a tree: its path below the tree, bytes, SHA-256 (hex) and permission bits."""

    path: str
    size: int
    sha256: str
    mode: int


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """An object that is there.

    Attributes:
        hex: its name, 64 hex digits.
        tree: the concrete directory of its files, absolute.
    """

    hex: str
    tree: Path

    @property
    def health(self) -> Path:
        """Where the health check is that came with it, if one did."""
        return self.tree.parent / HEALTH

    @property
    def version(self) -> str:
        """The digest as documents and results say it."""
        return f"sha256:{self.hex}"


class Objects:
    """The directory of objects below a state directory.

    Args:
        root: the state directory; it and its parts are made where they are missing.
    """

    def __init__(self, root: Path) -> None:
        self.directory = root / "objects"
        self.staging = root / "staging"
        for directory in (self.directory, self.staging):
            directory.mkdir(parents=True, exist_ok=True)

    def ref(self, hex: str) -> ObjectRef:
        """The object of that name, which need not be there."""
        return ObjectRef(hex, self.directory / hex / "tree")

    def names(self) -> list[str]:
        """The names of all objects."""
        return [entry.name for entry in os.scandir(self.directory) if len(entry.name) == 64]

    def manifest(self, hex: str) -> dict[str, Any]:
        """What is known of an object.

        Raises:
            IntegrityError: OBJECT_DAMAGED, it is missing or cannot be read.
        """
        try:
            values = json.loads((self.directory / hex / "manifest.json").read_bytes())
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(hex, f"its manifest cannot be read ({error})") from error
        assert isinstance(values, dict)
        return values

    def size(self, hex: str) -> int:
        """The bytes of an object's files, as its manifest has them; 0 where that cannot be read."""
        try:
            return sum(int(file["size"]) for file in self.manifest(hex)["files"])
        except (IntegrityError, KeyError, TypeError, ValueError):
            return 0

    def holds(self, hex: str) -> bool:
        """Whether the object is there and whole."""
        try:
            self.verify(hex)
        except IntegrityError:
            return False
        return True

    def verify(self, hex: str) -> None:
        """Reads every file of an object and compares it with its manifest.

        Raises:
            IntegrityError: OBJECT_DAMAGED, a file is missing, is other than it was, or was added.
        """
        manifest = self.manifest(hex)
        expected = {file["path"]: Entry(**file) for file in manifest["files"]}
        tree = self.directory / hex / "tree"
        _verify_health(self.ref(hex).health, manifest.get("health"), hex)
        found = set()
        for path in _files(tree):
            name = path.relative_to(tree).as_posix()
            entry = expected.get(name)
            if entry is None and "__pycache__" in path.parts:
                continue  # a worker's interpreter may have left its own
            if entry is None:
                raise _damaged(hex, f"{name} does not belong to it")
            if path.is_symlink() or path.stat().st_size != entry.size or file_digest(path) != entry.sha256:
                raise _damaged(hex, f"{name} is not what it was")
            found.add(name)
        missing = sorted(expected.keys() - found)
        if missing:
            raise _damaged(hex, f"{missing[0]} is missing")

    def add(self, staged: Path, hex: str, entries: Iterable[Entry], **facts: Any) -> ObjectRef:
        """Makes the staged directory, which holds ``tree/``, the object `hex`; durable at return.

        An object of that name that is whole already is kept, and what was staged is removed.

        Args:
            facts: what else the manifest says, such as the source.

        Raises:
            RejectedError: HEALTH_CHECK_INVALID, the archive's health check cannot be used; what was staged is removed.
        """
        final = self.directory / hex
        if final.exists():
            if self.holds(hex):
                durable.remove(staged)
                return self.ref(hex)
            durable.remove(final)
        manifest = {"format": FORMAT, "digest": f"sha256:{hex}", **facts}
        if facts.get("kind") == "archive":
            entries, manifest["health"] = _set_health_aside(staged, list(entries))
        manifest["files"] = [asdict(entry) for entry in entries]
        (staged / "manifest.json").write_text(json.dumps(manifest, separators=(",", ":")))
        durable.sync_tree(staged)
        durable.place(staged, final)
        return self.ref(hex)

    def add_folder(self, folder: Path) -> ObjectRef:
        """Copies a function's folder into an object, so that a rollback brings this very code back.

        Raises:
            RejectedError: FUNCTION_FOLDER_UNSAFE, it holds what is neither file nor directory, or too much.
        """
        staged = self.stage(f"folder-{folder.name}")
        entries = [_copy(path, staged / "tree", folder) for path in _capped(folder, _files(folder, NOT_COPIED))]
        hex = hashlib.sha256(json.dumps([[e.path, e.sha256, e.mode] for e in entries]).encode()).hexdigest()
        return self.add(staged, hex, entries, kind="folder", source=f"file://{folder}", etag=None)

    def stage(self, name: str) -> Path:
        """A new empty directory with an empty ``tree/`` in it, on the objects' file system."""
        staged = self.staging / f"{name}-{os.getpid()}"
        durable.remove(staged)
        (staged / "tree").mkdir(parents=True)
        return staged

    def clean(self) -> None:
        """Removes what was half staged or half removed when the last installer ended; downloads stay."""
        for directory in (self.staging, self.directory):
            for entry in os.scandir(directory):
                if entry.name.endswith(durable.TEMPORARY) or (directory == self.staging and entry.name != "downloads"):
                    durable.remove(Path(entry.path))

    def clear_downloads(self) -> None:
        """Removes what was fetched and is not needed any more. Only while no installer runs."""
        durable.remove(self.staging / "downloads")

    def prune(self, keep: set[str]) -> None:
        """Removes every object whose name is not in `keep`."""
        for hex in self.names():
            if hex not in keep:
                durable.remove(self.directory / hex)


def _set_health_aside(staged: Path, entries: list[Entry]) -> tuple[list[Entry], dict[str, Any] | None]:
    """Moves an archive's health check out of the tree; gives the entries of the tree, and the check's."""
    found = next((entry for entry in entries if entry.path == RESERVED), None)
    if found is None:
        return entries, None
    try:
        read_recorded((staged / "tree" / RESERVED).read_bytes())
        if len(entries) == 1:
            raise invalid("there is no model with it")
    except RejectedError:
        durable.remove(staged)
        raise
    (staged / "tree" / RESERVED).rename(staged / HEALTH)
    return [entry for entry in entries if entry is not found], asdict(found)


def _verify_health(path: Path, entry: dict[str, Any] | None, hex: str) -> None:
    there = path.is_file() and not path.is_symlink()
    if there != (entry is not None) or (entry is not None and file_digest(path) != entry["sha256"]):
        raise _damaged(hex, "its health check is not what it was")


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _damaged(hex: str, why: str) -> IntegrityError:
    return IntegrityError("OBJECT_DAMAGED", f"the object {hex[:12]} is damaged: {why}", "Deploy it again.")


def _files(root: Path, skip: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All that is no directory below `root`, in a stable order; links to directories count as files."""
    for folder, folders, files in os.walk(root):
        linked = [name for name in folders if Path(folder, name).is_symlink()]
        folders[:] = sorted(name for name in folders if name not in skip and name not in linked)
        yield from (Path(folder, name) for name in sorted((*files, *linked)))


def _capped(folder: Path, paths: Iterable[Path]) -> Iterator[Path]:
    size = 0
    for count, path in enumerate(paths, 1):
        found = path.stat()  # a link to a file is copied as the file
        size += found.st_size
        if not stat.S_ISREG(found.st_mode):
            raise _unsafe(folder, f"{path.name} is no regular file")
        if count > MAX_FOLDER_FILES or size > MAX_FOLDER_BYTES:
            raise _unsafe(folder, f"it holds more than {MAX_FOLDER_FILES} files or {MAX_FOLDER_BYTES} bytes")
        yield path


def _unsafe(folder: Path, why: str) -> RejectedError:
    remedy = "Keep only the function's own files and directories in it."
    return RejectedError("FUNCTION_FOLDER_UNSAFE", f"the folder {folder} cannot be taken into the group: {why}", remedy)


def _copy(path: Path, tree: Path, folder: Path) -> Entry:
    name = path.relative_to(folder).as_posix()
    target = tree / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    mode = 0o555 if path.stat().st_mode & 0o111 else 0o444
    target.chmod(mode)
    return Entry(name, target.stat().st_size, file_digest(target), mode)
