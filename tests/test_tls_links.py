"""Links over TLS against a real mosquitto: each way in which it fails has its code, and renewed files are taken."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from agent import settings
from agent.errors import TransientError
from agent.messages import Inbound, Outbound
from agent.mqtt import reconnecting, tls
from agent.mqtt.link import Link
from agent.trust.certificates import validity
from tests.agent_kit import Core
from tests.certificate_kit import DAY, Authority, Pair
from tests.mqtt_kit import Mosquitto, PlainClient, free_port, mosquitto, until, wait_until

SECRET = "hunter2-in-a-file"


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(bounded())


class Trial:
    """A link with what it received; the core's `press-7`."""

    def __init__(self, url: str, *, max_backoff_s: float = 0.1, **more: Any) -> None:
        self.received: list[bytes] = []
        self.link = Link(
            settings.Link("cloud", url, **more),
            client_id="press-7", core="press-7", max_backoff_s=max_backoff_s,
            on_message=self._on_message, on_up=lambda: None, on_down=lambda: None,
        )  # fmt: skip

    def _on_message(self, message: Inbound) -> None:
        """Answers on ``out``, and acknowledges when the broker has the answer."""
        self.received.append(message.payload)
        self.link.publish(Outbound("out", message.payload), lambda: self.link.ack(message.ticket))

    async def error(self, code: str) -> str:
        self.link.start()
        await until(lambda: (self.link.last_error or "").startswith(f"{code}: "), f"{code}: {self.link.last_error}")
        return str(self.link.last_error)

    async def up(self, *filters: str) -> Link:
        self.link.set_filters(filters)
        self.link.start()
        await until(lambda: self.link.connected, f"up: {self.link.last_error}")
        await self.link.settled()
        return self.link


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def listener(authority: Authority, pair: Pair, *, clients: bool = True) -> tuple[str, ...]:
    """mosquitto's lines for TLS; with `clients` they must show a certificate."""
    lines = (f"cafile {authority.ca}", f"certfile {pair.cert}", f"keyfile {pair.key}")
    return (*lines, "require_certificate true", "use_identity_as_username true") if clients else lines


def test_both_sides_show_their_certificates(tmp_path: Path, authority: Authority) -> None:
    async def main() -> None:
        core = authority.issue("press-7")
        with mosquitto(tmp_path / "b", listener=listener(authority, authority.issue("broker"))) as broker:
            side = Trial(f"mqtts://localhost:{broker.port}", ca=authority.ca, cert=core.cert, key=core.key)
            link = await side.up("in")
            link.publish(Outbound("in", b"1"))
            await link.stop()
            assert broker.logged("u'press-7'") == 1

    run(main)


@pytest.mark.parametrize(
    ("broker_is", "code", "words"),
    [
        ({}, "TLS_UNTRUSTED", "Give the CA"),
        ({"begins": -9 * DAY, "ends": -2 * DAY}, "TLS_BROKER_EXPIRED", "has expired"),
        ({"begins": 2 * DAY, "ends": 9 * DAY}, "TLS_BROKER_NOT_YET_VALID", "this device's clock (NTP)"),
        ({"hosts": ("broker.example.org",)}, "TLS_WRONG_NAME", "another name"),
    ],
)
def test_a_broker_that_is_not_who_it_should_be(
    tmp_path: Path,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    broker_is: dict[str, Any],
    code: str,
    words: str,
) -> None:
    other = Authority(tmp_path / "other", "other")
    pair = authority.issue("broker", **broker_is)

    async def main() -> None:
        with mosquitto(tmp_path / "b", listener=listener(authority, pair, clients=False)) as broker:
            ca = authority.ca if broker_is else other.ca
            side = Trial(f"mqtts://localhost:{broker.port}", ca=ca)
            assert words in await side.error(code)
            await until(lambda: broker.logged("New connection") >= 4, "it is tried again")
            await side.link.stop()

    run(main)
    assert caplog.text.count(f"{code}: ") == 1, "once, however often it is tried"


