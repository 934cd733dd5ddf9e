"""The contracts of docs/contracts.md, one by one, from outside: messages only, on one running core."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.agent_kit import CORE, Core, by_hand, function, layers, resource, subscription
from tests.conftest import Site
from tests.mqtt_kit import Mosquitto, PlainClient, wait_until
from tests.s3_kit import S3Server
from tests.test_main_job import X, put_model, user_properties

LAMBDA = "arn:aws:lambda:eu-west-1:123456789012:function:echo:3"
THING = "arn:aws:iot:eu-west-1:123456789012:thing/press-7-sensor"
NO_META = {"Meta": False}


def document(id: str, uri: str) -> dict[str, Any]:
    return {
        "DeploymentId": id,
        "Resources": [resource(uri)],
        "Functions": [
            function("scores", models=("model",)),
            function("endpoint", arn="marram:model", models=("model",)),
            function("several"),
            function("plain", arn="function:echo", marram=NO_META),
            function("bytes", arn="function:echo", EncodingType="binary"),
            function("lambda", arn=LAMBDA),
            function("sleepy", Timeout=30),
            function("after", arn="function:echo"),
        ],
        "Subscriptions": [
            subscription("local", "scores/#", "function:scores"),
            subscription("local", "scores/+/twice", "function:scores"),
            subscription("cloud", "from-cloud/x", "function:scores"),
            subscription("function:scores", "#", "local"),
            subscription("local", "endpoint/x", "function:endpoint"),
            subscription("local", "several/x", "function:several"),
            subscription("function:several", "#", "local"),
            subscription("local", "plain/x", "function:plain"),
            subscription("function:plain", "#", "local"),
            subscription("local", "bytes/x", "function:bytes"),
            subscription("function:bytes", "#", "local"),
            subscription(THING, "lambda/x", LAMBDA),
            subscription(LAMBDA, "#", THING),
            subscription("local", "sleepy/x", "function:sleepy"),
            subscription("function:sleepy", "#", "local"),
            subscription("function:lambda", "lambda/x/lambda", "function:after"),
            subscription("function:after", "#", "cloud"),
            subscription("local", "up/#", "cloud"),
            subscription("cloud", "down/#", "local"),
        ],
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[tuple[Site, Core]]:
    directory = tmp_path_factory.mktemp("contracts")
    with Mosquitto(directory / "local", persistence=True) as local, Mosquitto(directory / "cloud") as cloud:
        site = Site(directory, local, cloud, s3_server)
        made = put_model(site, 1, key="contracts.tar.gz")
        with site.core() as core:
            core.wait_linked()
            core.deploy(document("c1", made["uri"]))
            yield site, core


class Ears:
    """A device that hears everything on a broker."""

    def __init__(self, client: PlainClient) -> None:
        self.client = client
        client.subscribe("#")
        client.received.clear()

    def on(self, topic: str, count: int = 1, deadline_s: float = 20) -> list[paho.MQTTMessage]:
        wait_until(lambda: len(self.now(topic)) >= count, f"{count} messages on {topic}", deadline_s)
        return self.now(topic)

    def now(self, topic: str) -> list[paho.MQTTMessage]:
        return [m for m in list(self.client.received) if m.topic == topic]


@pytest.fixture
def device(running: tuple[Site, Core]) -> Iterator[Ears]:
    with running[0].device("contract-device") as client:
        yield Ears(client)


@pytest.fixture
def cloud(running: tuple[Site, Core]) -> Iterator[Ears]:
    with running[0].observer("contract-cloud") as client:
        yield Ears(client)


def say(ears: Ears, topic: str, event: Any, **more: Any) -> None:
    ears.client.publish(topic, event if isinstance(event, bytes) else json.dumps(event), **more)


def flush(device: Ears) -> None:
    """Returns when everything that was sent before has been routed: one request after it was answered."""
    say(device, "plain/x", {"flush": 1}, response_topic="flushed")
    device.on("flushed")


def test_overlapping_filters_are_one_event(device: Ears) -> None:
    say(device, "scores/a/twice", {"x": X})
    device.on("scores/a/twice/scores")
    flush(device)
    assert len(device.now("scores/a/twice/scores")) == 1


def test_a_request_from_the_cloud_is_answered_on_the_cloud_s_link(device: Ears, cloud: Ears) -> None:
    say(cloud, "from-cloud/x", {"x": X}, response_topic="cloud/replies", correlation=b"c")
    (answer,) = cloud.on("cloud/replies")
    np.testing.assert_allclose(json.loads(answer.payload)["scores"], by_hand(layers(1), X), atol=1e-5)
    flush(device)
    assert not device.now("cloud/replies")


@pytest.mark.parametrize("qos", [0, 1])
def test_a_result_has_its_request_s_qos(device: Ears, qos: int) -> None:
    say(device, f"scores/qos{qos}", {"x": X}, qos=qos, response_topic=f"replies/qos{qos}")
    (answer,) = device.on(f"replies/qos{qos}")
    (result,) = device.on(f"scores/qos{qos}/scores")
    assert answer.qos == result.qos == qos


def test_msgpack_with_arrays_goes_in_and_out(device: Ears) -> None:
    array = {"shape": [16], "dtype": "float32", "data": np.asarray(X, "<f4").tobytes()}
    say(device, "scores/m", msgpack.packb({"x": array}), content_type="application/msgpack", response_topic="replies/m")
    (answer,) = device.on("replies/m")
    assert answer.properties.ContentType == "application/msgpack"
    got = msgpack.unpackb(answer.payload)
    scores = got["scores"]
    values = np.frombuffer(scores["data"], scores["dtype"]) if isinstance(scores, dict) else np.asarray(scores)
    np.testing.assert_allclose(values, by_hand(layers(1), X), atol=1e-5)
    assert got["meta"]["deployment"] == "c1"


def test_the_endpoint_s_msgpack_twin(device: Ears) -> None:
    tensor = {"name": "data", "shape": [1, 16], "datatype": "FP32", "data": np.asarray(X, "<f4").tobytes()}
    body = msgpack.packb({"id": "twin", "inputs": [tensor]})
    say(device, "endpoint/x", body, content_type="application/msgpack", response_topic="replies/twin")
    (answer,) = device.on("replies/twin")
    got = msgpack.unpackb(answer.payload)
    assert (got["id"], got["model_name"]) == ("twin", "model")
    assert got["outputs"][0]["datatype"] == "FP32"
    np.testing.assert_allclose(np.frombuffer(got["outputs"][0]["data"], "<f4"), by_hand(layers(1), X), atol=1e-5)


def test_bytes_go_to_a_binary_function_as_they_are(device: Ears) -> None:
    say(device, "bytes/x", b"\x00\xff raw", response_topic="replies/bytes")
    (answer,) = device.on("replies/bytes")
    assert answer.payload == b"\x00\xff raw"
    assert user_properties(answer)["deployment"] == "c1"


def test_the_content_type_decides_over_the_function_s_encoding(device: Ears) -> None:
    say(device, "bytes/x", {"a": 1}, content_type="application/json; charset=utf-8", response_topic="replies/ct")
    assert json.loads(device.on("replies/ct")[0].payload)["echo"] == {"a": 1}


def test_the_response_topic_wins_over_reply_to_and_there_is_one_answer(device: Ears) -> None:
    say(device, "plain/x", {"meta": {"id": "q", "reply_to": "replies/loser"}}, response_topic="replies/winner")
    device.on("replies/winner")
    flush(device)
    assert len(device.now("replies/winner")) == 1
    assert not device.now("replies/loser")


def test_of_a_list_the_first_is_the_answer_and_all_are_results(device: Ears) -> None:
    say(device, "several/x", {}, response_topic="replies/several")
    assert json.loads(device.on("replies/several")[0].payload)["first"] == 1
    assert json.loads(device.on("several/x/several")[0].payload)["first"] == 1
    assert json.loads(device.on("other/topic")[0].payload)["second"] == 2


def test_no_result_is_answered_with_meta_alone(device: Ears) -> None:
    say(device, "several/x", {"none": 1}, response_topic="replies/none", correlation=b"\xff\x00")
    (answer,) = device.on("replies/none")
    assert json.loads(answer.payload) == {"meta": {"request": "ff00", "deployment": "c1"}}
    flush(device)
    assert not device.now("several/x/several")


def test_meta_can_be_off_and_the_user_properties_stay(device: Ears) -> None:
    say(device, "plain/x", {"a": 1, "meta": {"id": "mine"}})
    (result,) = device.on("plain/x/plain")
    assert "meta" not in json.loads(result.payload)
    assert user_properties(result)["request"] == "mine"


def test_lambda_and_thing_arns_and_a_function_after_a_function(device: Ears, cloud: Ears) -> None:
    say(device, "lambda/x", {"v": 1})
    assert json.loads(device.on("lambda/x/lambda")[0].payload)["echo"] == {"v": 1}
    (last,) = cloud.on("lambda/x/lambda/after")
    assert json.loads(last.payload)["echo"]["echo"] == {"v": 1}


def test_messages_go_from_link_to_link_once(device: Ears, cloud: Ears) -> None:
    say(device, "up/a", b"to the cloud")
    assert cloud.on("up/a")[0].payload == b"to the cloud"
    say(cloud, "down/a", b"to the devices")
    assert device.on("down/a")[0].payload == b"to the devices"
    flush(device)
    assert len(cloud.now("up/a")) == 1
    assert len(device.now("down/a")) == 1


def test_what_has_expired_in_the_queue_is_answered_so(device: Ears) -> None:
    say(device, "sleepy/x", {"seconds": 2.5})
    properties = Properties(PacketTypes.PUBLISH)
    properties.MessageExpiryInterval = 1
    properties.ResponseTopic = "replies/late"
    device.client.client.publish("sleepy/x", json.dumps({"seconds": 0}), 1, properties=properties)
    (answer,) = device.on("replies/late")
    assert json.loads(answer.payload)["error"]["code"] == "EXPIRED"


@pytest.mark.parametrize("held_s", [0.0, 0.02, 0.2])
def test_a_request_under_way_at_a_kill_is_answered_by_the_next_agent(
    running: tuple[Site, Core], device: Ears, held_s: float
) -> None:
    """Killed before the agent has acknowledged the request, around that time, and when it is in the inbox."""
    _, core = running
    say(device, "sleepy/x", {"seconds": 1.0, "meta": {"id": "survivor", "reply_to": "replies/survivor"}})
    time.sleep(held_s)
    core.kill()
    core.start()
    core.wait_ready("sleepy")
    answer = json.loads(device.on("replies/survivor", deadline_s=60)[0].payload)
    assert answer["slept"] == 1.0
    assert answer["meta"]["request"] == "survivor"
    core.wait_ready("scores", "several")


def told(cloud: Ears, id: str) -> list[dict[str, Any]]:
    return [json.loads(m.payload) for m in cloud.now(f"marram/{CORE}/deployments/{id}/status")]


def end_of(cloud: Ears, id: str) -> dict[str, Any]:
    wait_until(lambda: [s for s in told(cloud, id) if s["status"] != "IN_PROGRESS"], f"the end of {id}", 60)
    return [s for s in told(cloud, id) if s["status"] != "IN_PROGRESS"][-1]


def deploy(cloud: Ears, body: Any, **more: Any) -> None:
    cloud.client.publish(f"marram/{CORE}/deployments", body if isinstance(body, bytes) else json.dumps(body), **more)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[1]", b'{"DeploymentId": 7}', b'{"no": "id"}'])
def test_a_document_that_cannot_be_read_is_answered_with_a_dash(cloud: Ears, body: bytes) -> None:
    deploy(cloud, body)
    assert end_of(cloud, "-")["reason"]["code"] == "BAD_DOCUMENT"


def test_a_retained_document_needs_a_sequence(cloud: Ears) -> None:
    deploy(cloud, {"DeploymentId": "kept", "Functions": []}, retain=True)
    assert end_of(cloud, "kept")["status"] == "REJECTED"
    cloud.client.publish(f"marram/{CORE}/deployments", b"", retain=True)


def test_devices_cannot_deploy(device: Ears, cloud: Ears) -> None:
    device.client.publish(f"marram/{CORE}/deployments", json.dumps({"DeploymentId": "evil", "Functions": []}))
    flush(device)
    assert not told(cloud, "evil")


def test_redeployment_and_reset(running: tuple[Site, Core], cloud: Ears, device: Ears) -> None:
    site, core = running
    deploy(cloud, msgpack.packb({"DeploymentId": "again", "DeploymentType": "Redeployment"}))
    last = end_of(cloud, "again")
    assert last["status"] == "SUCCEEDED"
    say(device, "scores/re", {"x": X}, response_topic="replies/re")
    assert json.loads(device.on("replies/re")[0].payload)["meta"]["deployment"] == "again"

    changed = put_model(site, 2, key="contracts.tar.gz")
    deploy(cloud, {"DeploymentId": "changed", "DeploymentType": "Redeployment"})
    assert end_of(cloud, "changed")["resources"][0]["version"] == changed["digest"]
    say(device, "scores/ch", {"x": X}, response_topic="replies/ch")
    np.testing.assert_allclose(
        json.loads(device.on("replies/ch")[0].payload)["scores"], by_hand(layers(2), X), atol=1e-5
    )

    deploy(cloud, {"DeploymentId": "empty", "DeploymentType": "ResetDeployment"})
    assert end_of(cloud, "empty")["status"] == "SUCCEEDED"
    wait_until(lambda: core.status()["state"]["functions"] == [], "no functions")
    assert Path(core.state / "current").exists()
