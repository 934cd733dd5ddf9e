"""Reads what a trial is: health checks (golden requests with what a model must answer) and probations. Pure.

A health check stands in a document or was recorded in a package:

    {"Requests": [{"Inputs": {name: nested lists}, "Outputs": {name: nested lists}}, ..],
     "Tolerance": 0.001, "MaxLatencyMs": 50}

One in a package may also say what must be installed, ``"Requires": {"runtime": "1.9"}``, and may do nothing else.

A package carries it as a file of the reserved name `RESERVED` at the top of the archive; it is taken out of the tree
when the archive is unpacked. Nothing is computed here: a worker does that on the model that it has loaded.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, Final

from agent.deployment.definition import HealthCheck, Probation
from agent.deployment.encoded import decode
from agent.deployment.fields import Fields, Problems, shown
from agent.deployment.model_runtimes import read_requires
from agent.errors import RejectedError

RESERVED: Final = "marram-health.json"
MAX_REQUESTS: Final = 100
MAX_LATENCY_MS: Final = 600_000
SHORT_S: Final = 5.0
LONGEST_S: Final = 600.0  # of a probation that counts requests only
MAX_PROBATION_S: Final = 86_400
MAX_ERROR_RATE: Final = 0.5
MAX_LISTED: Final = 10
INVALID: Final = "HEALTH_CHECK_INVALID"


def read_health(fields: Fields) -> HealthCheck:
    """The health check of a document's ``HealthCheck``; what is wrong with it is noted."""
    requests = [_request(value, where, fields.problems) for value, where in fields.items("Requests", MAX_REQUESTS)]
    absolute, relative = _tolerance(fields)
    max_latency_ms = fields.number("MaxLatencyMs", None, 0.001, MAX_LATENCY_MS)
    fields.done()
    return HealthCheck(tuple(requests), absolute, relative, max_latency_ms)


def read_recorded(data: bytes) -> HealthCheck:
    """The health check that a package carries.

    Raises:
        RejectedError: HEALTH_CHECK_INVALID with what is wrong with it.
    """
    problems = Problems()
    try:
        fields = Fields(decode(data), "", problems)
        requires = read_requires(fields)
        found = replace(read_health(fields), requires=requires)
    except RejectedError as error:
        raise invalid(error.message) from error
    if problems.found:
        texts = [text for _, text in problems.found]
        raise invalid("; ".join(texts[:MAX_LISTED]))
    if not found.requests and not requires:
        raise invalid("it has no Requests")
    return found


def encode(check: HealthCheck) -> bytes:
    """A health check as `read_recorded` and the worker read it."""
    values: dict[str, Any] = {"Requests": list(check.requests), **overrides_of(check)}
    if check.requires:
        values["Requires"] = dict(check.requires)
    return json.dumps(values, separators=(",", ":")).encode()


def overrides_of(check: HealthCheck) -> dict[str, Any]:
    """The bounds that a health check gives."""
    values: dict[str, Any] = {}
    tolerance = {"Absolute": check.absolute, "Relative": check.relative}
    if given := {name: value for name, value in tolerance.items() if value is not None}:
        values["Tolerance"] = given
    if check.max_latency_ms is not None:
        values["MaxLatencyMs"] = check.max_latency_ms
    return values


def invalid(why: str) -> RejectedError:
    """That a package's health check cannot be used."""
    remedy = "Record it again with `marram package DIRECTORY --health samples.json`."
    return RejectedError(INVALID, f"the health check {RESERVED} of the archive is refused: {why}", remedy)


def read_probation(fields: Fields) -> Probation:
    """A document's ``Probation``. With Requests alone it still ends, after `LONGEST_S`; with Seconds alone by them."""
    counted = fields.has("Requests")
    seconds = fields.number("Seconds", LONGEST_S if counted else SHORT_S, 0, MAX_PROBATION_S)
    requests = fields.integer("Requests", None, 1, 1_000_000)
    rate = fields.number("MaxErrorRate", MAX_ERROR_RATE, 0, 1)
    max_latency_ms = fields.number("MaxLatencyMs", None, 0.001, MAX_LATENCY_MS)
    fields.done()
    return Probation(seconds or 0.0, requests, MAX_ERROR_RATE if rate is None else rate, max_latency_ms)


def _request(value: object, where: str, problems: Problems) -> dict[str, Any]:
    request = Fields(value, where, problems)
    inputs = _tensors(request, "Inputs")
    outputs = _tensors(request, "Outputs")
    if not inputs:
        request.bad("Inputs", "must name at least one input of the model")
    request.done()
    return {"Inputs": inputs, "Outputs": outputs}


def _tensors(request: Fields, key: str) -> dict[str, Any]:
    value = request.take(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        request.bad(key, f"must be an object of lists by name, not {shown(value)}")
        return {}
    for name, values in value.items():
        if (wrong := _wrong(values)) is not None:
            request.bad(f"{key}.{name}", f"must hold finite numbers, flags or texts in nested lists, not {wrong}")
    return value


def _wrong(values: object) -> str | None:
    """The first value that no tensor has, as a message shows it."""
    if isinstance(values, list):
        return next((found for each in values if (found := _wrong(each)) is not None), None)
    if isinstance(values, float):
        return None if math.isfinite(values) else shown(values)
    return None if isinstance(values, (bool, int, str)) else shown(values)


def _tolerance(fields: Fields) -> tuple[float | None, float | None]:
    """How far an output may be off: ``absolute + relative * |expected|``. One number stands for both."""
    value = fields.take("Tolerance")
    if not isinstance(value, dict):
        both = fields.number("Tolerance", None, 0, 1e30)
        return both, both
    parts = Fields(value, fields.path("Tolerance"), fields.problems)
    absolute, relative = parts.number("Absolute", None, 0, 1e30), parts.number("Relative", None, 0, 1e30)
    parts.done()
    return absolute, relative
