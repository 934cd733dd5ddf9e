"""Packing a model: the same files are the same bytes, and nothing is packed that a core would not unpack."""

from __future__ import annotations

import hashlib
import os
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.archive import SUFFIXES, pack
from agent.deployment.unpack import unpack
from agent.errors import ConfigError

FILES = {"model.onnx": b"weights" * 100, "labels/en.txt": b"walk\nrun\n", "labels/de.txt": b"gehen\nlaufen\n"}


def tree(directory: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, data in files.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return directory


def refusal(directory: Path, archive: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        pack(directory, archive)
    assert caught.value.remedy, "every error says what to do"
    return caught.value.code


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_files_are_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    first = pack(tree(tmp_path / "a"), tmp_path / f"first{suffix}")
    other = tree(tmp_path / "b", dict(reversed(FILES.items())))
    for file in other.rglob("*"):
        os.utime(file, (1, time.time() - 86400))
    again = pack(other, tmp_path / f"again{suffix}")
    assert first["digest"] == again["digest"]
    data = (tmp_path / f"first{suffix}").read_bytes()
    assert (first["digest"], first["bytes"]) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    assert first["files"] == sorted(FILES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_other_byte_is_another_digest(tmp_path: Path, suffix: str) -> None:
    first = pack(tree(tmp_path / "a"), tmp_path / f"a{suffix}")
    other = pack(tree(tmp_path / "b", {**FILES, "model.onnx": b"Weights" * 100}), tmp_path / f"b{suffix}")
    assert first["digest"] != other["digest"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_core_unpacks_what_was_packed(tmp_path: Path, suffix: str) -> None:
    source = tree(tmp_path / "model")
    (source / "run.sh").write_bytes(b"#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    pack(source, tmp_path / f"model{suffix}")
    (tmp_path / "tree").mkdir()
    unpack(tmp_path / f"model{suffix}", tmp_path / "tree")
    found = {p.relative_to(tmp_path / "tree").as_posix(): p for p in (tmp_path / "tree").rglob("*") if p.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == {**FILES, "run.sh": b"#!/bin/sh\n"}
    assert os.access(found["run.sh"], os.X_OK)
    assert not found["model.onnx"].stat().st_mode & 0o111


def test_the_kinds_are_what_their_names_say(tmp_path: Path) -> None:
    source = tree(tmp_path / "model")
    for suffix in SUFFIXES:
        pack(source, tmp_path / f"model{suffix}")
    assert sorted(zipfile.ZipFile(tmp_path / "model.zip").namelist()) == sorted(FILES)
    for mode, suffix in (("r:gz", ".tar.gz"), ("r:", ".tar")):
        with tarfile.open(tmp_path / f"model{suffix}", mode) as archive:  # type: ignore[call-overload]
            assert [m.name for m in archive.getmembers()] == sorted(FILES)
            assert {(m.uid, m.gid, m.mtime) for m in archive.getmembers()} == {(0, 0, 0)}


def test_the_archive_may_lie_in_the_directory(tmp_path: Path) -> None:
    source = tree(tmp_path / "model")
    first = pack(source, source / "model.zip")
    assert pack(source, source / "model.zip") == first, "it does not pack itself"


def test_what_python_keeps_of_its_own_is_left_out(tmp_path: Path) -> None:
    source = tree(tmp_path / "__pycache__" / "model")
    clean = pack(source, tmp_path / "clean.zip")
    tree(source, {"__pycache__/x.pyc": b"", "labels/__pycache__/y.pyc": b""})
    assert pack(source, tmp_path / "cached.zip")["digest"] == clean["digest"]
    assert clean["files"] == sorted(FILES), "only below the directory, not above it"


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to("model.onnx"),
        "folder-link": lambda path: path.symlink_to(tmp_path),
        "dangling": lambda path: path.symlink_to("nowhere"),
        "pipe": os.mkfifo,
    }
    for name, make in makers.items():
        source = tree(tmp_path / f"with-{name}")
        make(source / "labels" / name)
        assert refusal(source, tmp_path / "model.tar.gz") == "NOT_PACKABLE"
    assert not (tmp_path / "model.tar.gz").exists()


def test_what_cannot_be_packed_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tree(tmp_path / "model")
    (tmp_path / "empty" / "below").mkdir(parents=True)
    assert refusal(tmp_path / "none", tmp_path / "a.zip") == "NOT_A_DIRECTORY"
    assert refusal(source / "model.onnx", tmp_path / "a.zip") == "NOT_A_DIRECTORY"
    assert refusal(tmp_path / "empty", tmp_path / "a.zip") == "EMPTY_DIRECTORY"
    assert refusal(source, tmp_path / "a.rar") == "ARCHIVE_NAME"
    assert refusal(source, tmp_path / "none" / "a.zip") == "ARCHIVE_UNWRITABLE"
    (tmp_path / "taken.zip").mkdir()
    assert refusal(source, tmp_path / "taken.zip") == "ARCHIVE_UNWRITABLE"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "model", "taken.zip"]
