"""The settings of one core, read once from topics.yaml into one frozen value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from urllib.parse import urlsplit

from agent.values import dataclass

EMBEDDED = "embedded"
_AWS_HOST = re.compile(r"\.iot\.[a-z0-9-]+\.amazonaws\.com(\.cn)?$")


@dataclass(frozen=True, slots=True)
class Link:
    """How to reach one broker.

    Attributes:
        name: ``local`` or ``cloud``.
        url: ``embedded``, ``mqtt://host:port`` or ``mqtts://host:port``; the reader moves the credentials in the file's
            to `username` and `password` and fills in the port, so that it can be logged.
        listen: where the embedded broker listens, ``host:port``; loopback unless told otherwise.
        ca, cert, key: PEM files for TLS, absolute; without `ca` the system's authorities are trusted. Of the embedded
            broker, `cert` and `key` are the broker's own.
        username, password: for the broker's CONNECT; never logged.
        password_file: holds the password in its first line; read at each connect.
        password_env: the environment variable that holds the password.
        alpn: what is said to be spoken in the TLS handshake; None: nothing, but for AWS IoT Core on port 443.
        users: the embedded broker's password file, as mosquitto_passwd writes it; None: everybody is let in.
        acl: the embedded broker's access rules, as mosquitto reads them; None: users may do everything.
        keepalive_s: MQTT keep-alive, seconds.
    """

    name: str
    url: str
    listen: str = "127.0.0.1:1883"
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = 30
    password_file: Path | None = None
    password_env: str | None = None
    alpn: str | None = None
    users: Path | None = None
    acl: Path | None = None

    @property
    def embedded(self) -> bool:
        """Whether the agent starts this link's broker itself."""
        return self.url == EMBEDDED

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.url.startswith("mqtts:") or (self.embedded and self.cert is not None)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port to connect to; for an embedded broker, where it listens."""
        parts = urlsplit(f"//{self.listen}" if self.embedded else self.url)
        return parts.hostname or "", parts.port or (8883 if self.tls else 1883)

    @property
    def aws(self) -> bool:
        """Whether the link leads to AWS IoT Core, whose limits are narrower than MQTT's."""
        return not self.embedded and _AWS_HOST.search(self.address[0]) is not None

    @property
    def files(self) -> tuple[Path, ...]:
        """What a connection is made with and may be renewed on the disk at any time."""
        if self.embedded:
            return ()  # its certificate is the broker's
        return tuple(file for file in (self.ca, self.cert, self.key, self.password_file) if file is not None)


@dataclass(frozen=True, slots=True)
class AwsRole:
    """AWS credentials for the thing's certificate, from AWS IoT's credential provider.

    Attributes:
        endpoint: the provider's ``host`` or ``host:port``.
        role_alias: names the IAM role in AWS IoT.
        cert, key, ca: PEM files, absolute, as text; without `ca` the system's authorities are trusted.
    """

    endpoint: str
    role_alias: str
    thing: str
    cert: str
    key: str
    ca: str | None = None

    @property
    def name(self) -> str:
        """The role as errors name it."""
        return f"the role alias {self.role_alias} at {self.endpoint}"


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
class TrustedKey:
    """An Ed25519 public key: the file that it was read from, absolute, and its 32 bytes."""

    file: Path
    raw: bytes


