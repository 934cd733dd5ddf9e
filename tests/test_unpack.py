"""Archives, good and hostile: what comes out is the archive's files or an error with a code, and nothing outside."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.deployment.tree_writer import Caps
from agent.deployment.unpack import unpack
from agent.errors import AgentError

FILES = {"model.json": b'{"a": 1}', "sub/deep/w.bin": bytes(range(256)) * 600, "run.so": b"\x7fELF"}
Member = tuple[str, dict[str, object], bytes]


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    return raw_tar([(name, {}, data) for name, data in files.items()], mode)


def raw_tar(members: list[Member], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, attributes, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mode = 0o755 if name.endswith(".so") else 0o644
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def raw_zip(members: list[tuple[str, int, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, mode, data in members:
            info = zipfile.ZipInfo(name)
            info.create_system = 3
            info.external_attr = mode << 16
            info.compress_type = compression
            archive.writestr(info, data)
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    return raw_zip([(n, 0o100755 if n.endswith(".so") else 0o100644, d) for n, d in files.items()])


def tarred(files: dict[str, bytes]) -> bytes:
    return tar(files, "w:")


def run(tmp_path: Path, data: bytes, caps: Caps = Caps()) -> Path:  # noqa: B008 - a frozen value
    (tmp_path / "archive").write_bytes(data)
    tree = tmp_path / "outer" / "tree"
    tree.mkdir(parents=True, exist_ok=True)
    unpack(tmp_path / "archive", tree, caps)
    return tree


def code_of(tmp_path: Path, data: bytes, caps: Caps = Caps()) -> str:  # noqa: B008 - a frozen value
    before = sorted(p for p in tmp_path.iterdir() if p.name not in ("archive", "outer"))
    with pytest.raises(AgentError) as caught:
        run(tmp_path, data, caps)
    assert caught.value.remedy
    assert sorted(p for p in tmp_path.iterdir() if p.name not in ("archive", "outer")) == before
    assert os.listdir(tmp_path / "outer") == ["tree"]
    return caught.value.code


@pytest.mark.parametrize("make", [tar, tarred, zipped])
def test_all_files_come_out_with_their_digests(tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]) -> None:
    (tmp_path / "archive").write_bytes(make(FILES))
    tree = tmp_path / "tree"
    tree.mkdir()
    entries = unpack(tmp_path / "archive", tree)
    assert {e.path: (e.size, e.sha256) for e in entries} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items()
    }
    assert {p.relative_to(tree).as_posix(): p.read_bytes() for p in tree.rglob("*") if p.is_file()} == FILES
    assert {name: stat.S_IMODE((tree / name).stat().st_mode) for name in FILES} == {
        "model.json": 0o444, "sub/deep/w.bin": 0o444, "run.so": 0o555,
    }  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_tar_makes_of_a_directory_comes_out(tmp_path: Path, form: int) -> None:
    source = tmp_path / "source"
    (source / ("d" * 70) / ("e" * 70)).mkdir(parents=True)
    (source / ("d" * 70) / ("e" * 70) / "größe.bin").write_bytes(b"1")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=form) as archive:
        archive.add(source, ".")
    tree = run(tmp_path, out.getvalue())
    assert (tree / ("d" * 70) / ("e" * 70) / "größe.bin").read_bytes() == b"1"


def test_two_gzip_members_and_padding_are_one_archive(tmp_path: Path) -> None:
    plain = tarred(FILES)
    data = gzip.compress(plain[:700]) + gzip.compress(plain[700:]) + bytes(1000)
    assert (run(tmp_path, data) / "model.json").read_bytes() == FILES["model.json"]


HOSTILE: dict[str, Member] = {
    "absolute": ("/etc/x", {}, b"1"),
    "parent": ("../x", {}, b"1"),
    "parent inside": ("a/../../x", {}, b"1"),
    "parent at the end": ("a/..", {}, b"1"),
    "dot inside": ("a/./x", {}, b"1"),
    "two slashes": ("a//x", {}, b"1"),
    "backslash": ("a\\x", {}, b"1"),
    "newline": ("a\nx", {}, b"1"),
    "symlink": ("x", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b""),
    "hard link": ("x", {"type": tarfile.LNKTYPE, "linkname": "model.json"}, b""),
    "fifo": ("x", {"type": tarfile.FIFOTYPE}, b""),
    "character device": ("x", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, b""),
    "block device": ("x", {"type": tarfile.BLKTYPE}, b""),
    "setuid": ("x", {"mode": 0o4755}, b"1"),
    "twice": ("model.json", {}, b"1"),
    "other case": ("MODEL.json", {}, b"1"),
    "file as directory": ("model.json/x", {}, b"1"),
    "directory by another case": ("SUB/x", {}, b"1"),
    "directory as file": ("sub", {}, b"1"),
    "no name": ("./", {}, b"1"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_tar_members_are_refused(tmp_path: Path, kind: str) -> None:
    good: list[Member] = [(name, {}, data) for name, data in FILES.items()]
    for mode in ("w:", "w:gz"):
        assert code_of(tmp_path, raw_tar([*good, HOSTILE[kind]], mode)) == "ARCHIVE_UNSAFE"
        for path in sorted((tmp_path / "outer/tree").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


def test_a_chain_of_links_gets_nowhere(tmp_path: Path) -> None:
    members: list[Member] = [
        ("a", {"type": tarfile.SYMTYPE, "linkname": ".."}, b""),
        ("a/b", {"type": tarfile.SYMTYPE, "linkname": ".."}, b""),
        ("a/b/x", {}, b"1"),
    ]
    assert code_of(tmp_path, raw_tar(members)) == "ARCHIVE_UNSAFE"


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../x", 0o100644), ("/x", 0o100644), ("a\\..\\x", 0o100644), ("x", 0o120777), ("x", 0o104755),
        ("MODEL.json", 0o100644), ("model.json", 0o100644), ("x", 0o010644),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_zip_members_are_refused(tmp_path: Path, name: str, mode: int) -> None:
    assert code_of(tmp_path, raw_zip([("model.json", 0o100644, b"{}"), (name, mode, b"1")])) == "ARCHIVE_UNSAFE"


def test_zip_compressions_other_than_deflate_are_refused(tmp_path: Path) -> None:
    assert code_of(tmp_path, raw_zip([("x", 0o100644, b"1" * 100)], zipfile.ZIP_LZMA)) == "ARCHIVE_UNSAFE"


@pytest.mark.parametrize("make", [tar, zipped])
def test_a_bomb_stops_early(tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]) -> None:
    data = make({"bomb": bytes(40_000_000)})
    assert code_of(tmp_path, data, Caps(ratio_from_bytes=1_000_000)) == "ARCHIVE_TOO_LARGE"
    assert sum(p.stat().st_size for p in (tmp_path / "outer").rglob("*")) < 9_000_000
    (tmp_path / "outer/tree/bomb").unlink()
    assert code_of(tmp_path, data, Caps(total_bytes=1_000_000)) == "ARCHIVE_TOO_LARGE"


def test_a_plain_tar_has_the_same_cap(tmp_path: Path) -> None:
    assert code_of(tmp_path, tarred({"x": bytes(3_000_000)}), Caps(total_bytes=1_000_000)) == "ARCHIVE_TOO_LARGE"


@pytest.mark.parametrize("make", [tar, zipped])
def test_too_many_members(tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]) -> None:
    data = make({f"f{i}": b"" for i in range(300)})
    assert code_of(tmp_path, data, Caps(members=200)) == "ARCHIVE_TOO_LARGE"


@pytest.mark.parametrize("name", ["a/" * 40 + "x", "n" * 300, "n" * 200 + "/" + "m" * 200])
def test_names_too_long_or_deep(tmp_path: Path, name: str) -> None:
    assert code_of(tmp_path, tar({name: b"1"}), Caps(name_bytes=350)) == "ARCHIVE_TOO_LARGE"


def test_an_endless_header_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 50_000_000
    data = header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    assert code_of(tmp_path, gzip.compress(data)) == "ARCHIVE_TOO_LARGE"


@pytest.mark.parametrize("data", [b"", b"<html>no such model</html>", b"\x00" * 4096, b"SQLite format 3\0" * 100])
def test_what_is_no_archive(tmp_path: Path, data: bytes) -> None:
    assert code_of(tmp_path, data) == "NOT_AN_ARCHIVE"


def test_gzip_without_a_tar_in_it(tmp_path: Path) -> None:
    assert code_of(tmp_path, gzip.compress(b"just a text" * 200)) == "NOT_AN_ARCHIVE"


@pytest.mark.parametrize("make", [tar, tarred, zipped])
def test_an_archive_cut_off_anywhere_is_broken(tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]) -> None:
    data = make({"a": random.Random(1).randbytes(5000), "b": b"2" * 2000})
    end = len(data) if make is not tarred else 512 + 5120 + 512 + 2048  # then come the zeros of the end
    for at in (30, 200, 512, 600, 1024, 512 + 5120 if make is tarred else 4000, end - 700, end - 9, end - 1):
        assert code_of(tmp_path, data[:at]) in ("ARCHIVE_BROKEN", "NOT_AN_ARCHIVE"), at
        for path in (tmp_path / "outer/tree").iterdir():
            path.unlink()


def test_a_flipped_bit_in_a_header_is_no_early_end(tmp_path: Path) -> None:
    data = bytearray(tarred({"a": b"1" * 100, "b": b"2" * 100}))
    data[1024 + 20] ^= 1
    assert code_of(tmp_path, bytes(data)) == "ARCHIVE_BROKEN"


@pytest.mark.parametrize("make", [tar, zipped])
def test_a_flipped_bit_in_the_content_is_noticed(tmp_path: Path, make: Callable[[dict[str, bytes]], bytes]) -> None:
    data = bytearray(make({"a": random.Random(1).randbytes(30000)}))
    data[len(data) // 2] ^= 4
    assert code_of(tmp_path, bytes(data)) == "ARCHIVE_BROKEN"


def test_an_archive_without_files_is_broken(tmp_path: Path) -> None:
    assert code_of(tmp_path, raw_tar([("d", {"type": tarfile.DIRTYPE}, b"")])) == "ARCHIVE_BROKEN"


def test_a_zip_whose_directory_leads_before_its_start(tmp_path: Path) -> None:
    data = bytearray(zipped({"m.json": b"{}" * 50, "sub/w": b"1"}))
    at = data.rfind(b"PK\x05\x06") + 16  # where the directory's place stands
    data[at : at + 4] = b"\xff\xff\xff\x00"
    assert code_of(tmp_path, bytes(data)) == "ARCHIVE_BROKEN"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), make=st.sampled_from([tar, tarred, zipped]), harm=st.integers(1, 6))
def test_whatever_is_harmed_only_our_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, seed: int, make: Callable[[dict[str, bytes]], bytes], harm: int
) -> None:
    chance = random.Random(seed)
    data = bytearray(make({"m.json": b"{}" * 50, "sub/w": chance.randbytes(700)}))
    for _ in range(harm):
        data[chance.randrange(len(data))] = chance.randrange(256)
    directory = tmp_path_factory.mktemp("harm")
    code = ""
    try:
        run(directory, bytes(data))
    except AgentError as error:
        code = error.code
    assert code in ("", "ARCHIVE_BROKEN", "ARCHIVE_UNSAFE", "ARCHIVE_TOO_LARGE", "NOT_AN_ARCHIVE")
    assert sorted(p.name for p in directory.iterdir()) == ["archive", "outer"]
