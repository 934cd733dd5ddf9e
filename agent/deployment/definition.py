"""The values of a deployment: what a group's document says once it has been read and found right.

Nothing here reads, checks or acts; `document.parse` makes these values and nobody changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Final

from agent.capture.policy import Capture
from agent.settings import Subscription
from agent.values import dataclass

NEW: Final = "NewDeployment"
REDEPLOYMENT: Final = "Redeployment"
RESET: Final = "ResetDeployment"
FORCE_RESET: Final = "ForceResetDeployment"
TYPES: Final = (NEW, REDEPLOYMENT, RESET, FORCE_RESET)
ENDPOINT_ARN: Final = "marram:model"
DEVICE: Final = "device"
VOLUME: Final = "volume"
CONTAINER: Final = "GreengrassContainer"
NO_CONTAINER: Final = "NoContainer"
CURRENT: Final = "AWSCURRENT"  # the staging label of a secret's version in use


@dataclass(frozen=True, slots=True)
class S3Source:
    """An object in any S3: ``s3://bucket/key``."""

    uri: str

    @property
    def name(self) -> str:
        """What the policy's patterns are matched with, and what logs and manifests say."""
        return self.uri


@dataclass(frozen=True, slots=True)
class HttpsSource:
    """An https URL; its query may hold a signature and is never logged, stored in a manifest or reported."""

    url: str

    @property
    def name(self) -> str:
        """The URL without its query."""
        return self.url.partition("?")[0]


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file on the core, absolute."""

    path: str

    @property
    def name(self) -> str:
        """The path as a ``file://`` URL, as the policy's patterns have it."""
        return f"file://{self.path}"


@dataclass(frozen=True, slots=True)
class SageMakerSource:
    """The artefact of a SageMaker training job."""

    arn: str

    @property
    def name(self) -> str:
        """The job's ARN."""
        return self.arn


Source = S3Source | HttpsSource | FileSource | SageMakerSource


@dataclass(frozen=True, slots=True)
class Owner:
    """OwnerSetting: the group (a name or a GID) that a resource's files belong to, and ``ro`` or ``rw``."""

    group: str
    permission: str


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """What a model must answer before it is used.

    Attributes:
        requests: ``{"Inputs": {name: nested lists}, "Outputs": {..}}`` each; an output that is not named may be
            anything but NaN.
        absolute, relative: an output may be off by ``absolute + relative * |expected|``; None: the worker's default.
        max_latency_ms: the longest median of a request's runs; None: any.
        requires: versions that must be installed, by name; only packages carry them here.
    """

    requests: tuple[Mapping[str, Any], ...] = ()
    absolute: float | None = None
    relative: float | None = None
    max_latency_ms: float | None = None
    requires: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resource:
    """A model.

    Attributes:
        destination: DestinationPath, absolute and normalised; None where the document has none.
        digest: the archive's promised ``sha256:..``; None where the document gives none.
        runtime: the runtime's name; None: found out from the files.
        options: settings of the runtime.
        health: the document's health check; a package may carry one of its own.
        requires: versions that must be installed, by the name of a package; ``runtime`` is the runtime's own.
    """

    id: str
    name: str
    source: Source
    destination: str | None = None
    owner: Owner | None = None
    digest: str | None = None
    runtime: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    health: HealthCheck | None = None
    requires: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalResource:
    """A device or a directory of the core that a function may use.

    Attributes:
        kind: `DEVICE` or `VOLUME`.
        source: its path on the core, absolute and normalised.
        destination: where a volume's functions find it; None for a device.
        auto_group: whether workers get the group that owns the source.
        group: a group's name or GID that they get otherwise.
    """

    id: str
    name: str
    kind: str
    source: str
    destination: str | None = None
    auto_group: bool = False
    group: str | None = None


