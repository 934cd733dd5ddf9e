"""The bench's function without a model: what comes in goes out."""

from __future__ import annotations

from functions.sdk import Context


def handler(event: bytes, context: Context) -> bytes:
    return event
