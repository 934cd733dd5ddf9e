"""Samples in the formats that training reads: SageMaker's data capture, and WebDataset's tar shards. Pure.

Each is a name below a directory (or a bucket's prefix) with its bytes, so that a core's command and a consumer in the
cloud write the same. Source: SageMaker developer guide, "Interpret captured data"; webdataset, "The WebDataset format".
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, Final

from agent.capture.received import REFERENCE, Part, Received, suffix
from agent.messages import JSON

SHARD_SAMPLES: Final = 1000
SHARD_BYTES: Final = 64 * 1024 * 1024
File = tuple[str, bytes]  # name with slashes, bytes


def files(format: str, samples: Iterable[Received]) -> Iterator[File]:
    """The files that hold `samples`; the same samples give the same names and bytes.

    Args:
        format: of `FORMATS`.
    """
    return FORMATS[format](samples)


# -- SageMaker --------------------------------------------------------------------------------------------------------


def sagemaker(samples: Iterable[Received]) -> Iterator[File]:
    """``FUNCTION/MODEL/yyyy/mm/dd/hh/NAME.jsonl``, where Model Monitor looks for endpoint, variant and hour."""
    hours: dict[str, list[Received]] = {}
    for sample in samples:
        at = _time(sample)
        place = f"{_plain(sample.head['function'])}/{_plain(sample.head.get('model') or 'none')}/{at:%Y/%m/%d/%H}"
        hours.setdefault(place, []).append(sample)
    for place, found in sorted(hours.items()):
        body = b"".join(json.dumps(_captured(each)).encode() + b"\n" for each in found)
        yield f"{place}/{_time(found[0]):%M-%S}-{_digest(found)}.jsonl", body


def _captured(sample: Received) -> dict[str, Any]:
    data = {"endpointInput": _observed(sample.given, "INPUT")}
    if sample.made is not None:
        data["endpointOutput"] = _observed(sample.made, "OUTPUT")
    head = sample.head
    said = [f"{key}={head[key]}" for key in ("reason", "value", "topic", "version", "deployment") if head.get(key)]
    meta = {"eventId": sample.id, "inferenceTime": f"{_time(sample):%Y-%m-%dT%H:%M:%SZ}", "customAttributes": said}
    return {"captureData": data, "eventMetadata": meta, "eventVersion": "0"}


def _observed(part: Part, mode: str) -> dict[str, str]:
    is_text = part.type in (JSON, REFERENCE)
    data = part.data.decode() if is_text else base64.b64encode(part.data).decode()
    return {"observedContentType": part.type, "mode": mode, "data": data, "encoding": "JSON" if is_text else "BASE64"}


# -- WebDataset -------------------------------------------------------------------------------------------------------


def webdataset(samples: Iterable[Received]) -> Iterator[File]:
    """``FUNCTION-NAME.tar``, in which each sample is ``KEY.json``, ``KEY.input.TYPE`` and ``KEY.output.TYPE``."""
    shards: dict[str, list[Received]] = {}
    for sample in samples:
        found = shards.setdefault(_plain(sample.head["function"]), [])
        found.append(sample)
        if len(found) >= SHARD_SAMPLES or sum(map(_size, found)) >= SHARD_BYTES:
            yield _shard(_plain(sample.head["function"]), shards.pop(_plain(sample.head["function"])))
    for name, found in sorted(shards.items()):
        yield _shard(name, found)


def _size(sample: Received) -> int:
    return len(sample.given.data) + (len(sample.made.data) if sample.made else 0)


def _shard(name: str, found: list[Received]) -> File:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in found:
            key = hashlib.sha256(sample.id.encode()).hexdigest()[:24]  # an id may hold a dot, where a key would end
            at = int(_time(sample).timestamp())
            _add(tar, f"{key}.json", json.dumps(sample.head).encode(), at)
            _add(tar, f"{key}.input.{suffix(sample.given.type)}", sample.given.data, at)
            if sample.made is not None:
                _add(tar, f"{key}.output.{suffix(sample.made.type)}", sample.made.data, at)
    return f"{name}-{_digest(found)}.tar", body.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes, at: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), at, 0o644
    tar.addfile(info, io.BytesIO(data))


FORMATS: Final = {"sagemaker": sagemaker, "webdataset": webdataset}


# -- both -------------------------------------------------------------------------------------------------------------


def _time(sample: Received) -> datetime:
    try:
        return datetime.fromisoformat(str(sample.head["timestamp"]).replace("Z", "+00:00"))
    except ValueError:
        return datetime.fromtimestamp(0, timezone.utc)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _digest(found: list[Received]) -> str:
    """Of the samples' ids, so that the same samples written again take the same place."""
    return hashlib.sha256("\n".join(sorted(each.id for each in found)).encode()).hexdigest()[:16]
