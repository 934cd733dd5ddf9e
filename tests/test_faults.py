"""Faults put in one by one, each with its own error code; what ran before, and what is whole, is never touched.

Real installers on real directories: a small tmpfs that is full or has no inodes, a disk that reports errors
(``strace -e inject=``), servers that cut, drip, change, lie and refuse, and archives that no honest maker made.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from agent.deployment.definition import FileSource, HttpsSource, S3Source
from agent.deployment.installation import install
from agent.deployment.sources.https import has_expired
from agent.deployment.store import Store
from agent.errors import AgentError, TransientError
from tests.s3_kit import s3_server  # noqa: F401 - a fixture
from tests.test_installer import (  # noqa: F401 - some are fixtures
    ONCE,
    SEVERAL,
    Behaviour,
    Installers,
    Web,
    archive,
    certificate,
    digest,
    installers,
    told_server,
    web,
)

BULK = random.Random(5).randbytes(1_500_000)  # beyond what is unpacked only after it was fetched
MIB = 1024 * 1024


# -- archives ----------------------------------------------------------------------------------------------------------


def tar_gz(*members: tuple[str, bytes, dict[str, Any]], bulk: bool = True) -> bytes:
    """A tar.gz of (name, content, attributes); with `bulk` it is unpacked while it is fetched."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as pack:
        for name, content, attributes in ((("bulk.bin", BULK, {}),) if bulk else ()) + members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            pack.addfile(info, io.BytesIO(content))
    return out.getvalue()


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def bomb() -> bytes:
    return tar_gz(("zeros.bin", bytes(400 * MIB), {}), bulk=False)


