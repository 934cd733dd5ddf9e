"""The status of a deployment as it is reported. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from agent.errors import AgentError

IN_PROGRESS = "IN_PROGRESS"
Status = dict[str, Any]


def status_of(
    id: str,
    core: str,
    status: str,
    phase: str,
    now_s: float,
    *,
    reason: Mapping[str, str] | None = None,
    warnings: tuple[str, ...] = (),
    versions: Mapping[str, str] | None = None,
    previous: Mapping[str, str] | None = None,
) -> Status:
    """A deployment's status document.

    Args:
        now_s: seconds since the epoch.
        versions: of the deployment's resources, by Id, as far as they are known.
        previous: of the resources of the group that ran before.
    """
    versions, previous = versions or {}, previous or {}
    return {
        "deploymentId": id,
        "core": core,
        "status": status,
        "phase": phase,
        "reason": dict(reason) if reason else None,
        "warnings": list(warnings),
        "resources": [{"id": r, "version": version, "previous": previous.get(r)} for r, version in versions.items()],
        "timestamp": rfc3339(now_s),
    }


def rfc3339(now_s: float) -> str:
    """A time in UTC, to the millisecond."""
    return datetime.fromtimestamp(now_s, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def reason_of(error: AgentError) -> dict[str, str]:
    """An error as a status's reason."""
    return {"code": error.code, "message": error.text}
