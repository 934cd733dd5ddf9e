"""Gives back what it gets; needs no model."""

from __future__ import annotations

from typing import Any

from functions.sdk import Context


def handler(event: Any, context: Context) -> Any:
    return {"echo": event, "topic": context.topic} if not isinstance(event, bytes) else event
