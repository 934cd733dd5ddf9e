"""Greengrass V1 Lambda code with greengrasssdk 1.6.1 as it is: a real agent, a real broker, each call of the SDK."""

from __future__ import annotations

import importlib.metadata
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.cli import commands
from functions.errors import StartError
from functions.greengrass.entry import find
from tests.agent_kit import CORE, Core, function, subscription
from tests.mqtt_kit import Mosquitto, PlainClient, wait_until
from tests.s3_kit import S3Server
from tests.worker_kit import WorkerChild, bare_interpreter, function_config, write_function

PREFIX = "arn:aws:lambda:eu-west-1:123456789012:function:"
SECRET = "sesame-of-v1"


def arn(name: str, qualifier: str = "1") -> str:
    return f"{PREFIX}{name}:{qualifier}"


def lambda_function(id: str, **more: Any) -> dict[str, Any]:
    return function(id, arn=arn(f"v1_{id}"), Pinned=True, **more)


@dataclass
class Shop:
    """A core that runs V1 code, and a client of its broker."""

    core: Core
    device: PlainClient
    secret: str

    def ask(self, function: str, event: Any, *, topic: str | None = None) -> Any:
        body = event if isinstance(event, bytes) else json.dumps(event).encode()
        place = commands.Place(self.core.config)
        answer = commands.infer(place, function, body, topic=topic, content_type=None, timeout_s=30)
        return answer.payload if not isinstance(answer.payload, bytes) else json.loads(answer.payload)

    def errand(self, do: str, **event: Any) -> Any:
        """What the SDK's call gave, or the name and text of what it raised."""
        said = self.ask("errands", {"do": do, **event})
        return said["gave"] if "gave" in said else (said["raised"], said["text"])

    def heard(self, topic: str) -> list[Any]:
        return [json.loads(m.payload) for m in list(self.device.received) if m.topic == topic]

    def wait_for(self, topic: str, count: int = 1) -> list[Any]:
        wait_until(lambda: len(self.heard(topic)) >= count, f"{count} messages on {topic}", 20)
        return self.heard(topic)


GROUP = {
    "Functions": [
        lambda_function("ticker", MemorySize=262144),
        lambda_function("errands", Timeout=20, Environment={"ResourceAccessPolicies": [{"ResourceId": "pin"}]}),
        lambda_function("forever", Timeout=2),
        function("bytes", arn="function:v1_bytes", EncodingType="binary", Executable="reverse"),
        lambda_function("peer", Executable="peer.lambda_handler", Timeout=4),
        function("native", arn="function:echo"),
        lambda_function("late", marram={"Capture": {"Strategy": "random", "Rate": 1}}),
    ],
    "Subscriptions": [
        subscription(arn("v1_ticker"), "ticks/#", "local"),
        subscription(arn("v1_ticker"), "heard/#", "local"),
        subscription("local", "to/ticker", arn("v1_ticker")),
        subscription(arn("v1_forever"), "turns", "local"),
        subscription("local", "to/forever", arn("v1_forever")),
        subscription(arn("v1_errands"), "out/#", "local"),
        subscription(arn("v1_errands"), "peer/#", arn("v1_peer")),
        subscription(arn("v1_peer"), "told", "local"),
        subscription("local", "to/bytes", "function:bytes"),
        subscription("function:native", "#", "local"),
        subscription("local", "to/late", "function:late"),
    ],
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Shop]:
    directory = tmp_path_factory.mktemp("shop")
    secret = s3_server.client("secretsmanager").create_secret(Name="v1/pin", SecretString=SECRET)["ARN"]
    resource = {
        "Id": "pin",
        "Name": "pin",
        "ResourceDataContainer": {"SecretsManagerSecretResourceData": {"ARN": secret}},
    }
    policy = {"sources": ["arn:aws:secretsmanager:*"]}
    broker = Mosquitto(directory / "broker")
    with broker, Core(directory / "core", local={"url": broker.url}, s3=s3_server, policy=policy) as core:
        core.wait_linked()
        device = PlainClient(broker.port, "device")
        for topic in (
            "ticks/#",
            "heard/#",
            "turns",
            "out/#",
            "told",
            "replies/#",
            "invoke/#",
            f"marram/{CORE}/capture/#",
        ):
            device.subscribe(topic)
        core.deploy({"DeploymentId": "v1", "Resources": [resource], **GROUP})
        yield Shop(core, device, secret)


# -- where it begins --------------------------------------------------------------------------------------------------


def entry(folder: Path, files: dict[str, str], executable: str | None = None) -> tuple[str | None, str] | None:
    for name, text in files.items():
        (folder / name).write_text(text)
    found = find("f", str(folder), executable)
    return (found.module, found.handler) if found else None


