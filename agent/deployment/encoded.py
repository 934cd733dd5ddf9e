"""JSON or msgpack to plain values, strictly: one object, no key twice, bounded in depth and size.

Pure. Whatever the bytes are, it gives a dict with texts as keys or raises one RejectedError.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgpack

from agent.deployment.fields import BAD, shown
from agent.errors import RejectedError

MAX_BYTES: Final = 8 * 1024 * 1024
MAX_DEPTH: Final = 32
REMEDY: Final = "Correct the document and send it with a new DeploymentId."


def decode(body: bytes) -> dict[str, Any]:
    """The object that `body` holds: JSON where its first character is ``{``, else msgpack.

    Raises:
        RejectedError: BAD_DOCUMENT.
    """
    if len(body) > MAX_BYTES:
        raise bad(f"the document has {len(body)} bytes; at most {MAX_BYTES} are read")
    try:
        if is_json(body):
            values = json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
        else:
            values = msgpack.unpackb(body, object_pairs_hook=_object)
    except RecursionError:
        raise bad("the document is nested too deeply") from None
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        text = str(error) or type(error).__name__
        raise bad(f"the document is neither a JSON object nor a msgpack map: {text[:200]}") from error
    if not isinstance(values, dict):
        raise bad(f"the document must be a JSON object or a msgpack map, not {shown(values)}")
    _check_depth(values)
    return values


def is_json(body: bytes) -> bool:
    """Whether `body` can only be meant as a JSON object."""
    return body.lstrip()[:1] == b"{"


def bad(text: str) -> RejectedError:
    """The error for a document that cannot be read."""
    return RejectedError(BAD, text, REMEDY)


def _object(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError(f"a key is no text: {shown(key)}")
        if key in values:
            raise ValueError(f"the key {shown(key)} stands twice in one object")
        values[key] = value
    return values


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _check_depth(value: object, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise bad(f"the document is nested deeper than {MAX_DEPTH} levels")
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _check_depth(child, depth + 1)
