"""Documents: what is read, what is refused and with which words; any bytes give a Deployment or one error type."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent.capture.policy import Capture, Random
from agent.deployment.definition import RunAs
from agent.deployment.document import (
    AccessPolicy,
    Batch,
    Deployment,
    FileSource,
    HttpsSource,
    Owner,
    S3Source,
    SageMakerSource,
    deployment_id_of,
    parse,
    read_accepted,
)
from agent.deployment.permissions import allows
from agent.errors import RejectedError
from agent.settings import Policy, Quotas, Subscription, TrustedKey

POLICY = Policy(
    sources=("s3://factory-models/*", "https://models.example.org/*", "file:///srv/models/*"),
    destinations=("/ml",),
    interpreters={"mxnet": ".venvs/mxnet/bin/python"},
)
DIGEST = "sha256:" + "0a" * 32
LAMBDA = "arn:aws:lambda:eu-west-1:123456789012:function:activity:3"

FULL: dict[str, Any] = {
    "DeploymentId": "2026-11-23-a",
    "DeploymentType": "NewDeployment",
    "Marram": {"Sequence": 42, "Core": "press-7"},
    "Resources": [
        {
            "Id": "activity-model",
            "Name": "ActivityModel",
            "ResourceDataContainer": {
                "S3MachineLearningModelResourceData": {
                    "S3Uri": "s3://factory-models/activity.tar.gz",
                    "DestinationPath": "/ml/activity",
                    "OwnerSetting": {"GroupOwner": "ml", "GroupPermission": "ro"},
                }
            },
            "Marram": {"Digest": DIGEST, "Runtime": "dlr", "Options": {"threads": 2}},
        },
        {
            "Id": "other",
            "Name": "Other",
            "ResourceDataContainer": {
                "HttpsMachineLearningModelResourceData": {"Url": "https://models.example.org/o.zip?X-Amz-Signature=s3cr3t"}
            },
        },
    ],
    "Functions": [
        {
            "Id": "activity",
            "FunctionArn": "function:activity",
            "FunctionConfiguration": {
                "EncodingType": "binary",
                "Timeout": 5,
                "MemorySize": 262144,
                "Pinned": True,
                "Executable": "handler",
                "Environment": {
                    "ResourceAccessPolicies": [
                        {"ResourceId": "activity-model", "Permission": "ro"},
                        {"ResourceId": "other"},
                    ],
                    "Variables": {"LEVEL": "3"},
                },
            },
            "Marram": {
                "Interpreter": "mxnet",
                "Processes": 2,
                "Batch": {"MaxSize": 8, "MaxDelayMs": 5},
                "Capture": {"Strategy": "random", "Rate": 0.1},
                "Meta": False,
            },
        },
        {"Id": "lambda", "FunctionArn": LAMBDA},
        {
            "Id": "endpoint",
            "FunctionArn": "marram:model",
            "FunctionConfiguration": {"Environment": {"ResourceAccessPolicies": [{"ResourceId": "other"}]}},
        },
    ],
    "Subscriptions": [
        {"Id": "s1", "Source": "local", "Subject": "sensors/+/motion", "Target": "function:activity"},
        {"Id": "s2", "Source": LAMBDA, "Subject": "#", "Target": "cloud"},
        {"Id": "s3", "Source": "arn:aws:iot:eu-west-1:123456789012:thing/watch", "Subject": "w", "Target": "cloud"},
        {"Id": "s4", "Source": "GGShadowService", "Subject": "$aws/things/x/shadow/#", "Target": "cloud"},
    ],
    "Loggers": [{"Id": "l1", "Type": "FileSystem", "Level": "INFO", "Component": "Lambda"}],
}  # fmt: skip


def read(values: Any, **more: Any) -> Deployment:
    return parse(json.dumps(values).encode(), **{"core": "press-7", "policy": POLICY, **more})


def refused(values: Any, **more: Any) -> RejectedError:
    with pytest.raises(RejectedError) as caught:
        read(values, **more)
    return caught.value


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    values = copy.deepcopy(FULL)
    change(values)
    return values


def test_the_whole_document_is_read() -> None:
    body = json.dumps(FULL).encode()
    found = parse(body, core="press-7", policy=POLICY)
    assert (found.id, found.type, found.sequence) == ("2026-11-23-a", "NewDeployment", 42)
    assert found.body_digest == hashlib.sha256(body).hexdigest()
    model, other = found.resources
    assert model.source == S3Source("s3://factory-models/activity.tar.gz")
    assert (model.destination, model.owner) == ("/ml/activity", Owner("ml", "ro"))
    assert (model.digest, model.runtime, dict(model.options)) == (DIGEST, "dlr", {"threads": 2})
    assert isinstance(other.source, HttpsSource)
    assert other.source.name == "https://models.example.org/o.zip"
    activity, v1, endpoint = found.functions
    assert (activity.folder, activity.encoding, activity.timeout_s) == ("activity", "binary", 5)
    assert (activity.memory_kb, activity.pinned, activity.handler) == (262144, True, "handler")
    assert activity.policies == (AccessPolicy("activity-model", "ro"), AccessPolicy("other"))
    assert (activity.variables, activity.interpreter, activity.processes) == ({"LEVEL": "3"}, "mxnet", 2)
    assert (activity.batch, activity.capture, activity.meta) == (Batch(8, 5), Capture(Random(0.1)), False)
    assert (v1.folder, v1.endpoint, v1.encoding, v1.timeout_s, v1.meta) == ("activity", False, "json", 3.0, True)
    assert (endpoint.folder, endpoint.endpoint) == (None, True)
    assert found.subscriptions == (
        Subscription("local", "sensors/+/motion", "function:activity", "s1"),
        Subscription("function:lambda", "#", "cloud", "s2"),
        Subscription("local", "w", "cloud", "s3"),
        Subscription("GGShadowService", "$aws/things/x/shadow/#", "cloud", "s4"),
    )
    said = "\n".join(found.warnings)
    assert all(word in said for word in ("'l1'", "IsolationMode"))


def executed(**more: Any) -> Any:
    """The function of a document that has `more` in its configuration, and what was warned of."""
    marram, execution = more.pop("Marram", {}), more.pop("Execution", None)
    environment = {"Execution": execution} if execution else {}
    configuration = {**more, "Environment": environment}
    function = {"Id": "f", "FunctionArn": "function:f", "FunctionConfiguration": configuration, "Marram": marram}
    return read({"DeploymentId": "d", "Functions": [function]}).functions[0]


def test_how_a_function_is_run_is_read() -> None:
    found = executed(
        Pinned=False,
        ExecArgs="--level 3 'two words'",
        Execution={"IsolationMode": "GreengrassContainer", "RunAs": {"Uid": 1000, "Gid": 50}},
        Marram={"KeepAlive": 5, "Isolation": "container", "Network": True, "DiskSize": 64},
    )
    assert (found.pinned, found.processes, found.keep_alive_s) == (False, 25, 5.0)
    assert found.arguments == ("--level", "3", "two words")
    assert (found.contained, found.run_as) == (True, RunAs(1000, 50))
    assert (found.demanded, found.network, found.disk_kb) == ("container", True, 64)
    bare = executed(Execution={"IsolationMode": "NoContainer"})
    assert (bare.pinned, bare.processes, bare.contained, bare.disk_kb) == (True, 1, False, None)
    assert executed().contained


def test_root_needs_the_policy() -> None:
    values = changed(at(f"{F}.Environment.Execution", {"RunAs": {"Uid": 0, "Gid": 0}}))
    error = refused(values)
    assert (error.code, "allow_root: true" in error.message) == ("NOT_ALLOWED", True)
    parse(json.dumps(values).encode(), core="press-7", policy=replace(POLICY, allow_root=True))


def test_msgpack_says_the_same_as_json() -> None:
    body = msgpack.packb(FULL)
    found = parse(body, core="press-7", policy=POLICY)
    expected = read(FULL)
    assert found.resources == expected.resources
    assert found.functions == expected.functions
    assert found.subscriptions == expected.subscriptions
    assert read_accepted(body).functions == expected.functions


def test_defaults_are_those_of_the_contract() -> None:
    found = read({"DeploymentId": "d", "Functions": [{"Id": "f", "FunctionArn": "function:f"}]})
    (function,) = found.functions
    assert (found.type, found.sequence, found.resources, found.subscriptions) == ("NewDeployment", None, (), ())
    assert (function.encoding, function.timeout_s, function.memory_kb) == ("json", 3.0, None)
    assert (function.processes, function.batch, function.capture, function.meta) == (1, Batch(32, 0), None, True)
    assert (function.handler, function.interpreter, function.isolation) == (None, None, None)


def at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the value at a path such as ``Resources.0.Id``; None removes it."""

    def change(values: Any) -> None:
        *way, last = [int(p) if p.isdecimal() else p for p in path.split(".")]
        for part in way:
            values = values[part]
        if value is None:
            del values[last]
        else:
            values[last] = value

    return change