@dataclass(frozen=True, slots=True)
class SecretResource:
    """A secret in AWS Secrets Manager.

    Attributes:
        arn: what is fetched, in its own region; what the policy's patterns are matched with.
        labels: staging labels whose versions are wanted beside `CURRENT`.
    """

    id: str
    name: str
    arn: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AccessPolicy:
    """That a function may use a resource; `permission` None inherits the owner's."""

    resource: str
    permission: str | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """How many waiting events one call of a batch handler takes, and how long it waits for more."""

    max_size: int = 32
    max_delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user and the group that workers run as, by number; None leaves one open."""

    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the group.

    Attributes:
        arn: FunctionArn as the document has it.
        folder: the function's folder on the core; None for a model endpoint (`endpoint`) or with `code`.
        encoding: ``json`` or ``binary``.
        timeout_s: for one request, seconds.
        start_timeout_s: for import, the models' loading and the first prediction, seconds.
        memory_kb: resident memory, KiB; None: unlimited.
        policies: its models in the document's order; the first is the one that results name.
        local: its devices and volumes.
        secrets: the resource Ids of its secrets.
        pinned: it always has workers, `processes` of them; else on demand: from a request on until there was none for
            `keep_alive_s`, and at most so many.
        isolation: ``NoContainer``, ``GreengrassContainer``, or None where the document leaves it open.
        run_as: the user and group of its workers; None: see docs/isolation.md.
        demanded: the weakest tier of isolation that it may be run in, see functions.isolation; None: any.
        network: whether it has the core's network in a container.
        disk_kb: what it may keep on the disk, KiB; None: unlimited.
        arguments: ExecArgs: what its code finds in ``sys.argv`` after its own name.
        interpreter: the name of one of the policy's interpreters; None: that of its runtime, or the agent's own.
        runtime: the runtime that it needs; None: its models'.
        meta: whether results that are JSON objects carry ``meta``.
        handler: Executable; None: ``handler``.
        concurrency: requests that an async handler has under way at once in one worker; None: the worker's default.
    """

    id: str
    arn: str
    folder: str | None = None
    endpoint: bool = False
    encoding: str = "json"
    timeout_s: float = 3.0
    memory_kb: int | None = None
    pinned: bool = True
    variables: Mapping[str, str] = field(default_factory=dict)
    policies: tuple[AccessPolicy, ...] = ()
    isolation: str | None = None
    run_as: RunAs | None = None
    interpreter: str | None = None
    processes: int = 1
    keep_alive_s: float = 300.0
    batch: Batch = Batch()
    capture: Capture | None = None
    meta: bool = True
    handler: str | None = None
    code: Source | None = None
    code_digest: str | None = None
    local: tuple[AccessPolicy, ...] = ()
    secrets: tuple[str, ...] = ()
    start_timeout_s: float = 120.0
    runtime: str | None = None
    concurrency: int | None = None
    demanded: str | None = None
    network: bool = False
    disk_kb: int | None = None
    arguments: tuple[str, ...] = ()

    @property
    def contained(self) -> bool:
        """Whether it is to be isolated as far as the core allows."""
        return self.isolation != NO_CONTAINER

    @property
    def own_user(self) -> bool:
        """Whether it asks for a container by name, and so for a user that is nobody else's."""
        return self.contained and (self.isolation is not None or self.demanded in ("user", "container"))


@dataclass(frozen=True, slots=True)
class Probation:
    """How a new group is watched at work before it is committed.

    Attributes:
        seconds: for how long at most; 0: not at all.
        requests: it ends as soon as so many were answered; None: only with its time.
        max_error_rate: the greatest part of them that may fail by the function's fault.
        max_latency_ms: the longest median of what they may take in the function; None: any.
    """

    seconds: float = 5.0
    requests: int | None = 50
    max_error_rate: float = 0.5
    max_latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment's document.

    Attributes:
        type: one of `TYPES`.
        sequence: Marram.Sequence; None where the document has none.
        body_digest: SHA-256 of the document's exact bytes, of a signed one without its envelope; hex.
        warnings: what the document asks for and this core does not do.
        probation: None where the document leaves it open.
        retry_quarantined: whether what failed a trial before is to be tried again.
        signed_by: the id of the trusted key whose signature was verified when the document was taken; None: none was.
    """

    id: str
    type: str
    sequence: int | None
    body_digest: str
    resources: tuple[Resource, ...] = ()
    functions: tuple[Function, ...] = ()
    subscriptions: tuple[Subscription, ...] = ()
    warnings: tuple[str, ...] = ()
    probation: Probation | None = None
    signed_by: str | None = None
    retry_quarantined: bool = False
    local: tuple[LocalResource, ...] = ()
    secrets: tuple[SecretResource, ...] = ()

    def local_resource(self, id: str) -> LocalResource:
        """The device or volume with that Id.

        Raises:
            KeyError: the group has none.
        """
        return {each.id: each for each in self.local}[id]

    def resource(self, id: str) -> Resource:
        """The resource with that Id.

        Raises:
            KeyError: the group has none.
        """
        for resource in self.resources:
            if resource.id == id:
                return resource
        raise KeyError(id)

    def function(self, id: str) -> Function:
        """The function with that Id.

        Raises:
            KeyError: the group has none.
        """
        for function in self.functions:
            if function.id == id:
                return function
        raise KeyError(id)
