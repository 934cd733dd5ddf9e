"""The embedded broker with users, rules and TLS: mosquitto's own clients ask, and mosquitto itself is the oracle."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from agent import settings
from agent.errors import ConfigError
from agent.messages import Inbound, Outbound
from agent.mqtt.access import OWN_NAME, Access, AccessError, fits, hashed, read_rules, read_users
from agent.mqtt.broker import EmbeddedBroker
from agent.mqtt.guard import guard_of, own_login
from agent.mqtt.link import Link
from agent.settings import reader
from agent.trust import broker_users
from tests.agent_kit import Core
from tests.certificate_kit import Authority
from tests.mqtt_kit import PlainClient, accepts, free_port, mosquitto, until, wait_until

RULES = """# who may do what
user hmi
topic read sensors/#
topic deny sensors/secret/#
topic write orders/+

user admin
topic #

pattern readwrite devices/%u/#
pattern write clients/%c/state
"""


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(test(), 90)

    asyncio.run(bounded())


# -- decisions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A password file: three users, the password being the name backwards."""
    file = tmp_path_factory.mktemp("users") / "users"
    for name in ("hmi", "admin", "press-1"):
        broker_users.put(file, name, name[::-1])
    return file


ASKED = [
    (user, access, topic)
    for user in ("hmi", "admin", "press-1")
    for access in ("read", "write")
    for topic in ("sensors/a", "sensors/secret/a", "orders/1", "orders/1/2", "devices/hmi/x", "devices/press-1/x/y",
                  "clients/press-1/state", "clients/hmi/state", "devices/hmi", "other")
]  # fmt: skip


def test_the_rules_decide_as_mosquitto_does(tmp_path: Path, users: Path) -> None:
    """Every user publishes on every topic; who may hear it hears it, from mosquitto and by our reading."""
    rules, passwords = tmp_path / "acl", tmp_path / "users"
    rules.write_text(RULES)
    shutil.copy(users, passwords)
    for file in (rules, passwords):
        file.chmod(0o644)
    options = (f"password_file {passwords}", f"acl_file {rules}")
    access = Access(read_users(passwords.read_text()), read_rules(RULES))
    with mosquitto(tmp_path / "b", options=options, anonymous=False) as broker:
        names = ("hmi", "admin", "press-1")
        clients = {n: PlainClient(broker.port, n, username=n, password=n[::-1], protocol=paho.MQTTv311) for n in names}
        for client in clients.values():
            client.subscribe("#")
        for user, _, topic in [each for each in ASKED if each[1] == "write"]:
            clients[user].publish(topic, f"{user} {topic}")
        clients["admin"].publish("other", "end")
        wait_until(lambda: b"end" in clients["admin"].payloads(), "the last")
        time.sleep(0.3)  # what must not come has had its time
        for client in clients.values():
            client.close()
    heard = {name: set(client.payloads()) for name, client in clients.items()}
    for user, _, topic in [each for each in ASKED if each[1] == "write"]:
        written = access.may(user, user, "write", topic)
        for name in names:
            expected = written and access.may(name, name, "read", topic)
            assert (f"{user} {topic}".encode() in heard[name]) == expected, (user, topic, name)


def test_passwords_are_mosquittos(tmp_path: Path) -> None:
    file = tmp_path / "users"
    file.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", str(file), "press", "Pa:ss w/örd"], check=True)
    value = read_users(file.read_text())["press"]
    assert fits("Pa:ss w/örd", value)
    assert not fits("Pa:ss w/ord", value)
    assert fits("x", hashed("x", bytes(12), 1000))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("topic read a", 1), ("user a\ntopc read a", 2), ("user a\ntopic read a/#/b", 2), ("user", 1),
        ("# fine\n\npattern read a+", 3),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_read_are_named_by_their_line(text: str, line: int) -> None:
    with pytest.raises(AccessError, match=f"line {line}"):
        read_rules(text)


@pytest.mark.parametrize("text", ["a", "a:b", "a:$6$aa$bb", f"{OWN_NAME}:{hashed('x', bytes(12), 1)}", "a b:c"])
def test_users_that_cannot_be_read(text: str) -> None:
    with pytest.raises(AccessError, match="line 1"):
        read_users(text)


def test_a_name_with_wildcards_fits_no_pattern() -> None:
    access = Access({}, read_rules("pattern readwrite devices/%u/#\npattern readwrite c/%c"))
    assert access.may("a", "c", "write", "devices/a/b")
    assert not access.may("+", "c", "write", "devices/a/b")
    assert not access.may("a/b", "c", "write", "devices/a/b")
    assert not access.may("a", "#", "write", "c/d")
    assert not access.may(None, "", "write", "devices//b")