def test_a_broker_that_does_not_take_this_core(tmp_path: Path, authority: Authority) -> None:
    other = Authority(tmp_path / "other", "other")
    shown = {
        "none": ({}, "TLS_CERTIFICATE_REQUIRED", "cert, key"),
        "stranger": ({"pair": other.issue("press-7")}, "TLS_CERTIFICATE_REFUSED", "which the broker trusts"),
        "old": ({"pair": authority.issue("old", begins=-9 * DAY, ends=-2 * DAY)}, "TLS_CERTIFICATE_EXPIRED", "Renew"),
        "new": ({"pair": authority.issue("new", begins=2 * DAY, ends=9 * DAY)}, "TLS_CERTIFICATE_NOT_YET_VALID", "NTP"),
    }

    async def main(version: str) -> None:
        lines = (*listener(authority, authority.issue("broker")), f"tls_version {version}")
        with mosquitto(tmp_path / f"b-{version}", listener=lines) as broker:
            for how, code, words in shown.values():
                pair = how.get("pair")
                files = {"cert": pair.cert, "key": pair.key} if pair else {}
                side = Trial(f"mqtts://localhost:{broker.port}", ca=authority.ca, **files)
                assert words in await side.error(code)
                await side.link.stop()

    run(lambda: main("tlsv1.2"))
    run(lambda: main("tlsv1.3"))  # the refusal comes after the handshake


def test_files_that_cannot_be_used(tmp_path: Path, authority: Authority) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    open_key = tmp_path / "open.key"
    shutil.copy(one.key, open_key)
    open_key.chmod(0o640)

    async def main() -> None:
        for files, code in (
            ({"cert": one.cert, "key": two.key}, "TLS_KEY_MISMATCH"),
            ({"cert": one.cert, "key": open_key}, "KEY_FILE_LOOSE"),
            ({"cert": tmp_path / "none", "key": one.key}, "TLS_FILES"),
            ({"ca": one.key}, "TLS_FILES"),
            ({"username": "u", "password_file": tmp_path / "none"}, "PASSWORD_FILE"),
            ({"username": "u", "password_file": open_key}, "PASSWORD_FILE_LOOSE"),
            ({"username": "u", "password_env": "NO_SUCH_VARIABLE"}, "PASSWORD_MISSING"),
        ):
            side = Trial(f"mqtts://localhost:{free_port()}", **files)
            assert len(await side.error(code)) > len(code) + 20
            await side.link.stop()
        open_key.chmod(0o600)
        tls.context_of(settings.Link("cloud", "mqtts://h:1", cert=one.cert, key=open_key))

    run(main)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_a_key_of_roots_may_be_read_by_the_agents_group(tmp_path: Path, authority: Authority) -> None:
    pair = authority.issue("one")
    link = settings.Link("cloud", "mqtts://h:1", cert=pair.cert, key=pair.key)
    os.chown(pair.key, 12345, -1)
    pair.key.chmod(0o640)
    tls.context_of(link)
    pair.key.chmod(0o644)
    with pytest.raises(TransientError, match=r"KEY_FILE_LOOSE.*chmod 640"):
        tls.context_of(link)


def test_a_port_without_tls_and_one_with_old_tls(tmp_path: Path, authority: Authority) -> None:
    async def main() -> None:
        with mosquitto(tmp_path / "b") as broker:
            side = Trial(f"mqtts://localhost:{broker.port}", ca=authority.ca)
            assert "speaks TLS" in await side.error("TLS_FAILED")
            await side.link.stop()
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=speak_old_tls, args=(server, authority.issue("old")), daemon=True).start()
            side = Trial(f"mqtts://localhost:{server.getsockname()[1]}", ca=authority.ca)
            await side.error("TLS_VERSION")
            await side.link.stop()

    run(main)


