"""What a trial asks for, and what it makes of what it sees: golden requests compared, outcomes judged."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from agent.deployment import health as reading
from agent.deployment import quarantine
from agent.deployment.definition import HealthCheck, Probation
from agent.deployment.fields import Fields, Problems
from agent.errors import AgentError, FunctionError, RejectedError
from agent.inference.probation import CRASHES, FEW, SURE, Watch
from functions import frames, health
from functions.errors import CodedError
from functions.runtimes.base import Array, Model, TensorSpec


class Halves(Model):
    """Gives half of what it gets, the rounded one as a class, and its name."""

    runtime = "made-up"
    thread_safe = True

    def __init__(self, factor: float = 0.5) -> None:
        names = (("half", "float32"), ("class", "int64"), ("name", "string"))
        outputs = [TensorSpec(name, (None, 2), dtype) for name, dtype in names]
        super().__init__([TensorSpec("x", (None, 2), "float32")], outputs)
        self.factor = factor
        self.runs = 0

    def _run(self, arrays: dict[str, Array]) -> dict[str, Array]:
        self.runs += 1
        half = arrays["x"] * np.float32(self.factor)
        classes = np.nan_to_num(half, posinf=0).astype(np.int64)
        return {"half": half, "class": classes, "name": np.full(half.shape, "h", dtype=object)}


RIGHT = {"half": [[1.0, 2.0]], "class": [[1, 2]], "name": [["h", "h"]]}
REQUEST = {"Inputs": {"x": [[2, 4]]}, "Outputs": RIGHT}


def checked(model: Model, *requests: dict[str, Any], overrides: dict[str, Any] | None = None, **bounds: Any) -> Any:
    """What a worker answers to a CHECK: None, or its code and message."""
    body = json.dumps({"Requests": list(requests), **bounds}).encode()
    buffers = health.answer([frames.CHECK, 7, "m", overrides or {}], body, {"m": model})
    ((header, _),) = frames.FrameReader().feed(b"".join(bytes(each) for each in buffers))
    assert header[:2] == [frames.CHECKED, 7]
    return None if header[2] is None else (header[2], header[3])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (
            {**REQUEST, "Outputs": {"half": [[1.0, 2.1]]}},
            ("request 1", "half[0][1]", "expected 2.1", "got 2.0", "0.001"),
        ),
        ({**REQUEST, "Outputs": {"class": [[1, 3]]}}, ("class[0][1]", "expected 3, got 2")),
        ({**REQUEST, "Outputs": {"name": [["h", "g"]]}}, ("name[0][1]", "expected g, got h")),
        ({**REQUEST, "Outputs": {"half": [1.0, 2.0]}}, ("expected the shape [2], got [1, 2]",)),
        ({**REQUEST, "Outputs": {"other": [1]}}, ("no output other",)),
        ({"Inputs": {"y": [[1, 2]]}}, ('"x" is missing',)),
    ],
)
def test_what_differs_is_named(request_: dict[str, Any], words: tuple[str, ...]) -> None:
    assert checked(Halves(), REQUEST) is None
    code, message = checked(Halves(), request_)
    assert code == "HEALTH_CHECK_FAILED"
    assert [word for word in words if word not in message] == []


def test_the_tolerance_is_absolute_and_relative_and_no_matter_for_classes() -> None:
    near = {**REQUEST, "Outputs": {"half": [[1.0005, 2.001]]}}
    assert checked(Halves(), near) is None
    assert checked(Halves(), near, Tolerance=1e-5)[0] == "HEALTH_CHECK_FAILED"
    assert checked(Halves(), near, Tolerance=1e-5, overrides={"Tolerance": {"Absolute": 0.01}}) is None
    assert checked(Halves(), near, Tolerance={"Absolute": 0, "Relative": 0.01}) is None
    far = {"Inputs": {"x": [[4000, 4]]}, "Outputs": {"class": [[2001, 2]]}}
    assert checked(Halves(), far, Tolerance=100)[0] == "HEALTH_CHECK_FAILED"


def test_nan_is_refused_also_where_nothing_is_expected() -> None:
    code, message = checked(Halves(float("nan")), {"Inputs": {"x": [[1, 2]]}})
    assert (code, "half[0][0]: got NaN" in message) == ("HEALTH_CHECK_FAILED", True)
    with pytest.raises(CodedError) as caught:
        health.record(Halves(float("inf")), [{"x": [[1, 2]]}])
    assert "Sample 1, output half" in caught.value.message


def test_a_latency_is_the_median_of_some_runs() -> None:
    model = Halves()
    assert checked(model, REQUEST, MaxLatencyMs=60_000) is None
    assert model.runs == 1 + health.RUNS
    assert checked(model, REQUEST, MaxLatencyMs=60_000, overrides={"MaxLatencyMs": 1e-9})[0] == "HEALTH_CHECK_SLOW"


def test_what_is_recorded_is_a_health_check_that_passes() -> None:
    outputs = health.record(Halves(), [REQUEST["Inputs"]])
    assert outputs == [RIGHT]
    made = HealthCheck(({"Inputs": REQUEST["Inputs"], "Outputs": outputs[0]},), 0.1, 0.2, 5.0)
    assert reading.read_recorded(reading.encode(made)) == made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "object"),
        ('{"Requests": []}', "no Requests"),
        ('{"Requests": [{"Outputs": {"a": [1]}}]}', "Requests[0].Inputs"),
        ('{"Requests": [{"Inputs": {"a": [NaN]}}]}', "NaN"),
        ('{"Requests": [{"Inputs": {"a": [1e999]}}]}', "finite"),
        ('{"Requests": [{"Inputs": {"a": [null]}}]}', "Inputs.a"),
        ('{"Requests": [{"Inputs": {"a": [1]}}], "Tolerence": 1}', '(did you mean "Tolerance"?)'),
        ('{"Requests": [{"Inputs": {"a": [1]}}], "Tolerance": {"Absolute": -1}}', "Tolerance.Absolute"),
        ('{"Requests": [{"Inputs": {"a": [1]}}], "MaxLatencyMs": 0}', "MaxLatencyMs"),
    ],
)
def test_a_health_check_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(RejectedError) as caught:
        reading.read_recorded(text.encode())
    assert caught.value.code == "HEALTH_CHECK_INVALID"
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Probation(5.0, None)),
        ({"Seconds": 9}, Probation(9, None)),
        ({"Requests": 7}, Probation(600.0, 7)),
        ({"Seconds": 0, "MaxErrorRate": 0, "MaxLatencyMs": 3}, Probation(0, None, 0, 3)),
    ],
)
def test_a_probation_ends_by_whichever_comes_first(values: dict[str, Any], expected: Probation) -> None:
    problems = Problems()
    assert reading.read_probation(Fields(values, "p", problems)) == expected
    assert problems.found == []


# -- judging ----------------------------------------------------------------------------------------------------------

FAULT = FunctionError("FUNCTION_RAISED", "RuntimeError")
GARBAGE = FunctionError("BAD_PAYLOAD", "not JSON")


def verdict(watch: Watch) -> str | None:
    try:
        watch.check()
    except AgentError as error:
        return error.code
    return None


def test_requests_are_counted_and_a_senders_faults_are_not() -> None:
    watch = Watch(Probation(60, 10), 0.0)
    for _ in range(9):
        watch.settled(None, 0.01)
        watch.settled(GARBAGE, 0.0)
    assert not watch.decided(1.0)
    watch.settled(None, 0.01)
    assert watch.decided(1.0)
    assert verdict(watch) is None
    assert Watch(Probation(60, 10), 0.0).decided(60.0)


def test_too_few_answers_prove_nothing() -> None:
    watch = Watch(Probation(5), 0.0)
    for _ in range(FEW - 1):
        watch.settled(FAULT, 0.0)
    assert watch.too_few
    assert verdict(watch) is None
    watch.settled(FAULT, 0.0)
    assert not watch.too_few
    assert verdict(watch) == "PROBATION_ERROR_RATE"
    asked_for_one = Watch(Probation(5, 1), 0.0)
    asked_for_one.settled(FAULT, 0.0)
    assert verdict(asked_for_one) == "PROBATION_ERROR_RATE"


def test_what_is_surely_bad_is_not_waited_for() -> None:
    watch = Watch(Probation(3600, None, 0.1), 0.0)
    for _ in range(SURE - 1):
        watch.settled(FAULT, 0.0)
    assert not watch.decided(1.0)
    watch.settled(FAULT, 0.0)
    assert watch.decided(1.0)
    slow = Watch(Probation(3600, None, 0.1, 5.0), 0.0)
    for _ in range(SURE):
        slow.settled(None, 0.006)
    assert slow.decided(1.0)
    assert verdict(slow) == "PROBATION_SLOW"


def test_a_loop_is_several_crashes_of_one_function_close_together() -> None:
    crash, late = FunctionError("WORKER_CRASHED", "segfault"), FunctionError("FUNCTION_TIMEOUT", "late")
    watch = Watch(Probation(3600), 0.0)
    for n in range(CRASHES - 1):
        watch.lost("a", crash, n)
        watch.lost("b", crash, n)
        watch.lost("a", late, n)
    watch.lost("a", crash, 1000.0)
    assert verdict(watch) is None
    for _ in range(CRASHES - 1):
        watch.lost("a", crash, 1001.0)
    assert watch.decided(1002.0)
    with pytest.raises(FunctionError, match="segfault"):
        watch.check()


# -- quarantine -------------------------------------------------------------------------------------------------------


def test_what_failed_together_is_refused_together() -> None:
    reason = {"code": "PROBATION_CRASH_LOOP", "message": "so"}
    entry = quarantine.entry_of({"m2", "c2", "old"}, {"m1", "c1", "old"}, "d2", reason)
    assert entry == {"digests": ["c2", "m2"], "deploymentId": "d2", "code": "PROBATION_CRASH_LOOP"}
    entries = quarantine.added([], entry)
    assert quarantine.added(entries, entry) == entries
    for fine in ({"m2", "c3"}, {"m1", "c2"}, set[str]()):
        quarantine.refuse(entries, fine)
    with pytest.raises(RejectedError) as caught:
        quarantine.refuse(entries, {"m2", "c2", "new"})
    assert caught.value.code == "QUARANTINED"
    assert "d2" in caught.value.message
    assert quarantine.lifted(entries, {"m2"}) == entries
    assert quarantine.lifted(entries, {"m2", "c2"}) == []
    assert quarantine.entry_of({"a"}, {"a"}, "d3", reason) is None