@dataclass(frozen=True, slots=True)
class Quotas:
    """The most that one deployment may ask for; None: as much as the document's own bounds allow.

    Attributes:
        processes: of all functions together.
        memory_bytes: MemorySize times Processes of all functions together; each must then state its MemorySize.
    """

    resources: int | None = None
    functions: int | None = None
    subscriptions: int | None = None
    processes: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What a deployment may do on this core. An empty policy allows nothing."""

    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    interpreters: Mapping[str, str] = field(default_factory=dict)
    trusted_keys: tuple[TrustedKey, ...] = ()
    allow_unsigned_code: bool = False
    allow_root: bool = False
    local: tuple[str, ...] = ()
    allow_dotted_buckets: bool = False
    quotas: Quotas = Quotas()


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Bounds of one fetch.

    Attributes:
        max_bytes: of one archive.
        free_bytes: what must stay free on the disk.
        max_bytes_per_s: of all that is fetched; None: as fast as it comes.
        attempts: tries in a row that bring nothing; one that brings bytes starts the count again.
        backoff_s: longest pause between tries, seconds.
        stall_s: how long nothing may come before a connection is given up, seconds.
        min_bytes_per_s: a connection that brings less for `stall_s` is given up, too.
        sync_bytes: how often what was fetched is synced; what was not is fetched again after a crash.
        sync_s: the same by time, seconds.
    """

    max_bytes: int = 4 * 1024**3
    free_bytes: int = 64 * 1024**2
    max_bytes_per_s: int | None = None
    attempts: int = 6
    backoff_s: float = 10.0
    stall_s: float = 20.0
    min_bytes_per_s: int = 128
    sync_bytes: int = 256 * 1024**2
    sync_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Caps:
    """How much may come out of one archive.

    Attributes:
        total_bytes: of all its files, and of what lies between them.
        ratio: bytes out for each byte in, once more than `ratio_from_bytes` came out. Weights shrink by 10 at most.
        depth: levels of folders.
        name_bytes: of a whole path in UTF-8.
    """

    total_bytes: int = 8 * 1024**3
    members: int = 20_000
    depth: int = 32
    name_bytes: int = 1024
    ratio: int = 200
    ratio_from_bytes: int = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of earlier groups.

    Attributes:
        groups: how many, the current one and the one before it included; these two, and those that workers still run
            of, are kept in any case.
        max_bytes: of all models and code together, above which the oldest groups go; None: any.
    """

    groups: int = 3
    max_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SpoolClass:
    """How records of one kind are kept.

    Attributes:
        max_bytes, max_count: the most that is kept, over all links; None: what the whole spool allows.
        ttl_s: how long a record waits at most, seconds; None: for ever.
        newest_first: the newest goes out first, which waives the order.
        weight: the share of a link when other kinds wait too.
    """

    max_bytes: int | None = None
    max_count: int | None = None
    ttl_s: float | None = None
    newest_first: bool = False
    weight: int = 1


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """Bounds of the spool.

    Attributes:
        max_bytes: of all records together.
        free_bytes: what stays free on its disk, a twentieth of the disk at most: below it the spool does not grow.
        file_bytes: larger records are files beside the database.
        memory_bytes: of what is not committed yet; above it no request is taken into the inbox.
        tries: how often a record that its broker refuses for now is tried before it counts as dead.
        dead: how much is kept of what can never be handed over.
    """

    max_bytes: int = 256 * 1024**2
    free_bytes: int = 32 * 1024**2
    file_bytes: int = 256 * 1024
    memory_bytes: int = 16 * 1024**2
    tries: int = 10
    report: SpoolClass = SpoolClass(weight=4)
    result: SpoolClass = SpoolClass(weight=8)
    capture: SpoolClass = SpoolClass()
    dead: SpoolClass = SpoolClass(max_bytes=16 * 1024**2, max_count=1000)

    def of(self, kind: str) -> SpoolClass:
        """The class of ``report``, ``result``, ``capture`` or ``dead``."""
        found: SpoolClass = getattr(self, kind)
        return found


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What is remembered of requests that had their outcome, for who asks again with the same id.

    Attributes:
        max_count: requests; 0 remembers none.
        max_bytes: of these requests and their answers.
        keep_s: how long, seconds.
    """

    max_count: int = 1024
    max_bytes: int = 4 * 1024**2
    keep_s: float = 300.0


@dataclass(frozen=True, slots=True)
class CaptureLimits:
    """How much training data leaves the core, and how.

    Attributes:
        bytes_per_day: of all samples that are kept on one day (UTC); None: any number.
        encoding: of samples, ``json`` or ``msgpack``.
        max_bytes: of one sample as a message; what is larger goes to `s3`, or is dropped. None: what the broker takes.
        s3: where payloads go that are too large for a message, ``s3://bucket/prefix``; None: nowhere.
        disk_bytes: of those that wait on the core for their upload.
    """

    bytes_per_day: int | None = None
    encoding: str = "json"
    max_bytes: int | None = None
    s3: str | None = None
    disk_bytes: int = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything in topics.yaml.

    Attributes:
        file: the file that was read, absolute.
        core: this device's name.
        state: the state directory, absolute.
        functions: folders in which a function's folder is looked for, absolute.
        local, cloud: the links; `cloud` is None where the file says ``cloud: local`` (one connection for both).
        fetch: how sources are fetched.
        unpack: how much may come out of an archive.
        retention: what is kept of earlier groups.
        spool: what is kept until a broker takes it.
        answers: what is remembered for who asks again.
        capture: how much training data leaves the core.
        aws: the role whose AWS credentials a deployment's child gets; None: boto3's own variables and files count.
        jobs: the thing's name whose AWS IoT Jobs are a channel of deployments on the cloud link; None: they are not.
        warnings: what is doubtful in the file and stops nothing, each with its line; for the log and `marram check`.
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
    warnings: tuple[str, ...] = ()
    jobs: str | None = None
    aws: AwsRole | None = None
    fetch: FetchLimits = FetchLimits()
    unpack: Caps = Caps()
    retention: Retention = Retention()
    spool: SpoolLimits = SpoolLimits()
    answers: AnswerLimits = AnswerLimits()
    capture: CaptureLimits = CaptureLimits()

    @property
    def secret_files(self) -> tuple[Path, ...]:
        """What nobody but the agent needs to read: keys, passwords, and this file where a password stands in it."""
        links = [link for link in (self.local, self.cloud) if link is not None]
        found = [file for link in links for file in (link.key, link.password_file, link.users) if file is not None]
        found += [Path(self.aws.key)] if self.aws is not None else []
        found += [self.file] if any(link.password for link in links) else []
        return tuple(dict.fromkeys(found))