def speak_old_tls(server: socket.socket, pair: Pair) -> None:
    """TLS 1.1 and nothing newer; asyncio's own servers end a failed handshake without saying why."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with contextlib.suppress(OSError):
                context.wrap_socket(connection, server_side=True).close()


# -- ALPN --------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def front(
    authority: Authority, target: int, adapt: Callable[[ssl.SSLContext], None], seen: list[str | None] | None = None
) -> AsyncIterator[int]:
    """A TLS end in front of a broker: notes what was negotiated and passes all on. mosquitto does no ALPN."""
    pair = authority.issue("front")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    adapt(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen is not None:
            seen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        back, far = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.wait({asyncio.ensure_future(pump(reader, far)), asyncio.ensure_future(pump(back, writer))},
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        far.close()
        writer.close()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    try:
        yield port
    finally:
        server.close()


def test_the_protocol_is_negotiated_in_the_handshake(tmp_path: Path, authority: Authority) -> None:
    async def main() -> None:
        seen: list[str | None] = []
        with mosquitto(tmp_path / "b") as broker:
            context: list[ssl.SSLContext] = []

            def aws(made: ssl.SSLContext) -> None:
                made.set_alpn_protocols(["x-amzn-mqtt-ca"])
                context.append(made)

            async with front(authority, broker.port, aws, seen) as port:
                for alpn in ("x-amzn-mqtt-ca", None):
                    side = Trial(f"mqtts://localhost:{port}", ca=authority.ca, alpn=alpn)
                    await side.up("in")
                    await side.link.stop()
            assert seen == ["x-amzn-mqtt-ca", None]

    run(main)


@pytest.mark.parametrize(
    ("url", "more", "alpn"),
    [
        ("mqtts://a-ats.iot.eu-west-1.amazonaws.com:443", {"cert": Path("c")}, "x-amzn-mqtt-ca"),
        ("mqtts://a-ats.iot.cn-north-1.amazonaws.com.cn:443", {"cert": Path("c")}, "x-amzn-mqtt-ca"),
        ("mqtts://a-ats.iot.eu-west-1.amazonaws.com:443", {"username": "u?x-amz-customauthorizer-name=a"}, "mqtt"),
        ("mqtts://a-ats.iot.eu-west-1.amazonaws.com:8883", {"cert": Path("c")}, None),
        ("mqtts://broker.example.org:443", {"cert": Path("c")}, None),
        ("mqtts://broker.example.org:443", {"alpn": "mqtt"}, "mqtt"),
        ("mqtts://evil.example.org.iot.eu-west-1.amazonaws.com.example.org:443", {"cert": Path("c")}, None),
    ],
)
def test_what_is_negotiated_where(url: str, more: dict[str, Any], alpn: str | None) -> None:
    assert tls.alpn_of(settings.Link("cloud", url, **more)) == alpn


# -- renewal -----------------------------------------------------------------------------------------------------------


def test_renewed_certificates_are_taken_under_load_and_nothing_is_lost(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnecting, "WATCH_S", 0.1)

    async def main() -> None:
        plain = free_port()
        core = authority.issue("press-7-0", cert=tmp_path / "core.crt")
        lines = listener(authority, authority.issue("broker"))
        with mosquitto(tmp_path / "b", options=(f"listener {plain} 127.0.0.1",), listener=lines) as broker:
            side = Trial(f"mqtts://localhost:{broker.port}", ca=authority.ca, cert=core.cert, key=core.key)
            await side.up("in")
            device = await asyncio.to_thread(PlainClient, plain, "device")
            await asyncio.to_thread(device.subscribe, "out")
            sent = 0
            for turn in (1, 2, 3):
                authority.issue(f"press-7-{turn}", cert=core.cert)
                generation = side.link.generation
                while side.link.generation == generation:
                    for _ in range(20):
                        await asyncio.to_thread(device.publish, "in", b"%d" % sent, wait=False)
                        sent += 1
                    await asyncio.sleep(0)
                assert broker.logged(f"u'press-7-{turn}'") == 1
            wanted = {b"%d" % number for number in range(sent)}
            await until(lambda: set(device.payloads()) >= wanted, f"{sent} answers")
            assert side.link.generation == 4
            assert broker.logged("disconnected") == 3, "each with a good-bye"
            device.close()
            await side.link.stop()

    run(main)


def test_what_is_renewed_by_halves_waits_and_the_connection_stands(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconnecting, "WATCH_S", 0.02)

    async def main() -> None:
        core, later = authority.issue("press-7", cert=tmp_path / "core.crt"), authority.issue("later")
        with mosquitto(tmp_path / "b", listener=listener(authority, authority.issue("broker"))) as broker:
            side = Trial(f"mqtts://localhost:{broker.port}", ca=authority.ca, cert=core.cert, key=core.key)
            await side.up()
            shutil.copy(later.cert, core.cert)
            await until(lambda: "TLS_KEY_MISMATCH" in caplog.text, "it is said")
            assert side.link.connected
            assert side.link.generation == 1
            shutil.copy(later.key, core.key)
            await until(lambda: side.link.generation == 2 and side.link.connected, "both are taken")
            os.utime(core.cert)  # touched, and the same
            await asyncio.sleep(0.2)
            assert side.link.generation == 2
            await side.link.stop()
        assert caplog.text.count("TLS_KEY_MISMATCH") == 1

    run(main)


def test_mended_files_are_taken_though_the_next_try_is_far_away(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconnecting, "WATCH_S", 0.02)
    monkeypatch.setattr(reconnecting, "FIRST_WAIT_S", 3000.0)  # a tenth of it and more is slept between two tries

    async def main() -> None:
        core, stranger = authority.issue("press-7"), Authority(tmp_path / "other").issue("press-7")
        shutil.copy(stranger.cert, tmp_path / "core.crt")
        shutil.copy(stranger.key, tmp_path / "core.key")
        files = {"cert": tmp_path / "core.crt", "key": tmp_path / "core.key"}
        with mosquitto(tmp_path / "b", listener=listener(authority, authority.issue("broker"))) as broker:
            side = Trial(f"mqtts://localhost:{broker.port}", ca=authority.ca, max_backoff_s=3000.0, **files)
            await side.error("TLS_CERTIFICATE_REFUSED")
            shutil.copy(core.key, files["key"])
            shutil.copy(core.cert, files["cert"])
            await until(lambda: side.link.connected, "up, long before the next try")
            await side.link.stop()

    run(main)


def test_a_password_in_a_file_is_renewed_and_never_shown(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reconnecting, "WATCH_S", 0.02)
    caplog.set_level(logging.DEBUG)
    users, file = tmp_path / "users", tmp_path / "password"
    file.touch(mode=0o600)

    def users_are(password: str) -> None:
        users.write_text("")
        subprocess.run(["mosquitto_passwd", "-b", str(users), "press", password], check=True)
        users.chmod(0o644)

    async def main() -> None:
        users_are(SECRET)
        lines = listener(authority, authority.issue("broker"), clients=False)
        options = (f"password_file {users}",)
        broker = Mosquitto(tmp_path / "b", options=options, listener=lines, anonymous=False)
        with broker:
            file.write_text("wrong\n")
            side = Trial(f"mqtts://localhost:{broker.port}", ca=authority.ca, username="press", password_file=file)
            await side.error("LOGIN_REFUSED")
            file.write_text(f"{SECRET}\n")
            await until(lambda: side.link.connected, "up")
            file.write_text(f"{SECRET}\n\n")
            await until(lambda: side.link.generation == 2, "renewed")
            await side.link.stop()

    run(main)
    assert SECRET not in caplog.text
    assert SECRET not in repr(settings.Link("cloud", "mqtt://h", password=SECRET))


def test_a_certificate_that_ends_soon_is_warned_of(
    tmp_path: Path, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        core = authority.issue("press-7", ends=3 * DAY)
        with mosquitto(tmp_path / "b", listener=listener(authority, authority.issue("broker"))) as broker:
            side = Trial(f"mqtts://localhost:{broker.port}", ca=authority.ca, cert=core.cert, key=core.key)
            await side.up()
            await until(lambda: "renew it" in caplog.text, "the warning")
            await side.link.stop()

    run(main)


# -- a whole agent -----------------------------------------------------------------------------------------------------


def test_an_agent_with_a_wrong_certificate_works_on_and_says_why(tmp_path: Path, authority: Authority) -> None:
    """`check` fails, the agent starts, serves its local broker, and takes the certificate once it is mended."""
    old = authority.issue("press-7", begins=-9 * DAY, ends=-2 * DAY, cert=tmp_path / "core.crt")
    lines = listener(authority, authority.issue("broker"))
    with mosquitto(tmp_path / "local") as local, mosquitto(tmp_path / "cloud", listener=lines) as cloud:
        url = f"mqtts://localhost:{cloud.port}"
        link = {"url": url, "ca": str(authority.ca), "cert": str(old.cert), "key": str(old.key)}
        core = Core(tmp_path / "core", local=local.url, cloud=link)
        command = [sys.executable, "-m", "agent", "check", "--config", str(core.config)]
        check = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
        assert check.returncode == 78
        assert "core.crt has expired: it was valid until" in check.stderr
        with core:
            wait_until(lambda: core.status()["links"]["local"]["connected"], "the local link")
            wait_until(lambda: core.status()["links"]["cloud"]["error"], "why not the cloud's")
            assert core.status()["links"]["cloud"]["error"].startswith("TLS_CERTIFICATE_EXPIRED: ")
            wait_until(lambda: cloud.logged("New connection") >= 4, "it is tried again")
            assert core.log.read_text().count("TLS_CERTIFICATE_EXPIRED") == 1
            authority.issue("press-7", cert=tmp_path / "core.crt")
            core.wait_linked()
            ends = core.status()["links"]["cloud"]["certificate_ends"]
            assert ends[:10] == (datetime.now(timezone.utc) + 365 * DAY).strftime("%Y-%m-%d")
            assert core.status()["links"]["local"]["certificate_ends"] is None
            status = ["status", "--broker", url, "--ca", link["ca"], "--cert", link["cert"], "--key", link["key"]]
            assert marram(*status, "--core", "press-7").returncode == 0
            assert "TLS_CERTIFICATE_REQUIRED" in marram(*status[:5], "--core", "press-7").stderr
            told = marram("status", "--broker", url, "--config", str(core.config))
            assert '"core": "press-7"' in told.stdout, told.stderr


def marram(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)


# -- when certificates are valid -----------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [(-1, 1), (-20_000, 1), (-1, 40_000), (-1, 400_000)])
def test_the_times_of_a_certificate_are_those_that_cryptography_reads(
    authority: Authority, days: tuple[int, int]
) -> None:
    pem = authority.issue("a", begins=timedelta(days=days[0]), ends=timedelta(days=days[1])).cert.read_bytes()
    found, read = validity(pem), x509.load_pem_x509_certificate(pem)
    assert found is not None
    assert found.begins_s == read.not_valid_before_utc.timestamp()
    assert found.ends_s == read.not_valid_after_utc.timestamp()
    assert (found.problem(time.time()) is None) == (days[0] < 0 < days[1])


def test_what_is_no_certificate(authority: Authority) -> None:
    pem = authority.issue("a").cert.read_bytes()
    for length in range(0, len(pem), 7):
        validity(pem[:length] + b"\n-----END CERTIFICATE-----")
    assert validity(b"") is None
    assert validity(b"-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----") is None
