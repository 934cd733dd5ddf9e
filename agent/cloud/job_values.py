"""The values of AWS IoT Jobs as a channel: what is to be done, the job under way, the request that is out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from agent.cloud.job_messages import TOLD_BY_US, Document, Kind
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish this on the control link, at QoS 0: what is lost is asked again."""

    topic: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Deploy:
    """Give the document to the deployer; call `Jobs.taken` when it has decided about it."""

    document: Document


@dataclass(frozen=True, slots=True)
class Anew:
    """The document of that deployment, as the cloud gives it out now; None where it does not any more."""

    deployment: str
    document: Document | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """End that deployment where it can still be ended: its job ended in the cloud with `status`."""

    deployment: str
    job: str
    status: str


Action = Publish | Deploy | Cancel | Anew


@dataclass(frozen=True, slots=True)
class Said:
    """What an execution is told to be."""

    status: str
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        return self.status in TOLD_BY_US


@dataclass(frozen=True, slots=True)
class Job:
    """The job under way.

    Attributes:
        wanted, told: what the cloud should know, and what it has accepted.
        told_s: when it accepted that.
        check: what the cloud knows of the execution is to be asked before anything is told.
        taken: the deployer has the document.
    """

    id: str
    deployment: str
    version: int | None
    number: int | None
    wanted: Said
    told: Said
    told_s: float
    check: bool = False
    taken: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that is out; `whole` where the job's document is wanted with its answer."""

    kind: Kind
    token: str
    deadline_s: float
    said: Said | None = None
    whole: bool = False
