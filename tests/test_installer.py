"""The installer and its sources: real child processes, moto's S3, and an https server that can do all that is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import random
import signal
import ssl
import stat
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.deployment.definition import Deployment, FileSource, HttpsSource, Resource, S3Source, Source
from agent.deployment.download import Fetched, FetchLimits, Part, fetch
from agent.deployment.installation import Installed, install, job_of
from agent.deployment.sources import https
from agent.deployment.sources.https import HttpsArchive
from agent.deployment.store import Known, Store
from agent.deployment.tree_writer import Caps
from agent.errors import AgentError, TransientError
from tests.s3_kit import S3Server, free_port, s3_server  # noqa: F401 - a fixture

ONCE = FetchLimits(attempts=1, backoff_s=0.05)
SEVERAL = FetchLimits(attempts=3, backoff_s=0.05, sync_bytes=100_000)
TEN = FetchLimits(sync_bytes=10)
DATA = random.Random(7).randbytes(1_000_000)
DEADLINE_S = 30.0


@functools.cache
def archive(seed: int, size: int = 1000) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as pack:
        pack.writestr("model.json", b"%d" % seed)
        pack.writestr("w.bin", random.Random(seed).randbytes(size))
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Installers:
    """Runs installers on one state directory, with the environment of a given S3 server."""

    def __init__(self, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = Store(state)
        self.events: list[dict[str, Any]] = []
        self._patch = monkeypatch

    def environment(self, values: dict[str, str]) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            self._patch.delenv(name)
        for name, value in values.items():
            self._patch.setenv(name, value)

    def job(self, *sources: Source, promised: str | None = None, limits: FetchLimits = ONCE) -> dict[str, Any]:
        resources = tuple(Resource(f"r{i}", f"R{i}", s, digest=promised) for i, s in enumerate(sources))
        deployment = Deployment("d", "NewDeployment", None, "", resources)
        return job_of(deployment, {}, self.store.known(), ["*"], limits, Caps())

    def run(self, *sources: Source, promised: str | None = None, limits: FetchLimits = ONCE) -> Installed:
        job = self.job(*sources, promised=promised, limits=limits)
        return asyncio.run(install(self.store.root, job, self.events.append))

    def code(self, *sources: Source, promised: str | None = None, limits: FetchLimits = ONCE) -> str:
        with pytest.raises(AgentError) as caught:
            self.run(*sources, promised=promised, limits=limits)
        assert caught.value.remedy
        assert "Traceback" not in str(caught.value)
        self.said = str(caught.value)
        return caught.value.code


@pytest.fixture
def installers(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Installers:  # noqa: F811
    made = Installers(tmp_path / "state", monkeypatch)
    made.environment(s3_server.environment())
    return made


@pytest.fixture
def s3(s3_server: S3Server) -> S3Server:  # noqa: F811
    return s3_server


def test_what_is_installed_is_whole_and_known(installers: Installers, s3: S3Server) -> None:
    one, two = S3Source(s3.put("inst-a", "one.zip", archive(1))), S3Source(s3.put("inst-a", "two.zip", archive(2)))
    found = installers.run(one, two)
    assert found.objects == {"r0": digest(archive(1))[7:], "r1": digest(archive(2))[7:]}
    for hex in found.objects.values():
        installers.store.objects.verify(hex)
        assert not list(installers.store.objects.ref(hex).tree.parent.glob("*.zip"))
    phases = [(e["phase"], e["id"]) for e in installers.events if e["event"] == "phase"]
    assert phases == [
        ("fetching", "r0"), ("verifying", "r0"), ("unpacking", "r0"),
        ("fetching", "r1"), ("verifying", "r1"), ("unpacking", "r1"), ("staged", None),
    ]  # fmt: skip
    known = len(s3.requests("inst-a"))
    assert installers.run(one, two).objects == found.objects
    assert [status for _, _, status in s3.requests("inst-a")[known:]] == [304, 304]
    assert installers.run(two, promised=digest(archive(2))).objects == {"r0": found.objects["r1"]}
    assert len(s3.requests("inst-a")) == known + 2


def test_a_changed_or_damaged_object_is_fetched_again(installers: Installers, s3: S3Server) -> None:
    source = S3Source(s3.put("inst-b", "m.zip", archive(1)))
    hex = installers.run(source).objects["r0"]
    (installers.store.objects.ref(hex).tree / "model.json").chmod(0o644)
    (installers.store.objects.ref(hex).tree / "model.json").write_bytes(b"rot")
    assert installers.run(source).objects["r0"] == hex
    installers.store.objects.verify(hex)
    s3.put("inst-b", "m.zip", archive(2))
    assert installers.run(source).objects["r0"] == digest(archive(2))[7:]


def test_wrong_names_and_digests(installers: Installers, s3: S3Server) -> None:
    good = s3.put("inst-c", "m.zip", archive(1))
    assert installers.code(S3Source("s3://inst-c/none.zip")) == "SOURCE_NOT_FOUND"
    assert "s3://inst-c/none.zip" in installers.said
    assert installers.code(S3Source("s3://inst-none/m.zip")) == "SOURCE_NOT_FOUND"
    assert "the bucket inst-none" in installers.said
    assert installers.code(S3Source(good), promised=digest(b"")) == "MODEL_DIGEST_MISMATCH"
    assert digest(archive(1)) in installers.said
    limits = replace(ONCE, max_bytes=500)
    assert installers.code(S3Source(good), limits=limits) == "SOURCE_TOO_LARGE"
    assert installers.code(S3Source(good), limits=replace(ONCE, free_bytes=2**60)) == "DISK_FULL"
    assert installers.store.objects.names() == []


def test_an_endpoint_that_is_down_or_nonsense(installers: Installers, s3: S3Server) -> None:
    installers.environment({**s3.environment(), "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{free_port()}"})
    assert installers.code(S3Source("s3://inst-d/m.zip")) == "SOURCE_UNREACHABLE"
    installers.environment({**s3.environment(), "AWS_ENDPOINT_URL_S3": "not a url"})
    assert installers.code(S3Source("s3://inst-d/m.zip")) == "SOURCE_SETTINGS"


def test_credentials_missing_wrong_and_without_rights(installers: Installers) -> None:
    server = S3Server()
    try:
        uri = S3Source(server.put("inst-e", "m.zip", archive(1)))
        iam = server.client("iam")
        iam.create_user(UserName="core")
        key = iam.create_access_key(UserName="core")["AccessKey"]
        look_at_who_asks(server)
        environment = server.environment()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            del environment[name]
        installers.environment(environment)
        assert installers.code(uri) == "SOURCE_CREDENTIALS"
        installers.environment(server.environment("AKIAWRONG", "wrong"))
        assert installers.code(uri) == "SOURCE_CREDENTIALS"
        installers.environment(server.environment(key["AccessKeyId"], "wrong"))
        assert installers.code(uri) == "SOURCE_CREDENTIALS"
        installers.environment(server.environment(key["AccessKeyId"], key["SecretAccessKey"]))
        assert installers.code(uri) == "SOURCE_ACCESS_DENIED"
        assert (
            '{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::inst-e/m.zip"}' in installers.said
        )
    finally:
        server.stop()


def look_at_who_asks(server: S3Server) -> None:
    """From now on moto checks signatures and rights."""
    url, headers = f"{server.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, b"0", headers, method="POST"), timeout=10).close()


def test_a_hostile_archive_leaves_nothing(installers: Installers, s3: S3Server) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as pack:
        pack.writestr("ok", b"1")
        pack.writestr("../../escaped", b"1")
    assert installers.code(S3Source(s3.put("inst-f", "m.zip", out.getvalue()))) == "ARCHIVE_UNSAFE"
    staging = installers.store.objects.staging
    assert [p for p in staging.rglob("*") if p.is_file()] == []
    assert not (installers.store.root / "escaped").exists()


def test_files_on_the_core(installers: Installers, tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "m.zip").write_bytes(archive(5))
    assert installers.run(FileSource(str(stick / "m.zip"))).objects == {"r0": digest(archive(5))[7:]}
    assert installers.code(FileSource(str(stick / "none.zip"))) == "SOURCE_NOT_FOUND"
    assert installers.code(FileSource(str(stick))) == "SOURCE_REFUSED"
    os.mkfifo(stick / "pipe")
    assert installers.code(FileSource(str(stick / "pipe"))) == "SOURCE_REFUSED"
    (stick / "link.zip").symlink_to("/etc/hostname")
    job = installers.job(FileSource(str(stick / "link.zip")))
    job["allowed"] = [f"file://{stick}/*"]
    with pytest.raises(AgentError) as caught:
        asyncio.run(install(installers.store.root, job, installers.events.append))
    assert caught.value.code == "NOT_ALLOWED"


def test_a_state_directory_that_cannot_be_written(installers: Installers, s3: S3Server) -> None:
    source = S3Source(s3.put("inst-g", "m.zip", archive(1)))
    job = installers.job(source)
    (installers.store.objects.staging / "downloads").write_text("in the way")
    with pytest.raises(AgentError) as caught:
        asyncio.run(install(installers.store.root, job, installers.events.append))
    assert caught.value.code == "STATE_UNWRITABLE"


# -- an https server that does as it is told ---------------------------------------------------------------------------


@dataclass
class Behaviour:
    """What the server does; `cuts` holds, for each request to come, after how many bytes it breaks the connection."""

    data: bytes = DATA
    etag: str | None = '"v1"'
    ranges: bool = True
    honest_match: bool = True
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    stall_at: int | None = None
    drip_s: float = 0.0  # after each 10 bytes
    etags: list[str] = field(default_factory=list)  # for each request to come
    refusal: str = ""
    redirect: str | None = None
    length: bool = True
    range_shift: int = 0
    seen: list[dict[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


class Handler(http.server.BaseHTTPRequestHandler):
    behaviour: Behaviour
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        b = self.behaviour
        b.seen.append({**dict(self.headers.items()), "path": self.path})
        b.etag = b.etags.pop(0) if b.etags else b.etag
        self.close_connection = True
        if b.redirect:
            self.send_response(302)
            self.send_header("Location", b.redirect)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if b.statuses and (status := b.statuses.pop(0)) != 200:
            self.send_error(status, explain=b.refusal or None)
            return
        if b.etag and self.headers.get("If-None-Match") == b.etag:
            self.send_response(304)
            self.end_headers()
            return
        if b.honest_match and "If-Match" in self.headers and self.headers["If-Match"] != b.etag:
            self.send_error(412)
            return
        self.send_body(b)

    def send_body(self, b: Behaviour) -> None:
        start = 0
        if b.ranges and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            shifted = start + b.range_shift
            self.send_header("Content-Range", f"bytes {shifted}-{len(b.data) - 1 + b.range_shift}/{len(b.data)}")
        else:
            self.send_response(200)
        if b.length:
            self.send_header("Content-Length", str(len(b.data) - start))
        if b.etag:
            self.send_header("ETag", b.etag)
        self.end_headers()
        body = b.data[start:]
        if b.cuts:
            self.wfile.write(body[: b.cuts.pop(0)])
            return
        for at in range(0, len(body) if b.drip_s else 0, 10):
            self.wfile.write(body[at : at + 10])
            if b.released.wait(b.drip_s):
                return
        if b.stall_at is not None:
            self.wfile.write(body[: b.stall_at])
            self.wfile.flush()
            b.released.wait(DEADLINE_S)
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


@dataclass
class Web:
    url: str
    behaviour: Behaviour


@pytest.fixture
def web(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    https._context.cache_clear()
    with told_server(certificate) as (port, behaviour):
        yield Web(f"https://127.0.0.1:{port}/m.zip?X-Signature=s3cr3t", behaviour)
    https._context.cache_clear()


@contextlib.contextmanager
def told_server(certificate: Path | None) -> Iterator[tuple[int, Behaviour]]:
    """A server on a free port that does as its behaviour says; with TLS where there is a certificate."""
    behaviour = Behaviour()
    handler = type("Told", (Handler,), {"behaviour": behaviour})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_address[1], behaviour
    behaviour.released.set()
    server.shutdown()
    server.server_close()


def get(
    web: Web, directory: Path, *, known: str | None = None, limits: FetchLimits = SEVERAL, allowed: str = ""
) -> Fetched | None:
    source = HttpsArchive(web.url, lambda name: name.startswith(allowed or "https://127.0.0.1"), limits.stall_s)
    part = Part(directory / "downloads", source.name, limits)
    try:
        return fetch(source, part, known, limits, lambda there, total: None)
    finally:
        part.close()


def failure(web: Web, directory: Path, **more: Any) -> AgentError:
    with pytest.raises(AgentError) as caught:
        get(web, directory, **more)
    assert "s3cr3t" not in str(caught.value)
    return caught.value


def assert_whole(found: Fetched | None, data: bytes = DATA) -> None:
    assert found is not None
    assert found.file.read_bytes() == data
    assert (found.hex, found.size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_a_broken_connection_is_gone_on_from(web: Web, tmp_path: Path) -> None:
    web.behaviour.cuts = [300_000, 0, 0, 200_000, 1]
    found = get(web, tmp_path)
    assert_whole(found)
    assert [r.get("Range") for r in web.behaviour.seen] == [
        None, "bytes=300000-", "bytes=300000-", "bytes=300000-", "bytes=500000-", "bytes=500001-",
    ]  # fmt: skip
    assert {r.get("If-Match") for r in web.behaviour.seen[1:]} == {'"v1"'}


def test_tries_that_bring_nothing_are_bounded(web: Web, tmp_path: Path) -> None:
    web.behaviour.cuts = [100_000, 0, 0, 0, 0, 0]
    assert failure(web, tmp_path).code == "SOURCE_UNREACHABLE"
    assert len(web.behaviour.seen) == 4
    web.behaviour.cuts = []
    assert_whole(get(web, tmp_path))  # the next installer goes on
    assert web.behaviour.seen[-1]["Range"] == "bytes=100000-"


def test_a_server_without_ranges_begins_anew(web: Web, tmp_path: Path) -> None:
    web.behaviour.ranges = False
    web.behaviour.cuts = [300_000]
    assert_whole(get(web, tmp_path))


def test_a_server_without_etags_begins_anew(web: Web, tmp_path: Path) -> None:
    for etag in (None, 'W/"weak"'):
        web.behaviour.etag = etag
        web.behaviour.cuts = [300_000]
        web.behaviour.seen.clear()
        found = get(web, tmp_path)
        assert_whole(found)
        assert found is not None
        assert found.etag is None
        assert "Range" not in web.behaviour.seen[1]


@pytest.mark.parametrize("honest", [True, False])
def test_what_changes_on_the_way_is_never_mixed(web: Web, tmp_path: Path, honest: bool) -> None:
    web.behaviour.cuts = [300_000, 0, 0, 0, 0]
    assert failure(web, tmp_path).code == "SOURCE_UNREACHABLE"
    other = random.Random(8).randbytes(900_000)
    web.behaviour.data, web.behaviour.etag, web.behaviour.honest_match, web.behaviour.cuts = other, '"v2"', honest, []
    found = get(web, tmp_path)
    assert_whole(found, other)
    assert found is not None
    assert found.etag == '"v2"'


def test_a_range_that_does_not_fit_is_no_answer(web: Web, tmp_path: Path) -> None:
    web.behaviour.cuts = [300_000]
    web.behaviour.range_shift = 5
    assert_whole(get(web, tmp_path))


def test_the_unchanged_is_not_fetched(web: Web, tmp_path: Path) -> None:
    assert get(web, tmp_path, known='"v1"') is None
    assert_whole(get(web, tmp_path, known='"v0"'))


@pytest.mark.parametrize(
    ("status", "code", "tries"),
    [
        (404, "SOURCE_NOT_FOUND", 1),
        (403, "SOURCE_ACCESS_DENIED", 1),
        (400, "SOURCE_REFUSED", 1),
        (503, "SOURCE_UNREACHABLE", 3),
    ],
)
def test_refusals_have_codes(web: Web, tmp_path: Path, status: int, code: str, tries: int) -> None:
    web.behaviour.statuses = [status] * 5
    assert failure(web, tmp_path).code == code
    assert len(web.behaviour.seen) == tries


def test_a_server_that_is_busy_for_a_while(web: Web, tmp_path: Path) -> None:
    web.behaviour.statuses = [503, 429, 200]
    assert_whole(get(web, tmp_path))


def test_an_answer_without_a_length(web: Web, tmp_path: Path) -> None:
    web.behaviour.length = False
    assert failure(web, tmp_path).code == "SOURCE_REFUSED"


def test_redirects_stay_within_the_policy(web: Web, tmp_path: Path) -> None:
    origin = web.url.rpartition("/")[0]
    for target in ("https://localhost:1/x?s3cr3t=1", "http://127.0.0.1:1/x", "/elsewhere/m.zip"):
        web.behaviour.redirect = target
        assert failure(web, tmp_path, allowed=f"{origin}/m.zip").code == "NOT_ALLOWED"
    web.behaviour.redirect = "/again"
    assert failure(web, tmp_path).code == "SOURCE_REFUSED"


def test_a_certificate_that_is_not_trusted(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    https._context.cache_clear()
    assert failure(web, tmp_path).code == "SOURCE_UNTRUSTED"


def test_a_stalled_connection_is_given_up(web: Web, tmp_path: Path) -> None:
    impatient = replace(SEVERAL, stall_s=0.3)
    web.behaviour.stall_at = 300_000
    assert_whole(get(web, tmp_path, limits=impatient))
    ranges = [r.get("Range") for r in web.behaviour.seen]
    assert ranges == [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    web.behaviour.etag, web.behaviour.stall_at = '"v2"', 0
    assert failure(web, tmp_path, limits=impatient).code == "SOURCE_UNREACHABLE"


def test_a_part_with_odd_facts_begins_anew(tmp_path: Path) -> None:
    def reopened(facts: bytes | None, content: bytes) -> int:
        part = Part(tmp_path, "x", TEN)
        part.restart('"e"', 10)
        part.append(content)
        part.sync()
        part.close()
        (json_file,) = tmp_path.glob("*.json")
        if facts is not None:
            json_file.write_bytes(facts)
        again = Part(tmp_path, "x", TEN)
        again.close()
        return again.size

    assert reopened(None, b"0123456789") == 10
    assert reopened(b'{"etag": "\\"e\\"", "synced": 4, "total": 10}', b"0123456789") == 4
    for facts in (
        b"",
        b"{",
        b"[]",
        b'{"etag": "e", "synced": 99, "total": 10}',
        b'{"etag": "", "synced": 4, "total": 10}',
        b'{"synced": "x"}',
    ):
        assert reopened(facts, b"0123456789") == 0


def test_a_killed_installer_is_gone_on_from(web: Web, installers: Installers, monkeypatch: pytest.MonkeyPatch) -> None:
    web.behaviour.data = archive(9, 1_000_000)
    web.behaviour.stall_at = 600_000
    source = HttpsSource(web.url)
    job = installers.job(source, limits=SEVERAL)
    downloads = installers.store.objects.staging / "downloads"

    async def killed() -> None:
        work = asyncio.create_task(install(installers.store.root, job, installers.events.append))
        deadline = time.monotonic() + DEADLINE_S
        while True:  # until the installer has said that it synced most of what came
            facts = [json.loads(path.read_bytes()) for path in downloads.glob("*.json")]
            if facts and facts[0]["synced"] >= 500_000:
                break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        for pid in children():
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(TransientError) as caught:
            await work
        assert caught.value.code == "INSTALLER_LOST"
        assert "signal 9" in caught.value.message

    asyncio.run(killed())
    web.behaviour.stall_at = None
    assert installers.run(source).objects == {"r0": digest(archive(9, 1_000_000))[7:]}
    assert int(web.behaviour.seen[-1]["Range"].removeprefix("bytes=")[:-1]) >= 500_000
    manifest = installers.store.objects.manifest(digest(archive(9, 1_000_000))[7:])
    assert manifest["source"] == web.url.partition("?")[0]
    assert "s3cr3t" not in json.dumps(manifest)
    assert installers.store.known() == {manifest["source"]: Known('"v1"', digest(archive(9, 1_000_000))[7:])}


def children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return [pid for pid in found if b"agent.deployment.installer" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_cancelled_installation_has_ended_its_child(web: Web, installers: Installers) -> None:
    web.behaviour.stall_at = 1000
    job = installers.job(HttpsSource(web.url))

    async def main() -> None:
        started = asyncio.Event()
        work = asyncio.create_task(install(installers.store.root, job, lambda event: started.set()))
        await asyncio.wait_for(started.wait(), DEADLINE_S)
        assert len(children()) == 1
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert children() == []

    asyncio.run(main())


def test_the_tree_is_read_only_and_nobody_elses_files_are_in_it(installers: Installers, s3: S3Server) -> None:
    hex = installers.run(S3Source(s3.put("inst-h", "m.zip", archive(1)))).objects["r0"]
    tree = installers.store.objects.ref(hex).tree
    assert sorted(p.name for p in tree.iterdir()) == ["model.json", "w.bin"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in tree.iterdir()} == {0o444}
