"""The main job through its contracts alone: messages, files and commands, with real brokers, store and models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest

from tests.agent_kit import BUCKET, CORE, Core, by_hand, function, layers, model_archive, resource, subscription
from tests.conftest import Site
from tests.mqtt_kit import PlainClient, wait_until

X = [round(0.1 * i - 0.8, 3) for i in range(16)]
ROUTES = [
    subscription("local", "sensors/+/x", "function:scores"),
    subscription("function:scores", "sensors/+/x/scores", "local"),
    subscription("function:scores", "sensors/+/x/scores", "cloud"),
]


def put_model(site: Site, seed: int, *, key: str = "model.tar.gz", **more: Any) -> dict[str, Any]:
    """Puts a packed model into the store; returns what `pack` says, with its uri."""
    made = model_archive(site.directory, seed, suffix=".zip" if key.endswith(".zip") else ".tar.gz", **more)
    return {**made, "uri": site.s3.put(BUCKET, key, Path(made["archive"]).read_bytes())}


def group(id: str, uri: str, *, routes: list[dict[str, str]] | None = None, **marram: Any) -> dict[str, Any]:
    return {
        "DeploymentId": id,
        "Resources": [resource(uri)],
        "Functions": [function("scores", models=("model",), marram=marram or None)],
        "Subscriptions": ROUTES if routes is None else routes,
    }


def user_properties(message: paho.MQTTMessage) -> dict[str, str]:
    assert message.properties is not None
    return dict(getattr(message.properties, "UserProperty", []))


def statuses(client: PlainClient, id: str) -> list[dict[str, Any]]:
    topic = f"marram/{CORE}/deployments/{id}/status"
    return [json.loads(m.payload) for m in list(client.received) if m.topic == topic]


def last_state(client: PlainClient) -> dict[str, Any]:
    return json.loads([m for m in list(client.received) if m.topic == f"marram/{CORE}/state"][-1].payload)


def ask(device: PlainClient, topic: str, event: Any, id: str, **more: Any) -> Any:
    """One request with a response-topic; returns paho's message of the answer."""
    reply_to = f"replies/{id}"
    device.subscribe(reply_to)
    payload = event if isinstance(event, bytes) else json.dumps(event)
    device.publish(topic, payload, response_topic=reply_to, correlation=id.encode(), **more)
    answers: Callable[[], list[Any]] = lambda: [m for m in list(device.received) if m.topic == reply_to]  # noqa: E731
    wait_until(answers, f"an answer to {id}")
    return answers()[0]


def fetched(site: Site, key: str) -> list[tuple[str, str, int]]:
    """The requests that gave bytes of an object (not 304: Not Modified)."""
    return [r for r in site.s3.requests(key) if r[0] == "GET" and r[2] in (200, 206)]


@pytest.fixture
def running(site: Site) -> Iterator[tuple[Site, Core]]:
    """A core that runs version 1 of the model."""
    made = put_model(site, 1)
    with site.core() as core:
        core.wait_linked()
        core.deploy(group("v1", made["uri"]))
        yield site, core


