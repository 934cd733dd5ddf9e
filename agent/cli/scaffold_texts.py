"""What `marram new` writes: texts with $names in them, and a small model."""

from __future__ import annotations

import base64
from typing import Final

# Inputs `data` float32[any, 2] (a bearing's temperature in degrees Celsius, its vibration in mm/s), output `scores`
# float32[any, 2] (good, worn): softmax of a dense layer, opset 13, written with onnx 1.16's helpers.
SAMPLE_MODEL: Final = base64.b64decode(
    "CAgSBm1hcnJhbTqeAQoVCgRkYXRhCgF3CgFiEgFzIgRHZW1tCiEKAXMSBnNjb3JlcyIHU29mdG1heCoLCgRheGlzGAGgAQISBHdlYXIqGwgCCAIQAUIB"
    "d0oQzcxMvc3MTD3NzEy/zcxMPyoRCAIQAUIBYkoIAADAQAAAwMBaFAoEZGF0YRIMCgoIARIGCgAKAggCYhYKBnNjb3JlcxIMCgoIARIGCgAKAggCQgQK"
    "ABAN"
)
SAMPLE_EVENT: Final = {"data": [[78.0, 9.1]]}

CODE_WITH_MODEL: Final = '''\
"""$name: runs the model $resource.

Event: ``{$keys}``, nested lists of numbers. Answer: the model's outputs by name, as nested lists.
"""

from __future__ import annotations

from typing import Any

from functions.sdk import Context, RequestError

MODEL = "$resource"
INPUTS = $inputs


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """The model's outputs for the inputs in the event."""
    missing = [name for name in INPUTS if name not in event]
    if missing:
        raise RequestError("INPUT_MISSING", f"The event lacks {', '.join(missing)}.")
    outputs = context.model(MODEL).predict({name: event[name] for name in INPUTS})
    return {name: values.tolist() for name, values in outputs.items()}
'''

TEST_WITH_MODEL: Final = '''\
"""$name, run as its worker on a device runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.testing import Function, RefusedError

FOLDER = Path(__file__).parent.parent
MODEL = $model_path
EVENT = $event
OUTPUTS = $outputs


@pytest.fixture(scope="module")
def function() -> Iterator[Function]:
    with Function(FOLDER, models={"$resource": MODEL}) as function:
        yield function


def test_it_answers_with_the_models_outputs(function: Function) -> None:
    answer = function.ask(EVENT)
    assert set(OUTPUTS) <= answer.payload.keys()
    assert answer.payload["meta"]["model"] == "$resource"


def test_an_event_without_inputs_is_refused(function: Function) -> None:
    with pytest.raises(RefusedError) as refused:
        function.ask({})
    assert refused.value.code == "INPUT_MISSING"


def test_inputs_that_the_model_does_not_take_are_refused(function: Function) -> None:
    with pytest.raises(RefusedError) as refused:
        function.ask({name: "no numbers" for name in EVENT})
    assert refused.value.code == "BAD_INPUT"
'''

CODE: Final = '''\
"""$name: the mean of what a sensor measured.

Event: ``{"values": [1.5, 2.5]}``. Answer: ``{"mean": 2.0, "count": 2}``.
"""

from __future__ import annotations

from typing import Any

from functions.sdk import Context, RequestError


def handler(event: dict[str, Any], context: Context) -> dict[str, Any]:
    """The mean of ``event["values"]``."""
    values = event.get("values")
    if not values:
        raise RequestError("VALUES_MISSING", "The event has no values.")
    context.logger.debug("%d values on %s", len(values), context.topic)
    return {"mean": sum(values) / len(values), "count": len(values)}
'''

TEST: Final = '''\
"""$name, run as its worker on a device runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.testing import Function, RefusedError


@pytest.fixture(scope="module")
def function() -> Iterator[Function]:
    with Function(Path(__file__).parent.parent) as function:
        yield function


def test_the_mean(function: Function) -> None:
    answer = function.ask({"values": [1.5, 2.5]})
    assert (answer.payload["mean"], answer.payload["count"]) == (2.0, 2)


def test_an_event_without_values_is_refused(function: Function) -> None:
    with pytest.raises(RefusedError) as refused:
        function.ask({})
    assert refused.value.code == "VALUES_MISSING"
'''

RESOURCE: Final = """\
Resources:
  - Id: $resource
    Name: $resource
    ResourceDataContainer:
      # Or from elsewhere: S3MachineLearningModelResourceData: {S3Uri: "s3://BUCKET/$name.tar.gz"}
      FileMachineLearningModelResourceData: {Path: $archive}
    Marram: {Digest: "$digest"$runtime}
"""

DOCUMENT: Final = """\
# `marram deploy $document --wait` gives this to the agent on this machine; with --core and --broker, to another.
# A deployment is all that a core runs: functions that are to run together stand in one document.
DeploymentId: $name-1          # each deployment has an id of its own: $name-2 is the next
${resources}Functions:
  - Id: $name
    FunctionArn: function:$name
    FunctionConfiguration:
      EncodingType: json
      Timeout: 3
      Pinned: true
${environment}Subscriptions:
  - {Id: $name-in, Source: local, Subject: $name/in, Target: "function:$name"}
  - {Id: $name-out, Source: "function:$name", Subject: $name/in/$name, Target: local}
"""

SETTINGS: Final = """\
# The settings of one core, written by `marram new`: a broker of the agent's own on 127.0.0.1:1883 is both links.
core: $core
functions: [functions]
$policy"""
