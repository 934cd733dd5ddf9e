"""Payloads as values, for judges: what is too large to be read in passing is not. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

import msgpack

from agent.messages import JSON, MSGPACK

# Reading is on the way of a result: JSON takes some 8 ns a byte, msgpack with arrays as bytes next to nothing.
MAX_JSON_BYTES: Final = 64 * 1024
MAX_MSGPACK_BYTES: Final = 1024 * 1024


def read(content_type: str, payload: bytes) -> Any:
    """The value; None where the payload is neither JSON nor msgpack, broken, or larger than is read."""
    try:
        if content_type == JSON and len(payload) <= MAX_JSON_BYTES:
            return json.loads(payload)
        if content_type == MSGPACK and len(payload) <= MAX_MSGPACK_BYTES:
            return msgpack.unpackb(payload, strict_map_key=False)
    except (ValueError, RecursionError, msgpack.UnpackException):
        pass
    return None