def test_a_model_pushed_by_the_cloud_answers_a_device(site: Site) -> None:
    made = put_model(site, 1)
    with site.core() as core, site.device() as device, site.observer() as cloud:
        core.wait_linked()
        cloud.subscribe("#")
        device.subscribe("sensors/#")
        cloud.publish(f"marram/{CORE}/deployments", json.dumps(group("v1", made["uri"])))
        wait_until(lambda: [s for s in statuses(cloud, "v1") if s["status"] == "SUCCEEDED"], "SUCCEEDED", 60)
        told = statuses(cloud, "v1")
        assert told[0]["status"] == "IN_PROGRESS"
        assert told[-1]["resources"] == [{"id": "model", "version": made["digest"], "previous": None}]

        device.publish("sensors/a/x", json.dumps({"x": X}))
        wait_until(lambda: [m for m in list(device.received) if m.topic == "sensors/a/x/scores"], "the result")
        result = next(m for m in list(device.received) if m.topic == "sensors/a/x/scores")
        scores = json.loads(result.payload)
        np.testing.assert_allclose(scores["scores"], by_hand(layers(1), X), atol=1e-5)
        origin = {"model": "model", "version": made["digest"], "deployment": "v1"}
        assert {k: scores["meta"][k] for k in origin} == origin
        told_by_mqtt = user_properties(result)
        assert {k: told_by_mqtt[k] for k in origin} == origin
        assert told_by_mqtt["request"] == scores["meta"]["request"]
        wait_until(
            lambda: [m for m in list(cloud.received) if m.topic == "sensors/a/x/scores"], "the result in the cloud"
        )
        wait_until(lambda: last_state(cloud)["group"] == "v1", "the state")
        state = last_state(cloud)
        assert state["status"] == "online"
        assert state["functions"] == [{"id": "scores", "status": "ready"}]
        assert state["resources"] == [{"id": "model", "version": made["digest"]}]
        assert state["deployment"]["status"] == "SUCCEEDED"


def test_a_requester_is_answered_with_its_correlation_data(running: tuple[Site, Core]) -> None:
    site, _ = running
    with site.device() as device:
        answer = ask(device, "sensors/a/x", {"x": X}, "r-1")
        assert answer.properties.CorrelationData == b"r-1"
        assert json.loads(answer.payload)["meta"]["request"] == "r-1"
        named = ask(device, "sensors/a/x", {"x": X, "meta": {"id": "mine"}}, "r-2")
        assert json.loads(named.payload)["meta"]["request"] == "mine"


def test_a_3_1_1_requester_is_answered_where_its_meta_says(running: tuple[Site, Core]) -> None:
    site, _ = running
    with PlainClient(site.local.port, "old", protocol=paho.MQTTv311) as device:
        device.subscribe("replies/me")
        device.publish("sensors/a/x", json.dumps({"x": X, "meta": {"id": "q7", "reply_to": "replies/me"}}))
        (answer,) = device.wait_for(1)
        assert json.loads(answer.payload)["meta"]["request"] == "q7"


def test_a_new_version_takes_over_and_what_did_not_change_is_not_fetched(running: tuple[Site, Core]) -> None:
    site, core = running
    second = put_model(site, 2, key="model-2.zip")
    last = core.deploy(group("v2", second["uri"]))
    assert last["resources"][0]["version"] == second["digest"]
    assert last["resources"][0]["previous"] not in (None, second["digest"])
    with site.device() as device:
        answer = json.loads(ask(device, "sensors/a/x", {"x": X}, "r").payload)
        np.testing.assert_allclose(answer["scores"], by_hand(layers(2), X), atol=1e-5)
        assert answer["meta"]["deployment"] == "v2"
        assert len(fetched(site, "model-2.zip")) == 1
        core.deploy(group("v3", second["uri"]))
        assert len(fetched(site, "model-2.zip")) == 1
        assert json.loads(ask(device, "sensors/a/x", {"x": X}, "r3").payload)["meta"]["deployment"] == "v3"


def test_a_neo_model_runs_under_dlr(site: Site) -> None:
    made = put_model(site, 5, runtime="neo", key="neo.tar.gz")
    with site.core() as core, site.device() as device:
        core.wait_linked()
        core.deploy(group("neo", made["uri"]))
        answer = json.loads(ask(device, "sensors/a/x", {"x": X}, "r").payload)
        np.testing.assert_allclose(answer["scores"], by_hand(layers(5), X), atol=1e-5)


def test_a_model_endpoint_needs_no_code(site: Site) -> None:
    made = put_model(site, 3)
    routes = [subscription("local", "infer/scores", "function:endpoint")]
    document = {
        **group("e1", made["uri"], routes=routes),
        "Functions": [function("endpoint", arn="marram:model", models=("model",))],
    }
    with site.core() as core, site.device() as device:
        core.wait_linked()
        core.deploy(document)
        request = {"id": "oip-1", "inputs": [{"name": "data", "shape": [1, 16], "datatype": "FP32", "data": X}]}
        answer = json.loads(ask(device, "infer/scores", request, "c-1").payload)
        assert answer["model_name"] == "model"
        assert answer["model_version"] == made["digest"]
        assert answer["id"] == "oip-1"
        np.testing.assert_allclose(answer["outputs"][0]["data"], by_hand(layers(3), X), atol=1e-5)


