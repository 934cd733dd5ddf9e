"""Where the core is that a command speaks with: on this device, or behind a broker, and by which topics."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from agent.errors import ConfigError
from agent.settings import Link, Settings
from agent.settings.reader import load
from agent.values import dataclass

CORE: Final = r"[A-Za-z0-9:_-]{1,128}"
PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
DEFAULT_TOPICS: Final = {
    "deployments": "marram/{core}/deployments",
    "deployment_status": "marram/{core}/deployments/{deployment}/status",
    "state": "marram/{core}/state",
    "capture": "marram/{core}/capture/{function}",
}


@dataclass(frozen=True, slots=True)
class Far:
    """A core behind a broker.

    Attributes:
        link: how the broker is reached.
        topics: the core's own, by their names in topics.yaml.
    """

    link: Link
    core: str
    topics: Mapping[str, str]

    def topic(self, name: str, deployment: str = "") -> str:
        """One of the core's topics."""
        return self.topics[name].replace("{core}", self.core).replace("{deployment}", deployment)

    def filter(self, name: str) -> str:
        """What all topics of a template match; a level with a placeholder in it is any one level."""
        levels = self.topics[name].replace("{core}", self.core).split("/")
        return "/".join("+" if "{" in level else level for level in levels)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the core is: on this device (`config` tells its state directory), or behind a broker.

    Attributes:
        told: `config` was named for this command, not taken by default: with a broker, its topics are the core's, and
            of its link to that broker whatever is not said otherwise.
        password_file: for the user in the broker's url.
    """

    config: Path
    broker: str | None = None
    core: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    password_file: Path | None = None
    told: bool = False

    def settings(self) -> Settings:
        return load(self.config, strict=False)

    def remote(self) -> Far:
        """The core behind the broker.

        Raises:
            ConfigError: CORE_MISSING, BAD_CORE, BAD_URL; what is wrong with `config`.
        """
        assert self.broker is not None
        settings = self.settings() if self.told else None
        core = self.core or (settings.core if settings else None)
        if not core:
            text = "--broker needs --core."
            raise ConfigError(
                "CORE_MISSING", text, "Name the core as its topics.yaml does, or give that with --config."
            )
        if not re.fullmatch(CORE, core):
            text = f"--core {core!r} is no core's name."
            raise ConfigError("BAD_CORE", text, "A name is 1 to 128 of the characters A-Z a-z 0-9 : _ -.")
        link = self._link(self.broker)
        if settings is None:
            return Far(link, core, DEFAULT_TOPICS)
        if core != settings.core:
            text = f"--core {core!r} is not the core of {self.config}, which is {settings.core!r}."
            raise ConfigError("BAD_CORE", text, "Leave one of them out.")
        named = {name: getattr(settings.topics, name) for name in DEFAULT_TOPICS}
        return Far(_completed(link, settings), core, named)

    def _link(self, broker: str) -> Link:
        try:
            parts = urlsplit(broker)
            host, port = parts.hostname, parts.port or PORTS[parts.scheme]
        except (ValueError, LookupError):
            host, port = None, 0
        if not host:
            raise ConfigError("BAD_URL", "--broker is no broker's URL.", "Write mqtt://host:1883 or mqtts://host:8883.")
        if (self.cert is None) != (self.key is None):
            text = "--cert and --key go together, and one of them is missing."
            raise ConfigError("BAD_URL", text, "Give both, or neither.")
        if parts.scheme == "mqtt" and (self.ca or self.cert):
            text = "--ca, --cert and --key are of use with an mqtts:// broker only."
            raise ConfigError("BAD_URL", text, "Write mqtts://host:8883, or leave them out.")
        return Link(
            "cloud",
            f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}",
            ca=self.ca,
            cert=self.cert,
            key=self.key,
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            password_file=self.password_file,
        )


def _completed(link: Link, settings: Settings) -> Link:
    """The link with what the settings say of the same broker and the command does not."""
    for known in (settings.cloud, settings.local):
        if known is None or known.embedded or known.url != link.url:
            continue
        files = {"ca": link.ca or known.ca, "alpn": known.alpn}
        if link.cert is None:
            files |= {"cert": known.cert, "key": known.key}
        if link.username is None:
            files |= {name: getattr(known, name) for name in ("username", "password", "password_file", "password_env")}
        return dataclasses.replace(link, **files)  # type: ignore[arg-type]
    return link