V1 = "import greengrasssdk\ndef {}(event, context): pass\n"


@pytest.mark.parametrize(
    ("files", "executable", "expected"),
    [
        ({"__init__.py": "def handler(e, c): pass"}, None, None),
        ({"__init__.py": "def handler(e, c): pass\ndef function_handler(e, c): pass"}, None, None),
        ({"__init__.py": "def function_handler(e, c): pass"}, None, (None, "function_handler")),
        ({"__init__.py": V1.format("own")}, "own", (None, "own")),
        ({"__init__.py": "def own(e, c): pass"}, "own", None),
        ({"main.py": V1.format("function_handler")}, None, ("main", "function_handler")),
        ({"main.py": V1.format("go"), "a.py": V1.format("lambda_handler")}, "main.go", ("main", "go")),
        ({"main.py": V1.format("lambda_handler"), "lib.py": "x = 1"}, None, ("main", "lambda_handler")),
        ({"lib.py": "x = 1"}, None, None),
    ],
)
def test_where_v1_code_begins(
    tmp_path: Path, files: dict[str, str], executable: str | None, expected: tuple[str | None, str] | None
) -> None:
    assert entry(tmp_path, files, executable) == expected


def test_what_is_no_entry_is_said(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"several handlers.*a\.function_handler, b.function_handler"):
        entry(tmp_path, {f"{name}.py": V1.format("function_handler") for name in "ab"})
    with pytest.raises(StartError, match=r"its folder has no c\.py"):
        entry(tmp_path, {}, "c.go")


# -- handlers ---------------------------------------------------------------------------------------------------------


def test_the_sdk_is_the_one_from_pypi(shop: Shop) -> None:
    assert importlib.metadata.version("greengrasssdk") == "1.6.1"


def test_a_timer_of_the_top_level_publishes(shop: Shop) -> None:
    ticks = shop.wait_for("ticks/one", 3)
    assert ticks[0]["thing"] == CORE
    assert [each["tick"] for each in ticks] == sorted(each["tick"] for each in ticks)


def test_a_message_reaches_the_handler_and_its_return_value_no_topic(shop: Shop) -> None:
    shop.device.publish("to/ticker", json.dumps({"n": 1}))
    heard = shop.wait_for("heard/to/ticker")
    assert heard[0] == {"event": {"n": 1}, "custom": {"subject": "to/ticker"}}
    assert not [m for m in shop.device.received if m.topic.startswith("to/ticker/")]


def test_the_return_value_answers_a_request(shop: Shop) -> None:
    answer = shop.ask("ticker", {"n": 2}, topic="to/ticker")
    assert (answer["subject"], answer["arn"]) == ("to/ticker", arn("v1_ticker"))
    assert (answer["name"], answer["version"], answer["memory"]) == ("v1_ticker", "1", 256)
    assert 0 < answer["remaining"] <= 3000
    assert answer["request"]
    assert "meta" not in answer


def test_bytes_come_and_go_as_bytes(shop: Shop) -> None:
    shop.device.publish("to/bytes", b"\x00\x01\xff", response_topic="replies/bytes")
    wait_until(lambda: any(m.topic == "replies/bytes" for m in list(shop.device.received)), "the answer")
    assert next(m.payload for m in shop.device.received if m.topic == "replies/bytes") == b"\xff\x01\x00"


def test_a_top_level_that_takes_its_time_finds_its_files(shop: Shop) -> None:
    assert shop.ask("late", [1]) == {"helped": [1], "own": "# helps"}


def test_a_sample_holds_what_the_handler_returned(shop: Shop) -> None:
    shop.device.publish("to/late", json.dumps([2]))
    wait_until(lambda: any(s["topic"] == "to/late" for s in shop.heard(f"marram/{CORE}/capture/late")), "the sample")
    sample = next(s for s in shop.heard(f"marram/{CORE}/capture/late") if s["topic"] == "to/late")
    assert (sample["input"], sample["output"]) == ([2], {"helped": [2], "own": "# helps"})


def test_a_top_level_that_never_returns_runs_and_its_handler_is_not_called(shop: Shop) -> None:
    before = len(shop.wait_for("turns"))
    answer = shop.ask("forever", {})
    assert answer["error"]["code"] == "FUNCTION_BUSY"
    turns = shop.wait_for("turns", before + 3)
    assert [each["turn"] for each in turns] == list(range(turns[0]["turn"], turns[0]["turn"] + len(turns)))


