"""Says more than one thing, and on topics of its own choice."""

from __future__ import annotations

from typing import Any

from functions.sdk import Context, Result


def handler(event: dict[str, Any], context: Context) -> Any:
    if event.get("none"):
        return None
    return [Result(payload={"first": 1}), Result(topic="other/topic", payload={"second": 2})]
