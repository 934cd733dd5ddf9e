"""Options and fixtures that several areas share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.agent_kit import Core
from tests.mqtt_kit import Mosquitto, PlainClient
from tests.s3_kit import S3Server, s3_server

__all__ = ["s3_server"]


def pytest_addoption(parser: pytest.Parser) -> None:
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
