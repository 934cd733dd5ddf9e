"""Greengrass V1 groups: what its API's shapes allow is read, and a saved group becomes a document that a core takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.model import ServiceModel, Shape
from botocore.validate import ParamValidator
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from moto import mock_aws

from agent.deployment.document import Deployment, parse
from agent.errors import AgentError, ConfigError, RejectedError
from agent.greengrass_answers import LISTS
from agent.greengrass_import import Imported, import_group
from agent.settings import Policy, Subscription

MODEL: ServiceModel = botocore.session.get_session().get_service_model("greengrass")
POLICY = Policy(sources=("*",), destinations=("/",), local=("*",))
LAMBDA = "arn:aws:lambda:eu-west-1:123456789012:function:activity:3"
OTHER = "arn:aws:lambda:eu-west-1:123456789012:function:blink:PROD"
DETECTOR = "arn:aws:lambda:::function:GGIPDetector:1"
CONNECTOR = "arn:aws:greengrass:eu-west-1::/connectors/ModbusRTUProtocolAdapter/versions/3"
WATCHES = [f"arn:aws:iot:eu-west-1:123456789012:thing/watch-{i}" for i in range(2)]
CORE = "arn:aws:iot:eu-west-1:123456789012:thing/press-7"
CERTIFICATE = "arn:aws:iot:eu-west-1:123456789012:cert/0a0a"


def resource(id: str, **data: Any) -> dict[str, Any]:
    return {"Id": id, "Name": id, "ResourceDataContainer": data}


RESOURCES = [
    resource(
        "model",
        S3MachineLearningModelResourceData={
            "S3Uri": "s3://factory-models/activity.tar.gz",
            "DestinationPath": "/ml/activity",
            "OwnerSetting": {"GroupOwner": "ml", "GroupPermission": "ro"},
        },
    ),
    resource(
        "camera",
        LocalDeviceResourceData={"SourcePath": "/dev/video0", "GroupOwnerSetting": {"AutoAddGroupOwner": True}},
    ),
    resource("logs", LocalVolumeResourceData={"SourcePath": "/var/log", "DestinationPath": "/logs"}),
    resource(
        "secret",
        SecretsManagerSecretResourceData={"ARN": "arn:aws:secretsmanager:eu-west-1:123456789012:secret:s-AbCdEf"},
    ),
]
FUNCTIONS = [
    {
        "Id": "activity",
        "FunctionArn": LAMBDA,
        "FunctionConfiguration": {
            "EncodingType": "json",
            "ExecArgs": "--fast",
            "Executable": "lambda_function.lambda_handler",
            "FunctionRuntimeOverride": "python3.7",
            "MemorySize": 262144,
            "Pinned": True,
            "Timeout": 25,
            "Environment": {
                "AccessSysfs": True,
                "ResourceAccessPolicies": [{"ResourceId": each["Id"]} for each in RESOURCES],
                "Variables": {"MODE": "fast"},
            },
        },
    },
    {"Id": "blink", "FunctionArn": OTHER, "FunctionConfiguration": {"FunctionRuntimeOverride": "nodejs12.x"}},
    {"Id": "detector", "FunctionArn": DETECTOR, "FunctionConfiguration": {"Pinned": True}},
]
SUBSCRIPTIONS = [
    {"Id": "s0", "Source": WATCHES[0], "Subject": "motion", "Target": LAMBDA},
    {"Id": "s1", "Source": WATCHES[1], "Subject": "motion", "Target": LAMBDA},
    {"Id": "s2", "Source": LAMBDA, "Subject": "activity/#", "Target": "cloud"},
    {"Id": "s3", "Source": LAMBDA, "Subject": "$aws/things/x/shadow/update", "Target": "GGShadowService"},
    {"Id": "s4", "Source": CONNECTOR, "Subject": "modbus", "Target": LAMBDA},
    {"Id": "s5", "Source": WATCHES[0], "Subject": "hello", "Target": WATCHES[1]},
]
DEFAULT: dict[str, Any] = {"Execution": {"IsolationMode": "NoContainer", "RunAs": {"Uid": 1000, "Gid": 1000}}}
NOT_IN_MOTO = ("Loggers", "Connectors")
PARTS: dict[str, dict[str, Any]] = {
    "Resources": {"Resources": RESOURCES},
    "Functions": {"Functions": FUNCTIONS, "DefaultConfig": DEFAULT},
    "Subscriptions": {"Subscriptions": SUBSCRIPTIONS},
    "Loggers": {"Loggers": [{"Id": "l", "Type": "FileSystem", "Level": "INFO", "Component": "Lambda", "Space": 128}]},
    "Connectors": {"Connectors": [{"Id": "c", "ConnectorArn": CONNECTOR, "Parameters": {"a": "b"}}]},
    "Cores": {"Cores": [{"Id": "k", "ThingArn": CORE, "CertificateArn": CERTIFICATE, "SyncShadow": True}]},
    "Devices": {
        "Devices": [{"Id": f"d{i}", "ThingArn": w, "CertificateArn": CERTIFICATE} for i, w in enumerate(WATCHES)]
    },
}


def saved_group(parts: dict[str, dict[str, Any]] = PARTS, *, metadata: bool = True) -> dict[str, bytes]:
    """A group made through the API, and each of its answers as `aws greengrass get-..` would have saved it."""
    answers: list[dict[str, Any]] = []
    with mock_aws():
        client: Any = boto3.client("greengrass", "eu-west-1", aws_access_key_id="x", aws_secret_access_key="x")
        version: dict[str, str] = {}
        for key, definition in parts.items():
            report = ParamValidator().validate(definition, MODEL.shape_for(f"{key[:-1]}DefinitionVersion"))
            assert not report.has_errors(), report.generate_report()
            answer = _made_by_moto(client, key, definition) if key not in NOT_IN_MOTO else _made_by_hand(key)
            version[LISTS[key]] = answer["Arn"]
            answers.append({**answer, "Definition": definition})
        named = {LISTS[key]: version[LISTS[key]] for key in parts if key not in NOT_IN_MOTO}
        group = client.create_group(Name="Press line 3", InitialVersion=named)
        answers.append(client.get_group(GroupId=group["Id"]))
        answers.append(client.get_group_version(GroupId=group["Id"], GroupVersionId=group["LatestVersion"]))
        answers[-1]["Definition"] = version
    for answer in answers:
        if not metadata:
            answer.pop("ResponseMetadata", None)
    return {f"answer-{i}.json": json.dumps(each, default=str).encode() for i, each in enumerate(answers)}


def _made_by_moto(client: Any, key: str, definition: dict[str, Any]) -> dict[str, Any]:
    kind = key[:-1].lower()
    made = getattr(client, f"create_{kind}_definition")(Name=key, InitialVersion=_as_moto_takes_it(key, definition))
    ids = {f"{key[:-1]}DefinitionId": made["Id"], f"{key[:-1]}DefinitionVersionId": made["LatestVersion"]}
    answer: dict[str, Any] = getattr(client, f"get_{kind}_definition_version")(**ids)
    return answer


def _made_by_hand(key: str) -> dict[str, Any]:
    arn = f"arn:aws:greengrass:eu-west-1:123456789012:/greengrass/definition/{key.lower()}/1/versions/2"
    return {"Arn": arn, "Id": "1", "Version": "2", "CreationTimestamp": "2020-01-01T00:00:00Z"}


def _as_moto_takes_it(key: str, definition: dict[str, Any]) -> dict[str, Any]:
    """Without what moto itself stumbles over."""
    taken = {"Resources": {"Resources": RESOURCES[:1]}, "Subscriptions": {"Subscriptions": SUBSCRIPTIONS[:3]}}
    return taken.get(key, definition)


def read(made: Imported) -> Deployment:
    return parse(json.dumps(made.document).encode(), core="press-7", policy=POLICY)


@pytest.mark.parametrize("metadata", [True, False])
def test_a_saved_group_becomes_a_document_that_a_core_takes(metadata: bool) -> None:
    made = import_group(saved_group(metadata=metadata))
    deployment = read(made)
    assert deployment.id.startswith("greengrass-Press-line-3-")
    activity = deployment.function("activity")
    assert (activity.arn, activity.folder, activity.timeout_s, activity.pinned) == (LAMBDA, "activity", 25, True)
    assert activity.handler == "lambda_function.lambda_handler"
    assert activity.isolation == "NoContainer"
    assert dict(activity.variables) == {"MODE": "fast"}
    assert "model" in [each.resource for each in activity.policies]
    assert deployment.resource("model").destination == "/ml/activity"
    routes = [Subscription(s.source, s.subject, s.target) for s in deployment.subscriptions]
    assert routes == [
        Subscription("local", "motion", "function:activity"),
        Subscription("function:activity", "activity/#", "cloud"),
        Subscription("function:activity", "$aws/things/x/shadow/update", "GGShadowService"),
    ]
    assert [each.id for each in deployment.functions] == ["activity", "blink"]


def test_all_that_this_core_does_not_do_is_said() -> None:
    warnings = "\n".join(import_group(saved_group()).warnings)
    for words in (
        "AccessSysfs", "FunctionRuntimeOverride", "'nodejs12.x'", "GGIPDetector",
        "connectors/Modbus", "'l' is not used", "'c' is not used", "Cores: press-7", "shadow of press-7",
        "functions/activity", "functions/blink", "have each other's messages",
    ):  # fmt: skip
        assert words in warnings, f"{words} in:\n{warnings}"
    assert "[0]" not in warnings.replace("Loggers[0]", "").replace("Connectors[0]", "")


def test_what_is_not_supported_is_taken_out_with_all_that_names_it() -> None:
    made = import_group(saved_group())
    text = json.dumps(made.document)
    taken = [each.split()[2] for each in made.warnings if "no function has it" in each]
    for id in taken:
        assert f'"{id}"' not in text
    assert {"model"} <= {each["Id"] for each in made.document["Resources"]} <= {"model", "camera", "logs", "secret"}
    assert len(made.document["Resources"]) + len(taken) == len(RESOURCES)


def test_a_model_to_write_to_stays_one() -> None:
    data = RESOURCES[0]["ResourceDataContainer"]["S3MachineLearningModelResourceData"]
    owner = {**data, "OwnerSetting": {"GroupOwner": "ml", "GroupPermission": "rw"}}
    parts = {"Resources": {"Resources": [resource("model", S3MachineLearningModelResourceData=owner)]}}
    for isolation, permission in (("NoContainer", {}), ("GreengrassContainer", {"Permission": "rw"})):
        environment = {
            "ResourceAccessPolicies": [{"ResourceId": "model", **permission}],
            "Execution": {"IsolationMode": isolation},
        }
        function = {"Id": "f", "FunctionArn": LAMBDA, "FunctionConfiguration": {"Environment": environment}}
        made = import_group(saved_group({**parts, "Functions": {"Functions": [function]}}))
        assert [each.resource for each in read(made).function("f").policies] == ["model"]


def test_the_version_that_the_group_names_is_the_one() -> None:
    files = saved_group()
    older = json.loads(files["answer-1.json"])
    older["Definition"] = {"Functions": []}
    older["Arn"] = older["Arn"] + "-older"
    made = import_group({**files, "older.json": json.dumps(older).encode()})
    assert [each["Id"] for each in made.document["Functions"]][:2] == ["activity", "blink"]
    with pytest.raises(ConfigError, match="several definitions of Functions"):
        import_group(
            {
                k: v
                for k, v in {**files, "o": json.dumps(older).encode()}.items()
                if b"GroupId" not in v and b"DefinitionVersionArn" not in v
            }
        )


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no definition"),
        ({"a": b"{"}, "a is not JSON"),
        ({"a": b"[1, null, {}]"}, "no definition"),
        ({"a": b'{"Definition": {"Functions": []}, "NextToken": "x"}'}, "first page"),
        ({"a": b"[" * 100_000}, "not JSON"),
    ],
)
def test_what_is_no_group(files: dict[str, bytes], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        import_group(files)
    assert caught.value.code == "NOT_A_GROUP"


def test_a_part_that_was_not_saved_is_missed() -> None:
    files = saved_group()
    del files["answer-0.json"]
    with pytest.raises(ConfigError, match="Resources are in none of these files"):
        import_group(files)


def test_the_command(tmp_path: Path) -> None:
    for name, body in saved_group().items():
        (tmp_path / name).write_bytes(body)
    output = tmp_path / "out" / "deployment.json"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agent", "import-greengrass", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    wrong = run(tmp_path, "-o", output)
    assert wrong.returncode == 78
    assert "FILE_UNWRITABLE" in wrong.stderr
    output.parent.mkdir()
    done = run(tmp_path, "-o", output, "--id", "first")
    assert (done.returncode, done.stdout) == (0, "")
    assert "warning: the function activity" in done.stderr
    assert parse(output.read_bytes(), core="press-7", policy=POLICY).id == "first"
    printed = run(*sorted(tmp_path.glob("*.json")), "--id", "first")
    assert json.loads(printed.stdout) == json.loads(output.read_text())
    assert "NOT_A_GROUP" in run(output.parent / "deployment.json").stderr


# -- what the API's shapes allow --------------------------------------------------------------------------------------

WORDS = (
    st.sampled_from(
        ["a", "model", "s3://bucket/key.tar.gz", "/ml/x", LAMBDA, DETECTOR, CONNECTOR, WATCHES[0], "cloud", "ml"]
    )
    | st.text()
)


def values(shape: Shape, depth: int = 0) -> st.SearchStrategy[Any]:
    """Anything that botocore would take for `shape`."""
    if shape.type_name == "structure":
        members = {name: values(member, depth + 1) for name, member in shape.members.items()}  # type: ignore[attr-defined]
        required = {name: members.pop(name) for name in shape.required_members}  # type: ignore[attr-defined]
        return st.fixed_dictionaries(required, optional=members)
    if shape.type_name == "list":
        return st.lists(values(shape.member, depth + 1), max_size=2)  # type: ignore[attr-defined]
    if shape.type_name == "map":
        return st.dictionaries(WORDS, values(shape.value, depth + 1), max_size=2)  # type: ignore[attr-defined]
    if shape.type_name == "boolean":
        return st.booleans()
    if shape.type_name in ("integer", "long"):
        return st.integers(-(2**31), 2**31 - 1)
    choices = getattr(shape, "enum", None)
    return st.sampled_from(choices) if choices else WORDS


DEFINITIONS = {key: values(MODEL.shape_for(f"{key[:-1]}DefinitionVersion")) for key in PARTS}


@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.fixed_dictionaries({}, optional=DEFINITIONS))
def test_all_that_the_api_s_shapes_allow_is_read_or_refused_by_name(parts: dict[str, dict[str, Any]]) -> None:
    document: dict[str, Any] = {"DeploymentId": "d"}
    for definition in parts.values():
        document.update(definition)
    refused = ""
    try:
        parse(json.dumps(document).encode(), core="press-7", policy=POLICY)
    except RejectedError as error:
        refused = str(error)
    assert "unknown key" not in refused
    files = {key: json.dumps({"Definition": definition}).encode() for key, definition in parts.items()}
    code = None
    try:
        read(import_group(files))
    except AgentError as error:
        code = error.code
    assert code in (None, "NOT_A_GROUP", "BAD_DOCUMENT")


@pytest.mark.parametrize("name", ["GroupVersion", "FunctionDefinitionVersion"])
def test_the_members_of_v1_s_own_outer_shapes_are_known(name: str) -> None:
    members = MODEL.shape_for(name).members  # type: ignore[attr-defined]
    document = {
        "DeploymentId": "d",
        **{key: "arn:x" for key in members if key.endswith("Arn")},
        "DefaultConfig": DEFAULT,
    }
    refused = None
    try:
        parse(json.dumps(document).encode(), core="press-7", policy=POLICY)
    except RejectedError as error:
        refused = error
    assert refused is None or refused.code in ("NOT_SUPPORTED", "BAD_DOCUMENT")
    assert "unknown key" not in str(refused)