R, F = "Resources.0.ResourceDataContainer.S3MachineLearningModelResourceData", "Functions.0.FunctionConfiguration"


def sagemaker(arn: str) -> dict[str, Any]:
    return {"SageMakerMachineLearningModelResourceData": {"SageMakerJobArn": arn}}


BAD = [
    (at("DeploymentId", None), "DeploymentId: is missing"),
    (at("DeploymentId", "a/b"), "DeploymentId: must be"),
    (at("DeploymentId", "-"), "DeploymentId: must be"),
    (at("DeploymentId", 5), "DeploymentId: must be"),
    (at("DeploymentType", "New"), "DeploymentType: must be one of"),
    (at("DeploymentType", "Redeployment"), "Resources: a Redeployment has no body"),
    (at("Resourcs", []), "unknown key 'Resourcs' (did you mean \"Resources\"?)"),
    (at("Resources", {}), "Resources: must be a list"),
    (at("Resources.0", 7), "Resources[0]: must be an object"),
    (at("Resources.0.Id", "a b"), "Resources[0].Id: must be"),
    (at("Resources.1.Id", "activity-model"), "a second resource has the Id"),
    (at("Resources.1.Name", "ActivityModel"), "a second resource has the Name"),
    (at("Resources.0.Name", None), "Resources[0].Name: is missing"),
    (at("Resources.0.ResourceDataContainer", {}), "must have exactly one member"),
    (at(f"{R}.S3Uri", "http://x/y"), "S3Uri: must be an S3 URI"),
    (at(f"{R}.S3Uri", "s3://two..dots/y"), "must be an S3 URI"),
    (at("Resources.0.ResourceDataContainer", sagemaker("arn:aws:sagemaker:r:1:x/j")), "a training job's ARN"),
    (at("Functions.0.Marram.Code", {"S3Uri": "s3://x-y/z", "Path": "/z"}), "must have exactly one of S3Uri, Url, Path"),
    (at("Functions.0.Marram.Code", {"S3Uri": "s3://x-y/z", "Digset": "x"}), '(did you mean "Digest"?)'),
    (at("Functions.2.Marram", {"Code": {"Path": "/z"}}), "marram:model has no code of its own"),
    (at(f"{R}.S3Uri", "s3://factory-models/../other/y"), "S3Uri: has"),
    (at(f"{R}.S3Uri", "s3://factory-models/a\nb"), "S3Uri:"),
    (at(f"{R}.DestinationPath", "ml/x"), "DestinationPath: must be an absolute path"),
    (at(f"{R}.DestinationPath", "/ml/../etc"), "DestinationPath: must be an absolute path"),
    (at(f"{R}.DestinationPath", "/"), "DestinationPath: must be an absolute path"),
    (at(f"{R}.OwnerSetting", {"GroupOwner": "ml"}), "GroupPermission: is missing"),
    (at(f"{R}.OwnerSetting.GroupPermission", "rx"), "GroupPermission: must be one of ro, rw"),
    (at("Resources.1", {"Id": "d", "Name": "d", "ResourceDataContainer": {"LocalDeviceResourceData": {"SourcePath":
     "/etc/x"}}}), "a device lies below /dev"),
    (at("Resources.1", {"Id": "d", "Name": "d", "ResourceDataContainer": {"LocalVolumeResourceData": {"SourcePath":
     "/sys/x", "DestinationPath": "/x"}}}), "is the kernel's own and no volume"),
    (at("Resources.1", {"Id": "d", "Name": "d", "ResourceDataContainer": {"LocalVolumeResourceData": {"SourcePath":
     "/srv/../x", "DestinationPath": "/x"}}}), "SourcePath: must be an absolute path"),
    (at("Resources.0.Marram.Digest", "sha256:0A"), "Digest: must be"),
    (at("Resources.0.Marram.Runtime", "dlrr"), '(did you mean "dlr"?)'),
    (at("Resources.0.Marram.Options", {"a": [[[[[[[[1]]]]]]]]}), "Options: must be"),
    (at("Resources.0.Marram.RuntimeVersion", "new"), "a version such as"),
    (at("Resources.0.Marram.Requires", {"numpy": "~1"}), "Requires.numpy"),
    (at("Resources.0.Marram.Requires", ["numpy"]), "Requires: must be an object"),
    (at("Functions.0.Marram.Runtime", "mxnett"), '(did you mean "mxnet"?)'),
    (at("Functions.0.FunctionArn", "activity"), "FunctionArn: must be"),
    (at("Functions.0.FunctionArn", "function:../x"), "FunctionArn: must be"),
    (at("Functions.1.Id", "activity"), "a second function has the Id"),
    (at(f"{F}.Timeout", 0), "Timeout: must be a number from"),
    (at(f"{F}.Timeout", True), "Timeout: must be a number from"),
    (at(f"{F}.MemorySize", 1.5), "MemorySize: must be a whole number"),
    (at(f"{F}.EncodingType", "xml"), "EncodingType: must be one of json, binary"),
    (at(f"{F}.Environment.Variables", {"A": 1}), "Variables.A: must be"),
    (at(f"{F}.Environment.Variables", {"A=B": "1"}), "must be a variable's name"),
    (at(f"{F}.Environment.Variables", {"AWS_GG_RESOURCE_PREFIX": "/"}), "is set by the agent"),
    (at(f"{F}.Environment.ResourceAccessPolicies.0.ResourceId", "actvity-model"), '(did you mean "activity-model"?)'),
    (at(f"{F}.Environment.ResourceAccessPolicies.1.ResourceId", "activity-model"), "is named twice"),
    (at(f"{F}.Environment.Execution", {"IsolationMode": "NoContainer"}), "NoContainer takes no Permission"),
    (at(f"{F}.Environment.Execution", {"IsolationMode": "NoContainer"}), "NoContainer needs an OwnerSetting"),
    (at(f"{F}.Environment.Execution", {"RunAs": {}}), "names neither Uid nor Gid"),
    (at(f"{F}.Environment.Execution", {"RunAs": {"Uid": -1}}), "Uid"),
    (at(f"{F}.ExecArgs", "--name 'un"), "ExecArgs"),
    (at("Functions.0.Marram.KeepAlive", 5), "KeepAlive"),
    (at("Functions.0.Marram.Isolation", "chroot"), "Isolation"),
    (at(f"{F}.Environment.ResourceAccessPolicies.0.Permission", "rw"), "rw is more than the owner"),
    (at("Functions.0.Marram.Processes", 0), "Processes: must be a whole number from 1"),
    (at("Functions.0.Marram.Batch", {"MaxSise": 1}), '(did you mean "MaxSize"?)'),
    (at("Functions.0.Marram.Capture", {"Strategy": "random"}), "Rate: is missing"),
    (at("Functions.0.Marram.Capture.Rate", 1.1), "Rate: must be a number from 0 to 1"),
    (at("Functions.2.FunctionConfiguration", None), "marram:model serves exactly one model resource; 0 are named"),
    (at("Subscriptions.0.Subject", "a/#/b"), "Subject: in the filter 'a/#/b'"),
    (at("Subscriptions.0.Target", "function:activty"), '(did you mean "function:activity"?)'),
    (at("Subscriptions.0.Source", LAMBDA[:-1] + "4"), "Source: must be local, cloud"),
    (at("Subscriptions.1.Id", "s1"), "a second subscription has the Id s1"),
    (at("Subscriptions.1", {**FULL["Subscriptions"][0], "Id": "s9"}), "says the same as the subscription s1"),
    (at("Marram.Sequence", -1), "Marram.Sequence: must be a whole number"),
    (at("Marram.Sequenc", 1), '(did you mean "Sequence"?)'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_what_is_wrong_is_said(change: Callable[[dict[str, Any]], None], words: str) -> None:
    error = refused(changed(change))
    assert error.code == "BAD_DOCUMENT"
    assert words in error.message
    assert error.remedy


def test_all_problems_are_said_at_once() -> None:
    def change(values: dict[str, Any]) -> None:
        at("Resources.0.Name", None)(values)
        at(f"{F}.Timeout", 0)(values)
        at("Subscriptions.0.Subject", "a/#/b")(values)
        at("Functions.0.Marram.Interpreter", "tf")(values)

    error = refused(changed(change), policy=Policy())
    assert error.code == "BAD_DOCUMENT"
    for words in ("Name: is missing", "Timeout", "a/#/b", "interpreters: {tf:", 'sources: ["s3://factory-models/*"]'):
        assert words in error.message
    assert error.message.startswith("6 problems: ")


UNSUPPORTED = [
    (at(f"{F}.Executable", "com.example.Handler::handle"), "functions are Python here"),
    (at(f"{F}.FunctionRuntimeOverride", "java8"), "FunctionRuntimeOverride"),
]


@pytest.mark.parametrize(("change", "words"), UNSUPPORTED, ids=[words for _, words in UNSUPPORTED])
def test_what_is_not_built_yet_is_refused_by_name(change: Callable[[dict[str, Any]], None], words: str) -> None:
    values = changed(change)
    error = refused(values)
    assert error.code == "NOT_SUPPORTED"
    assert words in error.message


def test_the_policy_is_in_force() -> None:
    error = refused(FULL, policy=Policy(destinations=("/ml",)))
    assert error.code == "NOT_ALLOWED"
    for words in ('sources: ["s3://factory-models/*"]', "https://models.example.org/*", "interpreters: {mxnet:"):
        assert words in error.message
    assert "s3cr3t" not in str(error)
    assert refused(FULL, policy=Policy(trusted_keys=(TrustedKey(Path("key"), bytes(32)),))).code == "UNSIGNED"


@pytest.mark.parametrize(
    ("quotas", "words"),
    [
        (Quotas(resources=0), "the group's resources: 2 is more than this core allows (0)"),
        (Quotas(functions=1), "the group's functions: 4 is more than this core allows (1)"),
        (Quotas(subscriptions=0), "policy: {quotas: {subscriptions: "),
        (Quotas(processes=4), "policy: {quotas: {processes: 7}}"),
        (Quotas(memory_bytes=2**30), "the function free: has no MemorySize"),
        (Quotas(memory_bytes=2**20), "MiB is more than this core allows (1 MiB)"),
    ],
)
def test_a_quota_is_not_gone_beyond(quotas: Quotas, words: str) -> None:
    def ask_for_more(values: dict[str, Any]) -> None:
        values["Functions"][0]["Marram"]["Processes"] = 4
        values["Functions"].append({"Id": "free", "FunctionArn": "function:free", "FunctionConfiguration": {}})

    values = changed(ask_for_more)
    assert read(values).functions[1].processes == 1
    error = refused(values, policy=replace(POLICY, quotas=quotas))
    assert error.code == "NOT_ALLOWED"
    assert words in error.message


def test_a_bucket_with_a_dot_is_refused_unless_the_policy_allows_it() -> None:
    values = changed(at(f"{R}.S3Uri", "s3://models.factory/m.zip"))
    error = refused(values, policy=replace(POLICY, sources=("*",)))
    assert error.code == "NOT_ALLOWED"
    assert "allow_dotted_buckets: true" in error.message
    allowed = replace(POLICY, sources=("*",), allow_dotted_buckets=True)
    assert read(values, policy=allowed).resources[0].source.name == "s3://models.factory/m.zip"


def test_a_training_job_is_a_source() -> None:
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:training-job/activity-7"
    values = changed(at("Resources.0.ResourceDataContainer", sagemaker(arn)))
    assert refused(values).code == "NOT_ALLOWED"
    policy = replace(POLICY, sources=(*POLICY.sources, "arn:aws:sagemaker:*:123456789012:*"))
    assert read(values, policy=policy).resources[0].source == SageMakerSource(arn)


def test_a_code_package_is_a_source_in_the_place_of_a_folder() -> None:
    code = {"S3Uri": "s3://factory-models/c.zip", "Digest": f"sha256:{'0' * 64}"}
    values = changed(at("Functions.0.Marram.Code", code))
    error = refused(values)
    assert error.code == "NOT_ALLOWED"
    assert "allow_unsigned_code: true" in error.message
    policy = replace(POLICY, allow_unsigned_code=True)
    function = read(values, policy=policy).functions[0]
    assert (function.code, function.code_digest) == (S3Source(code["S3Uri"]), code["Digest"])
    assert function.folder is None
    elsewhere = changed(at("Functions.0.Marram.Code", {"Path": "/etc/code.zip"}))
    assert "file:///etc/code.zip is not allowed here" in refused(elsewhere, policy=policy).message


def test_a_destination_outside_the_policy_is_a_warning() -> None:
    found = read(FULL, policy=Policy(POLICY.sources, ("/other",), POLICY.interpreters))
    assert any("policy.destinations" in warning and "/ml/activity" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("s3://a/*", "s3://a/b/c.zip", True), ("s3://a/*", "s3://ab/c", False),
        ("s3://a/*.zip", "s3://a/b/c.zip", True),
        ("s3://a/b", "s3://a/b", True), ("s3://a/b", "s3://a/bc", False), ("s3://a.b/*", "s3://axb/c", False),
        ("*", "https://x/y", True), ("", "s3://a/b", False), ("s3://a/[bc]", "s3://a/b", False),
        ("s3://a/?", "s3://a/b", False),
    ],
)  # fmt: skip
def test_policy_patterns(pattern: str, name: str, expected: bool) -> None:
    assert allows(pattern, name) is expected


def test_a_document_for_another_core_and_a_retained_one() -> None:
    assert refused(FULL, core="press-8").code == "WRONG_CORE"
    assert read(FULL, retained=True).sequence == 42
    error = refused(changed(at("Marram.Sequence", None)), retained=True)
    assert (error.code, "Marram.Sequence: is asked for" in error.message) == ("BAD_DOCUMENT", True)


@pytest.mark.parametrize(
    ("first", "second", "nested"),
    [("/ml/a", "/ml/a", True), ("/ml/a", "/ml/a/b", True), ("/ml/a/", "/ml/ab", False), ("/ml/a-b", "/ml/a", False)],
)
def test_destinations_of_one_function_are_apart(first: str, second: str, nested: bool) -> None:
    def change(values: dict[str, Any]) -> None:
        at(f"{R}.DestinationPath", first)(values)
        data = values["Resources"][1]["ResourceDataContainer"]["HttpsMachineLearningModelResourceData"]
        data["DestinationPath"] = second

    if nested:
        assert "equal or one lies within the other" in refused(changed(change)).message
    else:
        assert read(changed(change)).resources[1].destination == second


@pytest.mark.parametrize("kind", ["file", "https"])
def test_paths_and_urls_cannot_leave_where_the_policy_looks(kind: str) -> None:
    wrong = {
        "file": ["/srv/models/../x", "srv/models/x", "//srv/models/x", "/srv/models/x/"],
        "https": [
            "http://models.example.org/x", "https://u:p@models.example.org/x", "https://models.example.org/a/../b",
            "https://models.example.org/%2e%2e/b", "https://", "https://models.example.org/x#y", "https://h:99999/x",
        ],
    }[kind]  # fmt: skip
    name, key = {"file": ("File", "Path"), "https": ("Https", "Url")}[kind]
    for value in wrong:
        container = {f"{name}MachineLearningModelResourceData": {key: value}}
        assert refused(changed(at("Resources.1.ResourceDataContainer", container))).code == "BAD_DOCUMENT", value
    if kind == "file":
        container = {"FileMachineLearningModelResourceData": {"Path": "/srv/models/x.zip"}}
        found = read(changed(at("Resources.1.ResourceDataContainer", container)))
        assert found.resources[1].source == FileSource("/srv/models/x.zip")


def test_mxnets_engine_of_the_documentation_is_mapped() -> None:
    found = read(changed(at(f"{F}.Environment.Variables", {"MXNET_ENGINE_TYPE": "NativeEngine"})))
    assert found.functions[0].variables == {"MXNET_ENGINE_TYPE": "NaiveEngine"}
    assert any("NativeEngine" in warning for warning in found.warnings)


@pytest.mark.parametrize("type", ["Redeployment", "ResetDeployment", "ForceResetDeployment"])
def test_types_without_a_body(type: str) -> None:
    found = read({"DeploymentId": "d", "DeploymentType": type, "Resources": []})
    assert (found.type, found.functions) == (type, ())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{", b"null", b'{"DeploymentId": NaN}', b'{"DeploymentId": "a", "DeploymentId": "b"}', b"\xc1",
        b'{"a": "\xff"}', b"[" * 100_000, b'{"a":' * 100_000, b"\x81" * 2000, msgpack.packb({1: 2}),
        msgpack.packb({b"DeploymentId": "x"}), b'{"DeploymentId": "d", "x": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"DeploymentId": "\\ud800"}', b'{"DeploymentId": ' + b"9" * 5000 + b"}",
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_no_document(body: bytes) -> None:
    with pytest.raises(RejectedError) as caught:
        parse(body, core="press-7", policy=POLICY)
    assert caught.value.code == "BAD_DOCUMENT"
    assert len(str(caught.value).encode()) < 1000
    assert deployment_id_of(body) in ("-", "d")


def test_a_huge_document_is_not_read() -> None:
    body = b'{"DeploymentId": "d", "x": "' + b"x" * 9_000_000 + b'"}'
    with pytest.raises(RejectedError):
        parse(body, core="press-7", policy=POLICY)


def test_the_id_is_found_in_documents_that_are_wrong_otherwise() -> None:
    assert deployment_id_of(b'{"DeploymentId": "d-1", "Nonsense": 1}') == "d-1"
    assert deployment_id_of(b'{"DeploymentId": "a/b"}') == "-"
    assert deployment_id_of(b'{"DeploymentId": 7}') == "-"
    assert deployment_id_of(msgpack.packb({"DeploymentId": "m"})) == "m"


CODES = ("read", "BAD_DOCUMENT", "NOT_SUPPORTED", "NOT_ALLOWED", "WRONG_CORE")


def code_of(body: bytes) -> str:
    try:
        parse(body, core="press-7", policy=POLICY)
    except RejectedError as error:
        return error.code if error.message and "\n" not in error.message else "a message of several lines"
    return "read"


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_deployment_or_one_error(body: bytes) -> None:
    assert code_of(body) in CODES
    deployment_id_of(body)


def paths_of(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(path for key, child in children for path in paths_of(child, (*way, key)))]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip


@hypothesis_settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(paths_of(FULL)[1:]), value=ANYTHING)
def test_any_value_anywhere_gives_a_deployment_or_one_error(path: tuple[Any, ...], value: Any) -> None:
    values = copy.deepcopy(FULL)
    place: Any = values
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    try:
        body = msgpack.packb(values)
    except OverflowError:
        return  # an integer beyond msgpack's 64 bits
    assert code_of(body) in CODES
