"""The settings of one core, read once from topics.yaml into one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Link:
    """How to reach one broker.

    Attributes:
        name: ``local`` or ``cloud``.
        url: ``embedded``, ``mqtt://host:port`` or ``mqtts://host:port``, with user and password in it where wanted.
        listen: where the embedded broker listens, ``host:port``; loopback unless told otherwise.
        ca, cert, key: PEM files for TLS, absolute.
        keepalive_s: MQTT keep-alive, seconds.
    """

    name: str
    url: str
    listen: str = "127.0.0.1:1883"
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str | None = None
    password: str | None = None
    keepalive_s: int = 30


@dataclass(frozen=True, slots=True)
class Topics:
    """Topic templates; ``{core}`` is already filled in, the others are filled in at use."""

    deployments: str
    deployment_status: str
    state: str
    capture: str
    errors: str


@dataclass(frozen=True, slots=True)
class Subscription:
    """Messages of `source` whose topic matches `subject` go to `target`.

    Attributes:
        source, target: ``local``, ``cloud`` or ``function:ID``.
        subject: an MQTT topic filter.
        id: the subscription's Id in its group; empty for those of topics.yaml.
    """

    source: str
    subject: str
    target: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a deployment may do on this core. An empty policy allows nothing."""

    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    interpreters: Mapping[str, str] = field(default_factory=dict)
    trusted_keys: tuple[Path, ...] = ()
    allow_unsigned_code: bool = False
    allow_root: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything in topics.yaml.

    Attributes:
        file: the file that was read, absolute.
        core: this device's name.
        state: the state directory, absolute.
        functions: folders in which a function's folder is looked for, absolute.
        local, cloud: the links; `cloud` is None where the file says ``cloud: local`` (one connection for both).
    """

    file: Path
    core: str
    state: Path
    functions: tuple[Path, ...]
    local: Link
    cloud: Link | None
    topics: Topics
    subscriptions: tuple[Subscription, ...]
    policy: Policy