# -- the broker --------------------------------------------------------------------------------------------------------


class Site:
    """An embedded broker with users, rules and TLS, and the agent's own link to it."""

    def __init__(self, directory: Path, users: Path) -> None:
        self.authority = Authority(directory / "ca")
        self.pair = self.authority.issue("broker")
        self.users, self.acl = directory / "users", directory / "acl"
        shutil.copy(users, self.users)
        self.acl.write_text(RULES)
        self.port = free_port()
        self.settings = own_login(
            settings.Link("local", "embedded", f"0.0.0.0:{self.port}", cert=self.pair.cert, key=self.pair.key,
                          users=self.users, acl=self.acl)
        )  # fmt: skip
        self.broker = EmbeddedBroker(self.settings.listen, guard_of(self.settings))
        self.received: list[str] = []

    def link(self, client_id: str = "press-7-local", **changes: Any) -> Link:
        return Link(
            replace(self.settings, **changes),
            client_id=client_id, core="press-7", max_backoff_s=0.2,
            on_message=self._on_message, on_up=lambda: None, on_down=lambda: None,
        )  # fmt: skip

    def _on_message(self, message: Inbound) -> None:
        self.received.append(f"{message.topic} {message.payload.decode()}")

    async def say(self, *arguments: str, user: str | None = None, password: str | None = None, tls: bool = True) -> int:
        """mosquitto_pub's exit code."""
        return (await self._client("mosquitto_pub", "-q", "1", *arguments, user=user, password=password, tls=tls))[0]

    async def hear(self, *arguments: str, user: str) -> tuple[int, str]:
        """mosquitto_sub's exit code and what it printed within a second."""
        return await self._client("mosquitto_sub", "-v", "-W", "1", *arguments, user=user, password=user[::-1])

    async def _client(self, *command: str, user: str | None, password: str | None, tls: bool = True) -> tuple[int, str]:
        login = ("-u", user, "-P", password or "") if user else ()
        trust = ("--cafile", str(self.authority.ca)) if tls else ()
        place = ("-h", "localhost", "-p", str(self.port), "-V", "mqttv311", *trust)
        child = await asyncio.create_subprocess_exec(
            *command, *login, *place, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        out, _ = await asyncio.wait_for(child.communicate(), 20)
        return child.returncode or 0, out.decode()


def test_beyond_loopback_only_who_may_is_let_in_over_tls(
    tmp_path: Path, users: Path, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(tmp_path, users)

    async def main() -> None:
        await site.broker.start()
        link = site.link()
        link.set_filters(["#"])
        link.start()
        await until(lambda: link.connected, f"up: {link.last_error}")
        await link.settled()
        # who is let in
        assert await site.say("-t", "orders/1", "-m", "1", user="hmi", password="imh") == 0
        assert await site.say("-t", "orders/1", "-m", "no", user="hmi", password="wrong") != 0
        assert await site.say("-t", "orders/1", "-m", "no", user="nobody", password="x") != 0
        assert await site.say("-t", "orders/1", "-m", "no") != 0
        assert await site.say("-t", "orders/1", "-m", "no", user=OWN_NAME, password="guess") != 0
        assert await site.say("-t", "orders/1", "-m", "no", user="hmi", password="imh", tls=False) != 0
        # who may write
        assert await site.say("-t", "sensors/a", "-m", "no", user="hmi", password="imh") == 0  # 3.1.1 cannot say no
        assert await site.say("-t", "devices/press-1/x", "-m", "2", user="press-1", password="1-sserp") == 0
        await until(lambda: len(site.received) == 2, f"two: {site.received}")
        # who may read: what is kept, and what comes
        for topic in ("sensors/a", "sensors/secret/a", "devices/press-1/kept"):
            link.publish(Outbound(topic, b"kept", retain=True))
        code, heard = await site.hear("-t", "#", user="hmi")
        assert (code, heard) == (27, "sensors/a kept\n")
        code, heard = await site.hear("-t", "devices/press-1/#", user="press-1")
        assert heard == "devices/press-1/kept kept\n"
        code, heard = await site.hear("-t", "orders/#", user="press-1")
        assert (code, heard) == (0, ""), "refused at once: behind that filter it may read nothing"
        # nobody takes over the agent's session, and nobody leaves a will where he may not publish
        generation = link.generation
        taken = ("-i", "press-7-local", "-t", "devices/hmi/a", "-m", "x")
        assert await site.say(*taken, user="hmi", password="imh") != 0
        assert await site.say(*taken) != 0
        will = ("--will-topic", "marram/press-7/deployments", "--will-payload", "{}", "-t", "orders/1", "-m", "no")
        assert await site.say(*will, user="hmi", password="imh") != 0
        link.publish(Outbound("devices/agent", b"still here"))
        await until(lambda: "devices/agent still here" in site.received, "the agent goes on")
        assert link.generation == generation
        await link.stop()
        # the agent talks to its own broker only
        other = site.authority.issue("somebody-else")
        stranger = site.link(cert=other.cert)
        stranger.start()
        await until(lambda: (stranger.last_error or "").startswith("TLS_UNTRUSTED"), f"pinned: {stranger.last_error}")
        await stranger.stop()
        await site.broker.stop()

    run(main)
    assert site.settings.password
    assert site.settings.password not in caplog.text


def test_users_and_certificates_are_renewed_while_it_runs(
    tmp_path: Path, users: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, users)
    code = "import agent.mqtt.guarded as g; g.WATCH_S = 0.05; from agent.mqtt.broker import serve"

    async def main() -> None:
        # as EmbeddedBroker starts it, with a shorter watch
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"{code}; serve({site.settings.listen!r}, parent={os.getpid()})",
            stdin=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert child.stdin is not None
        child.stdin.write(guard_of(site.settings).encoded())
        child.stdin.close()
        link = site.link()
        link.start()
        await until(lambda: link.connected, f"up: {link.last_error}")
        assert await site.say("-t", "orders/1", "-m", "1", user="hmi", password="imh") == 0

        staying = site.link("hmi-client", username="hmi", password="imh")
        staying.start()
        await until(lambda: staying.connected, f"up: {staying.last_error}")
        await asyncio.to_thread(broker_users.remove, site.users, "hmi")
        await asyncio.to_thread(broker_users.put, site.users, "new", "wen")
        site.authority.issue("broker-2", cert=site.pair.cert)
        await until(lambda: (staying.last_error or "").startswith("LOGIN_REFUSED"), "thrown out and not let in again")
        await staying.stop()

        async def let_in(user: str, password: str) -> bool:
            return await site.say("-t", f"devices/{user}/a", "-m", "1", user=user, password=password) == 0

        while not await let_in("new", "wen"):
            pass
        assert not await let_in("hmi", "imh")
        assert link.connected
        # the agent finds the broker's new certificate in the file
        again = site.link()
        await link.stop()
        again.start()
        await until(lambda: again.connected, f"with the new certificate: {again.last_error}")
        await again.stop()
        child.send_signal(signal.SIGTERM)
        assert await child.wait() == 0

    run(main)
    assert "BROKER_REFUSED: client" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (lambda site: site.users.write_text("nonsense"), "BROKER_USERS"),
        (lambda site: site.users.chmod(0o644), "PASSWORD_FILE_LOOSE"),
        (lambda site: site.acl.write_text("nonsense"), "BROKER_ACL"),
        (lambda site: site.pair.key.chmod(0o604), "KEY_FILE_LOOSE"),
        (lambda site: site.authority.issue("x", cert=site.pair.cert.with_name("y.crt")).key.replace(site.pair.key),
         "BROKER_CERTIFICATE"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used_are_said_at_the_start(
    tmp_path: Path, users: Path, broken: Callable[[Site], object], code: str
) -> None:
    site = Site(tmp_path, users)
    broken(site)
    with pytest.raises(ConfigError, match=code):
        run(site.broker.start)


def test_who_says_nothing_is_hung_up_on() -> None:
    port = free_port()
    code = "import agent.mqtt.guarded as g; g.CONNECT_S = 0.2; from agent.mqtt.broker import main"
    broker = subprocess.Popen([sys.executable, "-c", f"{code}; main('127.0.0.1:{port}')"])
    try:
        wait_until(lambda: accepts(port) or broker.poll() is not None, "it listens")
        with socket.create_connection(("127.0.0.1", port), 20) as idle:
            assert idle.recv(1) == b""
        with PlainClient(port, "one", protocol=paho.MQTTv311) as client:
            client.subscribe("a")
            client.publish("a", b"x")
            client.wait_for(1)
    finally:
        broker.terminate()
        broker.wait(20)


# -- settings and commands ---------------------------------------------------------------------------------------------


def problems(folder: Path, local: str) -> str:
    (folder / "topics.yaml").write_text(f"core: a\nlinks: {{local: {{url: embedded, {local}}}}}")
    with pytest.raises(ConfigError) as caught:
        reader.load(folder / "topics.yaml")
    return caught.value.message


def test_beyond_loopback_it_is_refused_unless_it_is_guarded_or_meant(tmp_path: Path, users: Path) -> None:
    pair = Authority(tmp_path).issue("b")
    shutil.copy(users, tmp_path / "users")
    certificate = f"cert: {pair.cert}, key: {pair.key}"

    def warnings(local: str) -> tuple[str, ...]:
        (tmp_path / "topics.yaml").write_text(
            f"core: a\nlinks: {{local: {{url: embedded, {local}}}, cloud: 'mqtt://127.0.0.1:1'}}"
        )
        return reader.load(tmp_path / "topics.yaml").warnings

    for listen in ("0.0.0.0:8883", "192.0.2.1:8883", "'[::]:8883'", "broker.local:8883"):
        found = problems(tmp_path, f"listen: {listen}")
        assert "allow_anonymous: true" in found
        assert "allow_unencrypted: true" in found
    assert "allow_anonymous" not in problems(tmp_path, "listen: 0.0.0.0:1, users: users")
    assert "allow_unencrypted" not in problems(tmp_path, f"listen: 0.0.0.0:1, {certificate}")
    assert warnings(f"listen: 0.0.0.0:1, users: users, {certificate}") == ()
    assert warnings("listen: 127.0.0.1:1, users: users") == ()
    (warning,) = warnings("listen: 0.0.0.0:1, allow_anonymous: true, allow_unencrypted: true")
    assert "may publish and read" in warning
    assert "give `users`" in problems(tmp_path, "acl: users")
    assert "BROKER" not in problems(tmp_path, "users: none")
    assert "none cannot be used: No such file" in problems(tmp_path, "users: none")
    assert "asks nobody for a certificate" in problems(tmp_path, f"ca: {pair.cert}")


def test_whoever_may_deploy_over_it_is_warned_of(tmp_path: Path, users: Path) -> None:
    shutil.copy(users, tmp_path / "users")
    (tmp_path / "acl").write_text(RULES)
    for more, count in (("", 1), (", acl: acl", 0)):
        (tmp_path / "topics.yaml").write_text(f"core: a\nlinks: {{local: {{url: embedded, users: users{more}}}}}")
        found = [each for each in reader.load(tmp_path / "topics.yaml").warnings if "may deploy" in each]
        assert len(found) == count


def marram(directory: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent", *arguments, "--config", str(directory / "topics.yaml")],
        input=stdin, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip


def test_the_command_makes_the_password_file(tmp_path: Path) -> None:
    (tmp_path / "topics.yaml").write_text("core: a\nlinks: {local: {url: embedded, users: users}}")
    file = tmp_path / "users"
    assert marram(tmp_path, "broker", "users", "add", "hmi", stdin="secret words\n").returncode == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert fits("secret words", read_users(file.read_text())["hmi"])
    assert "another password" in marram(tmp_path, "broker", "users", "add", "hmi", stdin="other\n").stdout
    marram(tmp_path, "broker", "users", "add", "press-1", stdin="x\n")
    assert marram(tmp_path, "broker", "users", "ls").stdout.split() == ["hmi", "press-1"]
    assert marram(tmp_path, "broker", "users", "rm", "hmi").returncode == 0
    assert marram(tmp_path, "broker", "users", "ls").stdout.split() == ["press-1"]
    for words, code in ((("rm", "hmi"), "BROKER_USER_NAME"), (("add", "a:b"), "BROKER_USER_NAME"),
                        (("add", OWN_NAME), "BROKER_USER_NAME"), (("add", "c"), "BROKER_PASSWORD")):  # fmt: skip
        said = marram(tmp_path, "broker", "users", *words)
        assert (said.returncode, code in said.stderr, "Traceback" in said.stderr) == (78, True, False)


def test_the_command_opens_no_broker_to_all(tmp_path: Path) -> None:
    (tmp_path / "topics.yaml").write_text("core: a")
    said = marram(tmp_path, "broker", "--listen", f"0.0.0.0:{free_port()}")
    assert (said.returncode, "BROKER_OPEN" in said.stderr) == (78, True)


@pytest.fixture
def guarded_core(tmp_path: Path, users: Path) -> Iterator[tuple[Core, int]]:
    port, file = free_port(), tmp_path / "users"
    shutil.copy(users, file)
    local = {"url": "embedded", "listen": f"127.0.0.1:{port}", "users": str(file)}
    with Core(tmp_path / "core", local=local) as core:
        yield core, port


def test_an_agent_on_its_guarded_broker(guarded_core: tuple[Core, int]) -> None:
    """On loopback without TLS; the agent is in by a secret of its own, others by their passwords."""
    core, port = guarded_core
    core.wait_linked()
    with PlainClient(port, "one", protocol=paho.MQTTv311, username="hmi", password="imh") as client:
        client.subscribe("marram/#")
        client.wait_for(1)
    assert core.process is not None
    for pid in Path("/proc").glob("[0-9]*"):
        try:
            line = (pid / "cmdline").read_bytes()
        except OSError:
            continue
        assert OWN_NAME.encode() not in line
