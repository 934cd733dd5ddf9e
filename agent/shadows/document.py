"""A shadow's document: what an update makes of it, what differs, and what is wrong with a request. Pure.

Source: AWS IoT Core developer guide, "Device Shadow service documents" and "Device Shadow error messages".
"""

from __future__ import annotations

import copy
import json
from dataclasses import field
from typing import Any, Final

from agent.values import dataclass

MAX_BYTES: Final = 8 * 1024  # AWS: of a shadow's document, and of a request
MAX_DEPTH: Final = 8  # AWS: levels below desired or reported
MAX_TOKEN: Final = 64  # AWS: bytes of a client token
SECTIONS: Final = ("desired", "reported")
Json = dict[str, Any]


class ShadowError(Exception):
    """A request is refused.

    Args:
        code: an HTTP status, as AWS answers it.
        message: AWS's own text where it has one.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Shadow:
    """A shadow as it is kept; never changed, only replaced.

    Attributes:
        version: rises with each update, and is not begun anew after a deletion.
        state, metadata: by section; a section that is empty is not there.
        deleted: only its version is left.
    """

    version: int = 0
    state: Json = field(default_factory=dict)
    metadata: Json = field(default_factory=dict)
    deleted: bool = True


@dataclass(frozen=True, slots=True)
class Update:
    """An update that was read: `version` is the one that it is meant for, if it names one."""

    state: Json
    version: int | None
    token: str | None


def token_of(payload: bytes) -> str | None:
    """The client token of a request that need not be right otherwise."""
    try:
        token = json.loads(payload).get("clientToken") if payload else None
    except (ValueError, AttributeError, RecursionError):
        return None
    return token if isinstance(token, str) and len(token.encode(errors="replace")) <= MAX_TOKEN else None


def read_update(payload: bytes) -> Update:
    """The update that a payload asks for.

    Raises:
        ShadowError: 400, 413.
    """
    if len(payload) > MAX_BYTES:
        raise ShadowError(413, "The payload exceeds the maximum size allowed")
    try:
        request = json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ShadowError(400, "Invalid JSON") from None
    if not isinstance(request, dict):
        raise ShadowError(400, "Invalid JSON")
    if "state" not in request:
        raise ShadowError(400, "Missing required node: state")
    state, version, token = request["state"], request.get("version"), request.get("clientToken")
    state = dict.fromkeys(SECTIONS) if state is None else state
    if not isinstance(state, dict):
        raise ShadowError(400, "State node must be an object")
    for section in state:
        if section not in SECTIONS:
            raise ShadowError(400, f"State contains an invalid node: '{section}'")
        if state[section] is not None and not isinstance(state[section], dict):
            raise ShadowError(400, f"{section.capitalize()} node must be an object")
        if _depth(state[section]) > MAX_DEPTH:
            raise ShadowError(400, "JSON contains too many levels of nesting; maximum is 8")
    if version is not None and (type(version) is not int or version < 0):
        raise ShadowError(400, "Invalid version")
    if token is not None and token_of(payload) is None:
        raise ShadowError(400, "Invalid clientToken")
    return Update(state, version, token)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(each) for each in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(each) for each in value), default=0)
    return 0


def updated(shadow: Shadow, update: Update, now_s: int) -> Shadow:
    """The shadow after an update.

    Raises:
        ShadowError: 409, it is meant for another version; 413, the document would grow too large.
    """
    if update.version is not None and update.version != shadow.version:
        raise ShadowError(409, "Version conflict")
    state, metadata = copy.deepcopy(shadow.state), copy.deepcopy(shadow.metadata)
    for section, wanted in update.state.items():
        if wanted is None:
            state.pop(section, None)
            metadata.pop(section, None)
            continue
        _merge(state.setdefault(section, {}), metadata.setdefault(section, {}), wanted, now_s)
        if not state[section]:
            del state[section], metadata[section]
    if len(json.dumps(state, separators=(",", ":")).encode()) > MAX_BYTES:
        raise ShadowError(413, "The payload exceeds the maximum size allowed")
    return Shadow(shadow.version + 1, state, metadata, deleted=False)


def _merge(state: Json, metadata: Json, wanted: Json, now_s: int) -> None:
    """Puts `wanted` into `state`: null takes a key out, objects are merged, lists are replaced as a whole."""
    for key, value in wanted.items():
        if value is None:
            state.pop(key, None)
            metadata.pop(key, None)
        elif isinstance(value, dict):
            if not isinstance(state.get(key), dict):
                state[key], metadata[key] = {}, {}
            _merge(state[key], metadata[key], value, now_s)
            if not state[key]:
                del state[key], metadata[key]
        else:
            state[key], metadata[key] = value, _stamped(value, now_s)


def _stamped(value: Any, now_s: int) -> Any:
    """The metadata of a value: when each part of it was set."""
    if isinstance(value, dict):
        return {key: _stamped(each, now_s) for key, each in value.items()}
    if isinstance(value, list):
        return [_stamped(each, now_s) for each in value]
    return {"timestamp": now_s}


def deleted(shadow: Shadow) -> Shadow:
    """What is left of a shadow: its version."""
    return Shadow(shadow.version)


def delta(shadow: Shadow) -> tuple[Json, Json]:
    """What is desired and not reported so, and when that was set; empty where nothing differs."""
    desired, metadata = shadow.state.get("desired", {}), shadow.metadata.get("desired", {})
    return _differing(desired, shadow.state.get("reported", {}), metadata)


def _differing(desired: Json, reported: Json, metadata: Json) -> tuple[Json, Json]:
    state: Json = {}
    stamps: Json = {}
    for key, wanted in desired.items():
        there = reported.get(key)
        if isinstance(wanted, dict) and isinstance(there, dict):
            below, stamps_below = _differing(wanted, there, metadata[key])
            if below:
                state[key], stamps[key] = below, stamps_below
        elif key not in reported or wanted != there or type(wanted) is not type(there):
            state[key], stamps[key] = wanted, metadata[key]
    return state, stamps


def touched(shadow: Shadow, update: Update) -> Json:
    """The metadata of what an update has set."""
    return {
        section: _of(shadow.metadata.get(section, {}), wanted)
        for section, wanted in update.state.items()
        if wanted and section in shadow.metadata
    }


def _of(metadata: Json, wanted: Json) -> Json:
    return {
        key: _of(metadata[key], value) if isinstance(value, dict) and isinstance(metadata[key], dict) else metadata[key]
        for key, value in wanted.items()
        if key in metadata
    }