def crowd() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as pack:
        for i in range(100_000):
            pack.addfile(tarfile.TarInfo(f"f{i}"))
    return gzip.compress(out.getvalue(), 1)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "flipped bit": (lambda: flipped(tar_gz()), "ARCHIVE_BROKEN"),
    "cut off": (lambda: tar_gz()[:-1000], "ARCHIVE_BROKEN"),
    "bomb": (bomb, "ARCHIVE_TOO_LARGE"),
    "100,000 members": (crowd, "ARCHIVE_TOO_LARGE"),
    "symbolic link": (lambda: tar_gz(("l", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc"})), "ARCHIVE_UNSAFE"),
    "hard link": (lambda: tar_gz(("l", b"", {"type": tarfile.LNKTYPE, "linkname": "bulk.bin"})), "ARCHIVE_UNSAFE"),
    "device": (lambda: tar_gz(("d", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3})), "ARCHIVE_UNSAFE"),
    "pipe": (lambda: tar_gz(("p", b"", {"type": tarfile.FIFOTYPE})), "ARCHIVE_UNSAFE"),
    "absolute name": (lambda: tar_gz(("/etc/marram-escaped", b"1", {})), "ARCHIVE_UNSAFE"),
    "name with ..": (lambda: tar_gz(("a/../../escaped", b"1", {})), "ARCHIVE_UNSAFE"),
    "case collision": (lambda: tar_gz(("Model", b"1", {}), ("model", b"2", {})), "ARCHIVE_UNSAFE"),
    "name twice": (lambda: tar_gz(("bulk.bin", BULK, {})), "ARCHIVE_UNSAFE"),
    "setuid": (lambda: tar_gz(("s", b"1", {"mode": 0o4755})), "ARCHIVE_UNSAFE"),
    "no archive": (lambda: BULK, "NOT_AN_ARCHIVE"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_has_its_code_and_leaves_nothing(
    installers: Installers,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    make, code = HOSTILE[kind]
    path = tmp_path / "m"
    path.write_bytes(make())
    assert installers.code(FileSource(str(path))) == code
    assert_nothing_left(installers.store)
    assert not Path("/etc/marram-escaped").exists()
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("kind", ["flipped bit", "name with ..", "bomb"])
def test_of_an_archive_that_is_another_only_that_is_said(
    installers: Installers,  # noqa: F811
    tmp_path: Path,
    kind: str,
) -> None:
    """Whatever else is wrong with it: the digest is the one thing that the document promised."""
    path = tmp_path / "m"
    path.write_bytes(HOSTILE[kind][0]())
    assert installers.code(FileSource(str(path)), promised=digest(tar_gz())) == "MODEL_DIGEST_MISMATCH"
    assert_nothing_left(installers.store)


def assert_nothing_left(store: Store) -> None:
    assert store.objects.names() == []
    assert [path for path in store.objects.staging.rglob("*") if path.is_file()] == []


# -- servers -----------------------------------------------------------------------------------------------------------


@dataclass
class Place:
    """A server and what it serves as a source; over https, or over http as an S3 store."""

    source: HttpsSource | S3Source
    behaviour: Behaviour


@pytest.fixture(params=["https", "s3"])
def place(
    request: pytest.FixtureRequest,
    installers: Installers,  # noqa: F811
    certificate: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Place]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with told_server(certificate if request.param == "https" else None) as (port, behaviour):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        url = HttpsSource(f"https://127.0.0.1:{port}/m.tar.gz?X-Signature=s3cr3t")
        yield Place(url if request.param == "https" else S3Source("s3://told/m.tar.gz"), behaviour)


SERVED = tar_gz()


def cut(b: Behaviour) -> None:
    b.cuts = [100_000] + [0] * 20


def drip(b: Behaviour) -> None:
    b.drip_s = 0.05


def change(b: Behaviour) -> None:
    b.cuts = [100_000] * 30
    b.honest_match = False
    b.etags = [f'"{i}"' for i in range(30)]


def lie_about_the_range(b: Behaviour) -> None:
    b.cuts = [100_000] * 30
    b.range_shift = 7


def fail_for_ever(b: Behaviour) -> None:
    b.statuses = [500] * 30


def stall(b: Behaviour) -> None:
    b.stall_at = 0


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (cut, "SOURCE_UNREACHABLE"),
        (drip, "SOURCE_SLOW"),
        (change, "SOURCE_CHANGED"),
        (lie_about_the_range, "SOURCE_CHANGED"),
        (fail_for_ever, "SOURCE_UNREACHABLE"),
        (stall, "SOURCE_UNREACHABLE"),
    ],
)
def test_a_download_that_never_ends_well_is_given_up(
    installers: Installers,  # noqa: F811
    place: Place,
    fault: Callable[[Behaviour], None],
    code: str,
) -> None:
    place.behaviour.data = SERVED
    fault(place.behaviour)
    limits = replace(SEVERAL, attempts=2, stall_s=0.4, min_bytes_per_s=1000)
    assert installers.code(place.source, limits=limits) == code
    assert "s3cr3t" not in installers.said
    assert installers.store.objects.names() == []


def test_what_was_cut_off_is_unpacked_from_its_beginning(installers: Installers, place: Place) -> None:  # noqa: F811
    """Unpacking goes on where the download does, and begins anew where that does."""
    place.behaviour.data, place.behaviour.cuts = SERVED, [400_000, 200_000, 0, 300_000]
    found = installers.run(place.source, limits=SEVERAL)
    assert found.objects == {"r0": hashlib.sha256(SERVED).hexdigest()}
    installers.store.objects.verify(found.objects["r0"])
    place.behaviour.data, place.behaviour.etag = tar_gz(("other", b"1", {})), '"v2"'
    place.behaviour.cuts, place.behaviour.ranges = [700_000, 900_000], False
    again = installers.run(place.source, limits=SEVERAL)
    assert again.objects == {"r0": hashlib.sha256(place.behaviour.data).hexdigest()}
    installers.store.objects.verify(again.objects["r0"])


@pytest.mark.parametrize(
    ("status", "said"), [(403, "Request has expired"), (400, "request expired"), (401, "The token is expired")]
)
def test_a_url_that_has_expired(web: Web, installers: Installers, status: int, said: str) -> None:  # noqa: F811
    web.behaviour.statuses, web.behaviour.refusal = [status], said
    assert installers.code(HttpsSource(web.url)) == "SOURCE_EXPIRED"
    web.behaviour.statuses, web.behaviour.refusal = [403], "no"
    old = (datetime.now(timezone.utc) - timedelta(hours=2)).strftime("%Y%m%dT%H%M%SZ")
    url = f"{web.url.partition('?')[0]}?X-Amz-Date={old}&X-Amz-Expires=3600&X-Amz-Signature=s3cr3t"
    assert installers.code(HttpsSource(url)) == "SOURCE_EXPIRED"
    assert "s3cr3t" not in installers.said


@pytest.mark.parametrize("query", ["", "Expires=x", "X-Amz-Date=1&X-Amz-Expires=1", "Expires=99999999999", "a=1"])
def test_a_url_that_does_not_say_that_it_has_expired(query: str) -> None:
    assert not has_expired(f"https://h/p?{query}", 1_800_000_000.0)


# -- the disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Makes state directories on small file systems of their own."""
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs can be mounted by root only")
    mounted: list[Path] = []

    def make(**options: Any) -> Store:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        text = ",".join(f"{key}={value}" for key, value in options.items())
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", text, "tmpfs", str(place)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount a tmpfs: {done.stderr.strip()}")
        mounted.append(place)
        return Store(place / "state")

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


def code_on(store: Store, installers: Installers, source: FileSource) -> str:  # noqa: F811
    job = installers.job(source, limits=replace(ONCE, free_bytes=0))
    with pytest.raises(AgentError) as caught:
        asyncio.run(install(store.root, job, installers.events.append))
    assert caught.value.remedy
    return caught.value.code


def test_a_full_disk(installers: Installers, small_disk: Callable[..., Store], tmp_path: Path) -> None:  # noqa: F811
    store = small_disk(size="8m")
    path = tmp_path / "m"
    path.write_bytes(tar_gz(("zeros.bin", bytes(30 * MIB), {}), bulk=False))
    assert code_on(store, installers, FileSource(str(path))) == "DISK_FULL"
    assert_nothing_left(store)
    path.write_bytes(random.Random(1).randbytes(9 * MIB))
    assert code_on(store, installers, FileSource(str(path))) == "DISK_FULL"  # known before anything is fetched
    path.write_bytes(archive(1))
    assert asyncio.run(install(store.root, installers.job(FileSource(str(path)), limits=replace(ONCE, free_bytes=0)),
                               installers.events.append)).objects  # fmt: skip


def test_a_disk_without_inodes(installers: Installers, small_disk: Callable[..., Store], tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "m"
    path.write_bytes(tar_gz(*((f"f{i}", b"1", {}) for i in range(1500)), bulk=False))
    assert code_on(small_disk(nr_inodes=1200), installers, FileSource(str(path))) == "DISK_NO_INODES"
    assert code_on(small_disk(nr_inodes=300), installers, FileSource(str(path))) == "DISK_NO_INODES"


@pytest.fixture
def injected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the installers to come run under strace with an injection."""
    if shutil.which("strace") is None:
        pytest.fail("strace is not installed: scripts/test installs it")
    wrapper = tmp_path / "python"
    python = sys.executable

    def inject(rule: str) -> None:
        wrapper.write_text(f'#!/bin/sh\nexec strace -D -f -qq -o /dev/null -e inject={rule} {python} "$@"\n')
        wrapper.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(wrapper))

    return inject


@pytest.mark.parametrize("call", ["rename", "fsync", "fdatasync", "openat"])
def test_a_disk_that_reports_errors(
    installers: Installers,  # noqa: F811
    injected: Callable[[str], None],
    tmp_path: Path,
    call: str,
) -> None:
    """EIO at the first, the second, the third such call below the state directory; afterwards all is as before."""
    path = tmp_path / "m"
    path.write_bytes(SERVED)
    only = f" -P {installers.store.root}/objects -P {installers.store.root}/staging" if call == "openat" else ""
    seen = set()
    for when in (1, 2, 3):
        injected(f"{call}:error=EIO:when={when}{only}")
        limits = replace(ONCE, sync_bytes=500_000)
        try:
            found = asyncio.run(install(installers.store.root, installers.job(FileSource(str(path)), limits=limits),
                                        installers.events.append))  # fmt: skip
        except AgentError as error:
            seen.add(error.code)
            assert installers.store.objects.names() in ([], [hashlib.sha256(SERVED).hexdigest()])
            for hex in installers.store.objects.names():
                installers.store.objects.verify(hex)
        else:
            for hex in found.objects.values():
                installers.store.objects.verify(hex)
            break
    assert seen <= {"DISK_FAILED"}
    assert seen or call == "fdatasync"  # a file without an ETag is never gone on from, so that nothing of it is synced


@pytest.mark.parametrize("call", ["fsync", "rename", "unlink"])
def test_an_installer_killed_at_any_such_call_is_made_up_for(
    installers: Installers,  # noqa: F811
    injected: Callable[[str], None],
    tmp_path: Path,
    call: str,
    soak: bool,
) -> None:
    path = tmp_path / "m"
    path.write_bytes(SERVED)
    job = installers.job(FileSource(str(path)))
    for when in range(1, 30 if soak else 4):
        injected(f"{call}:signal=KILL:when={when}")
        with contextlib.suppress(TransientError):  # INSTALLER_LOST; or it has fewer such calls
            asyncio.run(install(installers.store.root, job, installers.events.append))
        for hex in installers.store.objects.names():
            installers.store.objects.verify(hex)
            shutil.rmtree(installers.store.objects.directory / hex)
    installers.store.objects.clean()
    assert_nothing_left_but_downloads(installers.store)


def assert_nothing_left_but_downloads(store: Store) -> None:
    assert [path.name for path in store.objects.staging.iterdir()] in ([], ["downloads"])
