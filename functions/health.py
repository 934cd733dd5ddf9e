"""Runs golden requests on a loaded model: compares with what is expected, or records what comes out.

A health check is JSON as packages carry it and documents have it under ``HealthCheck``:
``{"Requests": [{"Inputs", "Outputs"}, ..], "Tolerance": 0.001, "MaxLatencyMs": 50}``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from functions import frames
from functions.errors import CodedError
from functions.runtimes.base import Array, Model
from functions.runtimes.loading import check_requires

TOLERANCE: Final = 1e-3  # absolute and relative: what other processors and library versions make of float32
RUNS: Final = 5  # of each request, where a latency is asked for
FAILED: Final = "HEALTH_CHECK_FAILED"


class Bounds(NamedTuple):
    """What an answer may be off by, ``absolute + relative * |expected|``, and how long it may take."""

    absolute: float
    relative: float
    max_latency_ms: float | None


def answer(header: list[Any], body: bytes, models: Mapping[str, Model]) -> list[frames.Buffer]:
    """The frame that answers a CHECK or a RECORD; whatever the model does is in it."""
    kind, n, resource = header[:3]
    done, found = (frames.CHECKED, b"") if kind == frames.CHECK else (frames.RECORDED, b"")
    try:
        values = json.loads(body)
        if kind == frames.CHECK:
            if values.get("Requires"):
                check_requires(models[resource], values["Requires"])
            check(resource, models[resource], values["Requests"], bounds_of(values, header[3]))
        else:
            found = json.dumps(record(models[resource], values), allow_nan=False).encode()
    except CodedError as error:
        return frames.pack([done, n, error.code, error.message])
    except MemoryError:
        return frames.pack([done, n, "OUT_OF_MEMORY", f"The model {resource} ran out of memory in its health check."])
    except Exception as error:
        message = f"The model {resource} cannot be checked: {type(error).__name__}: {error}"
        return frames.pack([done, n, FAILED, message])
    return frames.pack([done, n, None, None], found)


def bounds_of(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> Bounds:
    """A health check's bounds; `overrides` has those that the deployment gives in their place."""
    absolute, relative = (
        next((found for each in (overrides, values) if (found := _tolerance(each, part)) is not None), TOLERANCE)
        for part in ("Absolute", "Relative")
    )
    return Bounds(absolute, relative, overrides.get("MaxLatencyMs") or values.get("MaxLatencyMs"))


def _tolerance(values: Mapping[str, Any], part: str) -> float | None:
    tolerance = values.get("Tolerance")
    found = tolerance.get(part) if isinstance(tolerance, dict) else tolerance
    return None if found is None else float(found)


def check(resource: str, model: Model, requests: list[Mapping[str, Any]], bounds: Bounds) -> None:
    """Runs all requests and compares.

    Raises:
        CodedError: HEALTH_CHECK_FAILED naming request, output, what was expected and what came; HEALTH_CHECK_SLOW.
    """
    for number, request in enumerate(requests, 1):
        where = f"The model {resource}, golden request {number}"
        expected = dict(request.get("Outputs") or {})
        for name, value in _run(where, model, request["Inputs"]).items():
            _refuse_nan(f"{where}, output {name}", value)
            if name in expected:
                _compare(f"{where}, output {name}", expected.pop(name), value, bounds)
        for name in expected:
            raise CodedError(FAILED, f"{where}: the model has no output {name}.")
        if bounds.max_latency_ms is not None:
            _time(where, model, request["Inputs"], bounds.max_latency_ms)


def record(model: Model, requests: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The outputs of each request's inputs, as nested lists.

    Raises:
        CodedError: HEALTH_CHECK_FAILED where the model does not take them or gives what is no number.
    """
    found = []
    for number, inputs in enumerate(requests, 1):
        outputs = _run(f"Sample {number}", model, inputs)
        for name, value in outputs.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise CodedError(FAILED, f"Sample {number}, output {name}: it holds {_first_unfinite(value)}.")
        found.append({name: value.tolist() for name, value in outputs.items()})
    return found


def _run(where: str, model: Model, inputs: Mapping[str, Any]) -> dict[str, Array]:
    try:
        return {name: np.asarray(value) for name, value in model.predict(inputs).items()}
    except MemoryError:
        raise
    except Exception as error:
        said = error.message if isinstance(error, CodedError) else f"{type(error).__name__}: {error}"
        raise CodedError(FAILED, f"{where}: {said}") from error


def _refuse_nan(where: str, value: Array) -> None:
    if value.dtype.kind == "f" and np.isnan(value).any():
        raise CodedError(FAILED, f"{where}{_index(np.argwhere(np.isnan(value))[0])}: got NaN.")


def _first_unfinite(value: Array) -> float:
    return float(value[~np.isfinite(value)][0])


def _compare(where: str, expected: Any, got: Array, bounds: Bounds) -> None:
    wanted = np.asarray(expected, dtype=object if got.dtype.kind in "OUS" else None)
    if wanted.shape != got.shape:
        raise CodedError(FAILED, f"{where}: expected the shape {list(wanted.shape)}, got {list(got.shape)}.")
    if got.dtype.kind == "f":
        wanted = wanted.astype(np.float64)
        right = np.abs(got.astype(np.float64) - wanted) <= bounds.absolute + bounds.relative * np.abs(wanted)
    else:
        right = got == wanted  # a class or a text is right or it is not
    if not right.all():
        at = np.argwhere(~right)[0]
        margin = f" (tolerance {bounds.absolute:g} + {bounds.relative:g} x |expected|)" if got.dtype.kind == "f" else ""
        expected, found = wanted[tuple(at)], got[tuple(at)]
        raise CodedError(FAILED, f"{where}{_index(at)}: expected {expected}, got {found}{margin}.")


def _index(at: Array) -> str:
    return "".join(f"[{i}]" for i in at)


def _time(where: str, model: Model, inputs: Mapping[str, Any], max_latency_ms: float) -> None:
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        _run(where, model, inputs)
        taken.append((time.perf_counter() - began) * 1000)
    median = statistics.median(taken)
    if median > max_latency_ms:
        text = f"the median of {RUNS} runs was {median:.3g} ms, at most {max_latency_ms:g} ms are allowed"
        raise CodedError("HEALTH_CHECK_SLOW", f"{where}: {text}.")
