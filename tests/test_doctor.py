"""`marram doctor` on real brokers, stores and certificates: what is well is ok, what is not names its remedy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from agent.doctor import machine
from agent.doctor.delay import delay_s
from agent.mqtt.connecting import address_of
from agent.settings import Link
from tests.certificate_kit import DAY, Authority
from tests.conftest import Site
from tests.mqtt_kit import Mosquitto

MARRAM = Path(sys.executable).with_name("marram")


class Examined(NamedTuple):
    code: int
    findings: dict[str, dict[str, str]]

    def status(self, name: str) -> str:
        return self.findings[name]["status"]


def doctor(
    directory: Path, settings: Mapping[str, Any] | None, environment: Mapping[str, str] | None = None
) -> Examined:
    if settings is not None:
        (directory / "topics.yaml").write_text(yaml.safe_dump({"core": "c", **settings}))
    done = subprocess.run(
        [MARRAM, "doctor", "--json"],
        cwd=directory, capture_output=True, text=True, timeout=120, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    assert not done.stderr, done.stderr
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(each["remedy"] for each in findings if each["status"] != "ok" and not each["code"]), findings
    return Examined(done.returncode, {each["name"]: each for each in findings})


def test_a_machine_where_all_is_well(site: Site) -> None:
    site.s3.put("models", "a", b"x")
    links = {"local": site.local.url, "cloud": site.cloud.url}
    sources = ["s3://models/*", "s3://mod*", "file:///srv/*"]
    found = doctor(site.directory, {"links": links, "policy": {"sources": sources}}, site.s3.environment())
    assert found.code == 0, found
    for name in ("python", "settings", "disk", "agent", "broker local", "broker cloud", "s3 models", "s3 mod*"):
        assert found.status(name) == "ok", found.findings[name]
    assert {"clock", "isolation", "fsync", "delay local"} <= found.findings.keys()
    assert "MQTT 5" in found.findings["broker local"]["text"]
    assert not (site.directory / "state").exists(), "it changes nothing"


def test_a_machine_where_nothing_is(tmp_path: Path) -> None:
    nobody = {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    settings = {"links": {"local": "mqtt://127.0.0.1:1"}, "policy": {"sources": ["s3://models/*"]}}
    found = doctor(tmp_path, settings, nobody)
    assert found.code == 1
    assert found.findings["broker local"]["code"] == "BROKER_UNREACHABLE"
    assert found.findings["s3 models"]["code"] == "SOURCE_UNREACHABLE"


def test_a_bucket_that_is_not_there(site: Site) -> None:
    found = doctor(
        site.directory,
        {"links": {"local": site.local.url}, "policy": {"sources": ["s3://nobodys-bucket/*"]}},
        site.s3.environment(),
    )
    assert found.status("s3 nobodys-bucket") == "fail"


def test_settings_that_are_missing_or_wrong_are_a_finding_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    for settings, code in ((None, "SETTINGS_UNREADABLE"), ({"statee": 1}, "BAD_SETTINGS")):
        found = doctor(tmp_path, settings)
        assert found.code == 1
        assert found.findings["settings"]["code"] == code
        assert found.status("python") == "ok"
        assert any(name.startswith("runtimes of") for name in found.findings)


def test_an_embedded_broker_needs_its_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        settings = {"links": {"local": {"url": "embedded", "listen": listen}}}
        assert "listens on" in doctor(tmp_path, settings).findings["broker local"]["text"]
    assert "free" in doctor(tmp_path, settings).findings["broker local"]["text"]


def test_an_agent_that_runs_is_found_and_its_links_are_told(site: Site) -> None:
    with site.core() as core:
        core.wait_linked()
        found = subprocess.run(
            [MARRAM, "doctor", "--json", "--config", str(core.config)], capture_output=True, text=True, timeout=120
        )
        [agent] = [each for each in map(json.loads, found.stdout.splitlines()) if each["name"] == "agent"]
        assert agent["status"] == "ok"
        assert "links are up" in agent["text"]


@pytest.mark.parametrize(("days", "status"), [(-1, "fail"), (5, "warn"), (300, "ok")])
def test_certificates_are_told_before_they_expire(tmp_path: Path, days: int, status: str) -> None:
    authority = Authority(tmp_path / "keys")
    pair = authority.issue("core", begins=-2 * DAY, ends=days * DAY)
    link = {"url": "mqtts://127.0.0.1:1", "ca": str(authority.ca), "cert": str(pair.cert), "key": str(pair.key)}
    found = doctor(tmp_path, {"links": {"local": link}})
    told = found.findings.get("cert local") or found.findings["settings"]  # the settings refuse one that has expired
    assert told["status"] == status, found
    assert str(pair.cert) in told["text"]


def test_the_delay_is_measured_on_a_broker_with_users_and_one_that_refuses(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "broker") as broker:
        near, took = delay_s(address_of(Link("local", broker.url)))
        assert near > 0
        assert took > 0
    with Mosquitto(tmp_path / "closed", anonymous=False) as broker, pytest.raises(OSError, match="does not let us"):
        delay_s(address_of(Link("local", broker.url)))


def test_the_disk(tmp_path: Path) -> None:
    room, fsync = machine.disk(tmp_path / "not" / "there" / "yet", 1)
    assert (room.status, fsync.name) == ("ok", "fsync")
    assert next(machine.disk(tmp_path, 1 << 62)).status == "fail"


def test_what_it_says_to_a_reader_is_a_line_and_a_remedy(tmp_path: Path) -> None:
    done = subprocess.run([MARRAM, "doctor"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "fail  settings: " in done.stdout
    assert "      Go to the folder" in done.stdout