def test_only_v1_code_finds_v1_modules(tmp_path: Path) -> None:
    source = """
import importlib.util

NAMES = ("greengrass_common", "greengrass_ipc_python_sdk")


def {}(event, context):
    return [name for name in NAMES if importlib.util.find_spec(name)]
"""
    for name, expected in (("handler", []), ("function_handler", ["greengrass_common", "greengrass_ipc_python_sdk"])):
        folder = write_function(tmp_path / name, source.format(name))
        with WorkerChild(function_config(folder)) as child:
            child.ready()
            outcome = child.ask({}, wanted=True)
            body = outcome.answer[1] if outcome.answer else outcome.outputs[0][2]
            assert json.loads(body) == expected


def test_without_the_sdk_it_is_said_how_to_get_it(tmp_path: Path) -> None:
    folder = tmp_path / "v1"
    folder.mkdir()
    (folder / "main.py").write_text(V1.format("function_handler"))
    with WorkerChild(function_config(folder), interpreter=bare_interpreter(tmp_path / "bare", "msgpack")) as child:
        code, message = child.failed()
    assert code == "FUNCTION_IMPORT_FAILED"
    assert "-m pip install greengrasssdk==1.6.1" in message
    assert "main.py:1" in message


def test_a_top_level_that_ends_late_with_an_error_is_a_lost_worker(tmp_path: Path) -> None:
    folder = write_function(tmp_path / "falls", LATE_FALL)
    with WorkerChild(function_config(folder)) as child:
        child.ready()
        assert child.process.wait(30) == 1
        assert "RuntimeError: the sensor is gone (__init__.py:7)" in child.output


LATE_FALL = """
import time

began = time.monotonic()
while time.monotonic() - began < 5.5:
    time.sleep(0.05)
raise RuntimeError("the sensor is gone")


def function_handler(event, context):
    return None
"""


# -- iot-data ---------------------------------------------------------------------------------------------------------


def test_publish_goes_along_the_subscriptions(shop: Shop) -> None:
    for n, more in enumerate([{}, {"file": True}, {"policy": "BestEffort"}, {"policy": "AllOrException"}]):
        assert shop.errand("publish", topic=f"out/{n}", payload=json.dumps({"n": n}), **more) is None
        assert shop.wait_for(f"out/{n}") == [{"n": n}]
    assert shop.errand("publish", topic="nobody/asked", payload="{}") is None
    assert shop.errand("publish", topic="peer/x", payload=json.dumps({"what": "tell", "n": 7})) is None
    assert shop.wait_for("told")[-1]["n"] == 7


def test_publish_says_what_is_wrong(shop: Shop) -> None:
    assert shop.errand("publish", topic="out/#", payload="")[0] == "InvocationException"
    assert "BAD_RESULT_TOPIC" in shop.errand("publish", topic="out/#", payload="")[1]
    assert shop.errand("publish", topic="out/x", payload="", policy="Sometimes")[0] == "ValueError"


def test_shadows_of_things(shop: Shop) -> None:
    missing = shop.errand("shadow", operation="get", thing="pump")
    assert missing[0] == "ShadowError"
    assert "error code 404" in missing[1]
    accepted = shop.errand("shadow", operation="update", thing="pump", payload={"state": {"desired": {"on": True}}})
    assert (accepted["version"], accepted["state"]) == (1, {"desired": {"on": True}})
    whole = shop.errand("shadow", operation="get", thing="pump")
    assert whole["state"] == {"desired": {"on": True}, "delta": {"on": True}}
    stale = {"state": {"reported": {"on": True}}, "version": 9}
    assert "error code 409" in shop.errand("shadow", operation="update", thing="pump", payload=stale)[1]
    assert "error code 400" in shop.errand("shadow", operation="update", thing="pump", raw="{]")[1]
    large = {"state": {"reported": {"text": "x" * 9000}}}
    assert "error code 413" in shop.errand("shadow", operation="update", thing="pump", payload=large)[1]
    assert shop.errand("shadow", operation="delete", thing="pump")["version"] == 1
    assert "error code 404" in shop.errand("shadow", operation="delete", thing="pump")[1]


# -- lambda -----------------------------------------------------------------------------------------------------------


def test_invoke_gives_the_answer_of_another_function(shop: Shop) -> None:
    context = {"custom": {"why": "a test"}, "env": {"a": 1}}
    for more in ({}, {"Qualifier": "1"}):
        name = arn("v1_peer") if not more else f"{PREFIX}v1_peer"
        found = shop.errand("invoke", function=name, payload={"n": 1}, context=context, **more)
        assert found["error"] == ""
        assert json.loads(found["payload"]) == {"event": {"n": 1}, "custom": context["custom"], "arn": arn("v1_peer")}
    assert json.loads(shop.errand("facade", function=arn("v1_peer"), payload=[1])["payload"])["event"] == [1]
    assert json.loads(shop.errand("invoke", function="native", payload={"n": 2})["payload"])["echo"] == {"n": 2}
    assert shop.errand("invoke", function=arn("v1_peer"), payload={"what": "tell"})["payload"] == "null"
    assert json.loads(shop.errand("invoke", function=arn("v1_peer"))["payload"])["event"] is None


