"""What the agent says of itself: the retained state of the core. Pure; the caller publishes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

import agent
from agent.messages import JSON, Outbound, Properties


def timestamp(seconds: float) -> str:
    """`seconds` since the epoch as RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def state(
    *,
    core: str,
    online: bool,
    group: str | None,
    functions: Iterable[tuple[str, str, str | None]],
    resources: Iterable[tuple[str, str]],
    deployment: Mapping[str, Any] | None,
    spool: Mapping[str, Any] | None = None,
    now_s: float,
) -> dict[str, Any]:
    """The state document (docs/contracts.md): resources as (id, version).

    Args:
        functions: (id, state, the tier of isolation that it is in or None where it never had a worker) each.
        spool: what the spool has lost, where it has.
    """
    functions = tuple(functions)
    tiers = {name: tier for name, _, tier in functions if tier}
    return {
        "core": core,
        "status": "online" if online else "offline",
        "group": group,
        "functions": [{"id": name, "status": status} for name, status, _ in functions],
        "resources": [{"id": name, "version": version} for name, version in resources],
        "deployment": deployment,
        **({"isolation": tiers} if tiers else {}),
        **({"spool": spool} if spool else {}),
        "version": agent.__version__,
        "timestamp": timestamp(now_s),
    }


def retained(topic: str, document: Mapping[str, Any]) -> Outbound:
    """A document that the broker keeps for whoever subscribes later."""
    return Outbound(topic, json.dumps(document).encode(), 1, retain=True, properties=Properties(content_type=JSON))


def report(topic: str, document: Mapping[str, Any]) -> Outbound:
    """A document that is said once."""
    return Outbound(topic, json.dumps(document).encode(), 1, properties=Properties(content_type=JSON))