def test_what_is_deployed_is_there_after_a_kill_with_no_cloud_and_no_store(running: tuple[Site, Core]) -> None:
    site, core = running
    core.kill()
    site.cloud.stop()
    core.store_reachable = False
    core.start()
    core.wait_ready("scores")
    with site.device() as device:
        assert json.loads(ask(device, "sensors/a/x", {"x": X}, "r").payload)["meta"]["deployment"] == "v1"


@pytest.mark.parametrize(
    ("payload", "code"),
    [(b"{no json", "BAD_PAYLOAD"), (b'{"y": 1}', "FUNCTION_RAISED"), (b'{"x": [1, 2]}', "BAD_INPUT")],
)
def test_what_cannot_be_served_is_answered(running: tuple[Site, Core], payload: bytes, code: str) -> None:
    site, _ = running
    with site.device() as device:
        answer = json.loads(ask(device, "sensors/a/x", payload, "bad").payload)
        assert answer["error"]["code"] == code
        assert answer["meta"]["request"] == "bad"
        device.subscribe(f"marram/{CORE}/errors/#")
        seen = len(device.received)
        device.publish("sensors/a/x", payload)
        device.wait_for(seen + 1)
        assert device.received[-1].topic == f"marram/{CORE}/errors/scores"
        assert json.loads(device.received[-1].payload)["error"]["code"] == code


@pytest.mark.parametrize("topic", ["a/+", "$SYS/x", f"marram/{CORE}/deployments", f"marram/{CORE}/state"])
def test_nobody_is_answered_on_a_topic_that_is_not_his(running: tuple[Site, Core], topic: str) -> None:
    site, _ = running
    with site.device() as device:
        device.subscribe(f"marram/{CORE}/errors/#")
        device.publish("sensors/a/x", json.dumps({"x": X, "meta": {"reply_to": topic}}))
        (error,) = device.wait_for(1)
        assert json.loads(error.payload)["error"]["code"] == "BAD_RESPONSE_TOPIC"


def test_a_sample_reaches_the_cloud(site: Site) -> None:
    made = put_model(site, 1)
    with site.core() as core, site.device() as device, site.observer() as cloud:
        core.wait_linked()
        core.deploy(group("v1", made["uri"], Capture={"Strategy": "random", "Rate": 1.0}))
        cloud.subscribe(f"marram/{CORE}/capture/#")
        device.publish("sensors/a/x", json.dumps({"x": X}))
        (message,) = cloud.wait_for(1)
        sample = json.loads(message.payload)
        assert sample["input"] == {"x": X}
        np.testing.assert_allclose(sample["output"]["scores"], by_hand(layers(1), X), atol=1e-5)
        expected = {"reason": "random", "function": "scores", "model": "model", "version": made["digest"],
                    "deployment": "v1", "topic": "sensors/a/x"}  # fmt: skip
        assert {k: sample[k] for k in expected} == expected
        assert {"id", "timestamp"} <= sample.keys()


def test_while_the_cloud_is_away_nothing_is_lost_and_it_arrives_in_order(site: Site) -> None:
    made = put_model(site, 1)
    with site.core() as core, site.device() as device:
        core.wait_linked()
        core.deploy(group("v1", made["uri"], Capture={"Strategy": "random", "Rate": 1.0}))
        site.cloud.stop()
        wait_until(lambda: not core.status()["links"]["cloud"]["connected"], "the cloud gone")
        device.subscribe("sensors/+/x/scores")
        for i in range(50):
            device.publish("sensors/a/x", json.dumps({"x": X, "n": i}))
        device.wait_for(50)
        site.cloud.start()
        with site.observer() as cloud:
            cloud.subscribe("#")
            wait_until(lambda: sum("capture" in m.topic for m in list(cloud.received)) == 50, "all samples", 90)
            samples = [json.loads(m.payload) for m in list(cloud.received) if "capture" in m.topic]
            assert [s["input"]["n"] for s in samples] == list(range(50))
            wait_until(lambda: sum(m.topic == "sensors/a/x/scores" for m in list(cloud.received)) == 50, "all results")
            wait_until(lambda: core.status()["links"]["cloud"]["backlog"] == 0, "an empty spool")