def test_invoke_as_an_event_does_not_wait(shop: Shop) -> None:
    before, began = len(shop.heard("told")), time.monotonic()
    event = {"what": "tell", "mark": "event"}
    found = shop.errand("invoke", function=arn("v1_peer"), payload=event, InvocationType="Event")
    assert found == {"error": "", "payload": ""}
    assert time.monotonic() - began < 20
    assert shop.wait_for("told", before + 1)[-1]["mark"] == "event"


def test_invoke_tells_failures_of_the_function_from_those_that_are_found(shop: Shop) -> None:
    raised = shop.errand("invoke", function=arn("v1_peer"), payload={"what": "raise"})
    assert raised["error"] == "Handled"
    assert "it was asked to" in json.loads(raised["payload"])["errorMessage"]
    ended = shop.errand("invoke", function=arn("v1_peer"), payload={"what": "exit"})
    assert ended["error"] == "Unhandled"
    assert json.loads(ended["payload"])["errorType"] == "WORKER_CRASHED"
    shop.core.wait_ready("peer")
    late = shop.errand("invoke", function=arn("v1_peer"), payload={"what": "sleep", "seconds": 30})
    assert (late["error"], json.loads(late["payload"])["errorType"]) == ("Unhandled", "FUNCTION_TIMEOUT")
    shop.core.wait_ready("peer")


def test_invoke_of_what_is_not_there_is_refused(shop: Shop) -> None:
    for kind in ("RequestResponse", "Event"):
        refused = shop.errand("invoke", function=arn("v1_nobody"), payload={}, InvocationType=kind)
        assert refused[0] == "InvocationException"
        assert "FUNCTION_NOT_DEPLOYED" in refused[1]
    assert shop.errand("invoke", function=arn("v1_peer"), Qualifier="2")[0] == "ValueError"
    assert shop.errand("invoke", function=f"{PREFIX}v1_peer", Qualifier="2")[0] == "InvocationException"
    assert shop.errand("invoke", function="arn:aws:s3:::bucket")[0] == "ValueError"


def test_functions_that_would_wait_for_each_other_are_told_so(shop: Shop) -> None:
    back = {"what": "back", "function": arn("v1_errands"), "payload": {"do": "invoke", "function": "native"}}
    found = shop.errand("invoke", function=arn("v1_peer"), payload=back)
    said = json.loads(found["payload"])
    assert (found["error"], said["error"]) == ("", "Unhandled")
    assert json.loads(said["said"])["errorType"] == "INVOKE_CYCLE"
    assert shop.ask("native", {"n": 1})["echo"] == {"n": 1}


# -- secretsmanager, stream manager -----------------------------------------------------------------------------------


def test_a_secret_by_its_arn_and_by_its_name(shop: Shop) -> None:
    for id in (shop.secret, "v1/pin"):
        found = shop.errand("secret", ask={"SecretId": id, "VersionStage": "AWSCURRENT"})
        assert (found["SecretString"], found["ARN"], found["Name"]) == (SECRET, shop.secret, "v1/pin")
        assert (found["VersionStages"], found["year"] >= 2020) == (["AWSCURRENT"], True)
    missing = shop.errand("secret", ask={"SecretId": "v1/other"})
    assert missing[0] == "SecretsManagerError"
    assert "error code 404" in missing[1]
    assert "404" in shop.errand("secret", ask={"SecretId": "v1/pin", "VersionStage": "OLD"})[1]
    assert shop.errand("secret", ask={"SecretId": "v1/pin", "VersionId": "x"})[0] == "SecretsManagerError"
    assert SECRET not in shop.core.tail(1_000_000)


def test_what_there_is_not_says_so(shop: Shop) -> None:
    raised = shop.errand("stream")
    assert raised[0] == "ImportError"
    assert "stream manager is not a part of this core" in raised[1]
    group = {"DeploymentId": "broken", "Functions": [lambda_function("broken")]}
    reason = shop.core.deploy(group, expect="FAILED")["reason"]
    assert reason["code"] == "FUNCTION_IMPORT_FAILED"
    assert "stream manager is not a part of this core" in reason["message"]
    assert "broken.py:3" in reason["message"]
