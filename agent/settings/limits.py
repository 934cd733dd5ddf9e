"""The sections of topics.yaml that are bounds: of deployments, of the spool, of what is remembered and captured."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.settings import AnswerLimits, Caps, CaptureLimits, FetchLimits, Quotas, Retention, SpoolLimits
from agent.settings.file import Value

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
SIZE = re.compile(r"([0-9]{1,15})(\.[0-9]{1,3})? ?([A-Za-z]*)")
MOST = 2**50
# By key: the field, the least value, and the kind of value.
FETCH = {
    "max_bytes": ("max_bytes", 1, "size"),
    "free_bytes": ("free_bytes", 0, "size"),
    "max_bytes_per_s": ("max_bytes_per_s", 1024, "size"),
    "min_bytes_per_s": ("min_bytes_per_s", 0, "size"),
    "attempts": ("attempts", 1, "count"),
    "backoff_s": ("backoff_s", 0, "seconds"),
    "stall_s": ("stall_s", 0, "seconds"),
}
UNPACK = {
    "max_bytes": ("total_bytes", 1, "size"),
    "max_members": ("members", 1, "count"),
    "max_depth": ("depth", 1, "count"),
    "max_name_bytes": ("name_bytes", 1, "count"),
    "max_ratio": ("ratio", 1, "count"),
}
SPOOL = {
    "max_bytes": ("max_bytes", 2**20, "size"),
    "free_bytes": ("free_bytes", 0, "size"),
    "file_bytes": ("file_bytes", 4096, "size"),
    "memory_bytes": ("memory_bytes", 2**16, "size"),
    "tries": ("tries", 1, "count"),
}
CLASSES = ("report", "result", "capture")
CLASS = {
    "max_bytes": ("max_bytes", 0, "size"),
    "max_count": ("max_count", 0, "count"),
    "ttl": ("ttl_s", 1, "duration"),
    "order": ("newest_first", 0, "order"),
    "weight": ("weight", 1, "count"),
}
DEAD = {"max_bytes": ("max_bytes", 0, "size"), "max_count": ("max_count", 0, "count")}
ANSWERS = {
    "max_count": ("max_count", 0, "count"),
    "max_bytes": ("max_bytes", 0, "size"),
    "keep": ("keep_s", 1, "duration"),
}
DURATIONS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
RETENTION = {"groups": ("groups", 2, "count"), "max_bytes": ("max_bytes", 1, "size")}
QUOTAS = {
    "resources": ("resources", 0, "count"),
    "functions": ("functions", 0, "count"),
    "subscriptions": ("subscriptions", 0, "count"),
    "processes": ("processes", 0, "count"),
    "memory": ("memory_bytes", 1, "size"),
}
CAPTURE = {
    "bytes_per_day": ("bytes_per_day", 1024, "size"),
    "max_bytes": ("max_bytes", 512, "size"),
    "disk_bytes": ("disk_bytes", 1024, "size"),
    "format": ("encoding", 0, "format"),
    "s3": ("s3", 0, "place"),
}
AWS_MESSAGE_BYTES = 128 * 1024  # AWS IoT Core endpoints and quotas: message size
PLACE = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()/-]{0,512})?")
Keys = dict[str, tuple[str, int, str]]


def read_fetch(value: Value | None) -> FetchLimits:
    """How sources are fetched."""
    return FetchLimits(**_fields(value, FETCH))


def read_unpack(value: Value | None) -> Caps:
    """How much may come out of an archive."""
    return Caps(**_fields(value, UNPACK))


def read_retention(value: Value | None) -> Retention:
    """What is kept of earlier groups."""
    return Retention(**_fields(value, RETENTION))


def read_quotas(value: Value | None) -> Quotas:
    """The most that one deployment may ask for."""
    return Quotas(**_fields(value, QUOTAS))


def read_spool(value: Value | None) -> SpoolLimits:
    """What is kept until a broker takes it."""
    given = value.mapping((*SPOOL, *CLASSES, "dead")) if value else {}
    default = SpoolLimits()
    found: dict[str, Any] = _given({key: each for key, each in given.items() if key in SPOOL}, SPOOL)
    for kind in CLASSES:
        found[kind] = replace(default.of(kind), **_fields(given.get(kind), CLASS))
    found["dead"] = replace(default.dead, **_fields(given.get("dead"), DEAD))
    return SpoolLimits(**found)


def read_answers(value: Value | None) -> AnswerLimits:
    """What is remembered for who asks again."""
    return AnswerLimits(**_fields(value, ANSWERS))


def read_capture(value: Value | None, *, aws: bool) -> CaptureLimits:
    """How much training data leaves the core. `aws`: whether samples go to AWS IoT Core."""
    fields = _fields(value, CAPTURE)
    if aws or fields.get("s3"):
        fields.setdefault("max_bytes", AWS_MESSAGE_BYTES)
    if value is not None and aws and fields["max_bytes"] > AWS_MESSAGE_BYTES:
        value.problem(f"`capture.max_bytes` is over the {AWS_MESSAGE_BYTES} bytes that AWS IoT Core takes")
    return CaptureLimits(**fields)


def _fields(value: Value | None, keys: Keys) -> dict[str, Any]:
    return _given(value.mapping(keys) if value else {}, keys)


def _given(given: Mapping[str, Value], keys: Keys) -> dict[str, Any]:
    found = {keys[key][0]: _number(each, *keys[key][1:]) for key, each in given.items()}
    return {field: number for field, number in found.items() if number is not None}


def _number(value: Value, least: int, kind: str) -> float | bool | str | None:
    if kind == "format":
        return _format(value)
    if kind == "place":
        return _place(value)
    if kind == "count":
        return value.integer(least, 10**8)
    if kind == "duration":
        return _duration(value)
    if kind == "order":
        return _newest_first(value)
    return _size(value, least) if kind == "size" else _seconds(value)


def _format(value: Value) -> str | None:
    if value.word in ("json", "msgpack"):
        return value.word
    value.problem(f"`{value.name}` must be json or msgpack")
    return None


def _place(value: Value) -> str | None:
    if value.word and PLACE.fullmatch(value.word):
        return value.word.rstrip("/")
    value.problem(f"`{value.name}` must be s3://BUCKET or s3://BUCKET/PREFIX")
    return None


def _size(value: Value, least: int) -> int | None:
    found = SIZE.fullmatch(value.word or "")
    unit = UNITS.get(found[3].upper()) if found else None
    if found is None or unit is None:
        value.problem(f"`{value.name}` must be a number of bytes, such as 4096, 500 MB or 4 GiB")
        return None
    size = int(float(found[1] + (found[2] or "")) * unit) if found[2] else int(found[1]) * unit
    if not least <= size <= MOST:
        value.problem(f"`{value.name}` must be from {least} bytes to 1024 TiB")
        return None
    return size


def _duration(value: Value) -> float | None:
    found = re.fullmatch(r"([0-9]{1,9}) ?([a-z]*)", value.word or "")
    unit = DURATIONS.get(found[2] or "s") if found else None
    if found is None or unit is None or not int(found[1]):
        value.problem(f"`{value.name}` must be a time, such as 90 s, 30 min, 12 h or 7 d")
        return None
    return float(found[1]) * unit


def _newest_first(value: Value) -> bool | None:
    if value.word not in ("oldest", "newest"):
        value.problem(f"`{value.name}` must be `oldest` or `newest`: which record of the class goes out first")
        return None
    return value.word == "newest"


def _seconds(value: Value) -> float | None:
    word = value.word or ""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", word) or not 0 < float(word) <= 86_400:
        value.problem(f"`{value.name}` must be a number of seconds up to 86400")
        return None
    return float(word)