def test_a_failed_deployment_leaves_what_runs(running: tuple[Site, Core]) -> None:
    site, core = running
    made = put_model(site, 9, key="flipped.tar.gz")
    data = bytearray(Path(made["archive"]).read_bytes())
    data[len(data) // 2] ^= 1
    uri = site.s3.put(BUCKET, "flipped.tar.gz", bytes(data))
    document = group("bad", uri)
    document["Resources"] = [resource(uri, Digest=made["digest"])]
    last = core.deploy(document, expect="FAILED")
    assert last["reason"]["code"] == "MODEL_DIGEST_MISMATCH"
    with site.device() as device:
        assert json.loads(ask(device, "sensors/a/x", {"x": X}, "r").payload)["meta"]["deployment"] == "v1"
    assert core.deploy(document, expect="FAILED")["deploymentId"] == "bad"
    assert core.deploy(group("bad", uri), expect="REJECTED")["reason"]["code"] == "ID_REUSED"


def test_a_function_that_cannot_start_fails_its_deployment(running: tuple[Site, Core]) -> None:
    site, core = running
    uri = f"s3://{BUCKET}/model.tar.gz"
    document = {**group("bad", uri), "Functions": [function("scores", arn="function:scores")]}
    document["Functions"].append(function("endpoint", arn="marram:model", models=("model",)))
    site.s3.put(BUCKET, "junk.zip", Path(put_model(site, 4, key="other.zip")["archive"]).read_bytes()[:200])
    assert core.deploy(group("junk", f"s3://{BUCKET}/junk.zip"), expect="FAILED")["reason"]["code"]
    with site.device() as device:
        assert json.loads(ask(device, "sensors/a/x", {"x": X}, "r").payload)["meta"]["deployment"] == "v1"


def test_the_will_says_offline_and_a_stop_says_it_too(running: tuple[Site, Core]) -> None:
    site, core = running
    with site.observer() as cloud:
        cloud.subscribe(f"marram/{CORE}/state")
        wait_until(lambda: cloud.received and last_state(cloud)["status"] == "online", "online")
        core.kill()
        wait_until(lambda: last_state(cloud)["status"] == "offline", "offline by the will")
        core.start()
        wait_until(lambda: last_state(cloud)["status"] == "online", "online again")
        core.kill()
        wait_until(lambda: last_state(cloud)["status"] == "offline", "offline by the second will")
        assert last_state(cloud)["group"] == "v1", "a will is of the time of its connection"
        core.start()
        wait_until(lambda: last_state(cloud)["status"] == "online", "online after it")
        assert core.stop() == 0
        wait_until(lambda: last_state(cloud)["status"] == "offline", "offline by SIGTERM")


def test_an_embedded_broker_serves_devices(tmp_path: Path, site: Site) -> None:
    from tests.mqtt_kit import free_port

    port = free_port()
    made = put_model(site, 1)
    core = Core(tmp_path / "embedded", local={"url": "embedded", "listen": f"127.0.0.1:{port}"}, s3=site.s3)
    with core:
        core.wait_linked()
        core.deploy(group("v1", made["uri"], routes=ROUTES[:2]))
        with PlainClient(port, "device", protocol=paho.MQTTv311) as device:
            device.subscribe("sensors/+/x/scores")
            device.publish("sensors/a/x", json.dumps({"x": X}))
            (result,) = device.wait_for(1)
            np.testing.assert_allclose(json.loads(result.payload)["scores"], by_hand(layers(1), X), atol=1e-5)
