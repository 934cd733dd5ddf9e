"""Options and fixtures that several areas share."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.agent_kit import Core
from tests.mqtt_kit import Mosquitto, PlainClient
from tests.s3_kit import S3Server, s3_server

__all__ = ["s3_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-report", type=Path, metavar="FILE", help="write the fault tests' figures to this page")
    parser.addoption("--soak", action="store_true", help="run the fault tests at their full counts (scripts/soak)")


@pytest.fixture(scope="session")
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether the fault tests run at their full counts."""
    return bool(request.config.getoption("--soak"))


@dataclass
class Site:
    """A core with its local broker, the cloud's broker and the cloud's store."""

    directory: Path
    local: Mosquitto
    cloud: Mosquitto
    s3: S3Server

    def core(self, **more: object) -> Core:
        """The core of this site; `more` as `Core` takes it."""
        links = {"local": {"url": self.local.url}, "cloud": {"url": self.cloud.url}}
        return Core(self.directory / "core", s3=self.s3, **{**links, **more})  # type: ignore[arg-type]

    def device(self, name: str = "device", *, session_expiry_s: int = 0) -> PlainClient:
        return PlainClient(self.local.port, name, session_expiry_s=session_expiry_s)

    def observer(self, name: str = "cloud-observer") -> PlainClient:
        return PlainClient(self.cloud.port, name)


@pytest.fixture
def site(tmp_path: Path, s3_server: S3Server) -> Iterator[Site]:
    """Two mosquittos that keep what they must over a restart, and the store; no agent yet."""
    local = Mosquitto(tmp_path / "local-broker", persistence=True)
    cloud = Mosquitto(tmp_path / "cloud-broker", persistence=True)
    with local, cloud:
        yield Site(tmp_path, local, cloud, s3_server)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With --soak-report, keeps the figures that the fault tests recorded."""
    file = config.getoption("--soak-report")
    if file is None:
        return
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, []) if r.when == "call"]
    file.write_text(soak_page(reports), encoding="utf-8")


def soak_page(reports: list[pytest.TestReport]) -> str:
    """The results of the fault tests as a page."""
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    lines = [
        "# Faults at full count",
        "",
        f"Written by `scripts/soak` on {when}: {os.cpu_count()} cores, Python {platform.python_version()},"
        f" Linux {platform.release().split('-')[0]}.",
        "",
        "| test | result | figures | seconds |",
        "|---|---|---|---|",
    ]
    for report in reports:
        name = report.nodeid.split("::")[-1].removeprefix("test_").replace("_", " ")
        figures = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in report.user_properties)
        lines.append(f"| {name} | {report.outcome} | {figures} | {report.duration:.0f} |")
    return "\n".join(lines) + "\n"
