"""What a shadow's requests are answered with, and what is published of them. Pure.

Source: AWS IoT Core developer guide, "Device Shadow MQTT topics" and "Device Shadow service documents".
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from agent.shadows.document import (
    Json,
    Shadow,
    ShadowError,
    deleted,
    delta,
    read_update,
    token_of,
    touched,
    updated,
)

TOPIC: Final = re.compile(r"\$aws/things/(?P<thing>[A-Za-z0-9:_-]{1,128})/shadow/(?P<operation>get|update|delete)")
THING: Final = re.compile(r"[A-Za-z0-9:_-]{1,128}")
GET: Final = "get"
UPDATE: Final = "update"
DELETE: Final = "delete"
OPERATIONS: Final = (GET, UPDATE, DELETE)
Message = tuple[str, bytes]  # topic, payload


def answer(thing: str, operation: str, payload: bytes, shadow: Shadow, now_s: int) -> tuple[Shadow, list[Message]]:
    """What a request makes of a shadow, and what is said of it: first to the requester, then to whoever follows it.

    Args:
        shadow: as it is; one that was never there is `Shadow()`.
    """
    place = f"$aws/things/{thing}/shadow/{operation}"
    token = token_of(payload)
    try:
        if operation == UPDATE:
            return _update(place, payload, shadow, token, now_s)
        if shadow.deleted:
            raise ShadowError(404, f"No shadow exists with name: '{thing}'")
        if operation == DELETE:
            said = {"version": shadow.version, "timestamp": now_s}
            return deleted(shadow), [_message(f"{place}/accepted", said, token)]
        return shadow, [_message(f"{place}/accepted", _whole(shadow, now_s), token)]
    except ShadowError as error:
        return shadow, [refusal(place, error, token, now_s)]


def refusal(place: str, error: ShadowError, token: str | None, now_s: int) -> Message:
    """The answer to a request that cannot be done."""
    return _message(f"{place}/rejected", {"code": error.code, "message": error.message, "timestamp": now_s}, token)


def _update(place: str, payload: bytes, shadow: Shadow, token: str | None, now_s: int) -> tuple[Shadow, list[Message]]:
    update = read_update(payload)
    after = updated(shadow, update, now_s)
    accepted = {"state": update.state, "metadata": touched(after, update), "version": after.version, "timestamp": now_s}
    messages = [_message(f"{place}/accepted", accepted, token)]
    differing, stamps = delta(after)
    if differing:
        said = {"version": after.version, "timestamp": now_s, "state": differing, "metadata": stamps}
        messages.append(_message(f"{place}/delta", said, token))
    documents = {"previous": _document(shadow), "current": _document(after), "timestamp": now_s}
    messages.append(_message(f"{place}/documents", documents, token))
    return after, messages


def _document(shadow: Shadow) -> Json:
    return {"state": shadow.state, "metadata": shadow.metadata, "version": shadow.version}


def _whole(shadow: Shadow, now_s: int) -> Json:
    state: Json = dict(shadow.state)
    differing, _ = delta(shadow)
    if differing:
        state["delta"] = differing
    return {"state": state, "metadata": shadow.metadata, "version": shadow.version, "timestamp": now_s}


def _message(topic: str, values: dict[str, Any], token: str | None) -> Message:
    said = {**values, "clientToken": token} if token is not None else values
    return topic, json.dumps(said, separators=(",", ":")).encode()
