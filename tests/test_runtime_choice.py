"""Versions that a model requires, and the interpreter that its runtime leads to."""

from __future__ import annotations

import dataclasses
import re

import pytest

from agent.deployment.definition import AccessPolicy, Deployment, Function, Resource, S3Source
from agent.deployment.interpreters import interpreter_of
from agent.deployment.model_runtimes import VERSIONS
from functions.errors import StartError
from functions.runtimes.versions import check, matches


@pytest.mark.parametrize(
    ("installed", "wanted", "holds"),
    [
        ("1.9.1", "1.9", True),
        ("1.9.1", "1.9.1", True),
        ("1.19.1", "1.1", False),
        ("1.9.1", "==1.9", False),
        ("1.9", "==1.9.0", True),
        ("1.9.1", "==1.9.*", True),
        ("1.9.1", "!=1.9.*", False),
        ("1.9.1", "!=1.9", True),
        ("2.21.0", ">=2.15, <3", True),
        ("3.0", ">=2.15,<3", False),
        ("2.0.1", ">2", True),
        ("2", ">=2.0.0", True),
        ("2.4.6", "<=2.4", False),
        ("1.23.5+cpu", "==1.23.5", True),
        ("2.0rc1", "2.0", True),
        ("", "1", False),
    ],
)
def test_versions(installed, wanted, holds):
    assert matches(installed, wanted) == holds
    assert re.fullmatch(VERSIONS, wanted)


def test_what_differs_is_told_with_both_versions():
    check({"numpy": ">=1", "python": ">=3.10", "onnx": "1.9"}, {"onnx": "1.9.2"})
    for requires, words in (
        ({"onnx": "1.8"}, ["requires onnx 1.8", "has onnx 1.9.2"]),
        ({"no-such-package": ">=1"}, ["has no no-such-package"]),
    ):
        with pytest.raises(StartError) as caught:
            check(requires, {"onnx": "1.9.2"})
        assert caught.value.code == "RUNTIME_VERSION_MISMATCH"
        assert all(word in caught.value.message for word in words)


DEPLOYMENT = Deployment(
    "d", "NewDeployment", None, "",
    resources=tuple(
        Resource(runtime or "silent", runtime or "silent", S3Source("s3://a/b"), runtime=runtime)
        for runtime in ("mxnet", "onnx", "tensorflow", None)
    ),
)  # fmt: skip
KNOWN = ("mxnet", "tensorflow", "other")


def function(*models: str, **more: str) -> Function:
    return Function("f", "function:f", policies=tuple(map(AccessPolicy, models)), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (function(), None),
        (function("mxnet"), "mxnet"),
        (function("onnx"), None),  # the policy names none for it: the agent's own
        (function("mxnet", "onnx"), "mxnet"),
        (function("mxnet", "tensorflow"), None),
        (function("mxnet", interpreter="other"), "other"),
        (function("mxnet", interpreter="gone"), "gone"),
        (function("mxnet", runtime="tensorflow"), "tensorflow"),
        (function("mxnet", runtime="onnx"), None),
        (function(runtime="mxnet"), "mxnet"),
        (function("silent"), None),
    ],
)
def test_the_interpreter_is_named_or_called_as_the_runtime(asked, name):
    assert interpreter_of(asked, DEPLOYMENT, KNOWN) == name


def test_files_tell_the_runtime_of_a_resource_that_does_not():
    assert interpreter_of(function("silent"), DEPLOYMENT, KNOWN, {"silent": "mxnet"}) == "mxnet"
    assert interpreter_of(function("silent"), DEPLOYMENT, (), {"silent": "mxnet"}) is None
    stated = dataclasses.replace(DEPLOYMENT.resources[0], id="silent")
    both = dataclasses.replace(DEPLOYMENT, resources=(stated,))
    assert interpreter_of(function("silent"), both, KNOWN, {"silent": "tensorflow"}) == "mxnet"
