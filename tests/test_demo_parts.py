"""The pieces of the demonstration, each on its own: recordings, models, archives, relay, cloud and watches."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.demo import data, documents, formats, train
from agent.demo.children import Child, free_ports
from agent.demo.cloud import Bucket, Cloud
from agent.demo.relay import Relay
from agent.demo.tally import AGAIN_S, LOST_S, Tally
from agent.demo.watches import Fleet
from agent.deployment.document import S3Source, parse
from agent.errors import ConfigError, RejectedError
from agent.settings import Policy
from agent.settings.reader import load
from functions import activity
from tests.mqtt_kit import Mosquitto, accepts, mosquitto, wait_until
from tests.s3_kit import S3Server, s3_server  # noqa: F401

VERSION = "sha256:" + "a" * 64


@pytest.fixture(scope="module")
def splits() -> tuple[data.Recordings, data.Recordings]:
    return data.read(data.find_wheel())


@pytest.fixture(scope="module")
def network(splits: tuple[data.Recordings, data.Recordings]) -> train.Network:
    return train.train(train.all_features(splits[0].windows), splits[0].labels, hidden=16, seed=1)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with mosquitto(tmp_path / "mosquitto") as running:
        yield running


def test_the_recordings_are_forty_windows_a_split_ten_an_activity(
    splits: tuple[data.Recordings, data.Recordings],
) -> None:
    for split in splits:
        assert split.windows.shape == (40, 100, 6)
        assert np.bincount(split.labels).tolist() == [10, 10, 10, 10]
    # The first figures of the test split's first line, and of its second channel.
    assert splits[1].windows[0, :3, 0].tolist() == [-0.740653, -0.740653, 10.208449]


def test_a_file_that_is_no_wheel_is_told_with_a_remedy(tmp_path: Path) -> None:
    file = tmp_path / "aeon-1.6.0-py3-none-any.whl"
    file.write_bytes(b"no zip")
    with pytest.raises(ConfigError) as caught:
        data.read(file)
    assert caught.value.code == "RECORDINGS_BROKEN"
    assert caught.value.remedy


def test_a_trained_network_knows_the_test_split(
    splits: tuple[data.Recordings, data.Recordings], network: train.Network
) -> None:
    scores = network.scores(train.all_features(splits[1].windows))
    assert scores.dtype == np.float32
    assert np.allclose(scores.sum(1), 1, atol=1e-5)
    assert (scores.argmax(1) == splits[1].labels).mean() >= 0.95


def test_the_written_models_agree_with_the_network_run_by_hand(
    splits: tuple[data.Recordings, data.Recordings], network: train.Network, tmp_path: Path
) -> None:
    from functions.runtimes import dlr, onnx

    formats.write_neo(tmp_path / "neo", network.layers)
    formats.write_onnx(tmp_path / "onnx" / "model.onnx", network.layers)
    rows = train.all_features(splits[1].windows)
    wanted = network.scores(rows)
    for model in (dlr.load(tmp_path / "neo", {}), onnx.load(tmp_path / "onnx", {})):
        given = np.concatenate([model.predict({"data": row[np.newaxis]})["probabilities"] for row in rows])
        assert np.allclose(given, wanted, rtol=0, atol=1e-5)
        model.close()


@pytest.mark.parametrize("window", [[], [[1, 2, 3, 4, 5, 6]], [[1, 2], [3, 4]], [["a"] * 6] * 3, "text"])
def test_the_function_refuses_what_is_no_window(window: object) -> None:
    with pytest.raises(ValueError, match=r"shape|could not convert"):
        activity.features(window)


def test_the_settings_and_the_document_are_what_the_agent_reads(tmp_path: Path) -> None:
    policy = {"sources": ["s3://factory-models/*"], "destinations": ["/ml"]}
    file = documents.write_topics(tmp_path, core="core-1", local={"url": "embedded"}, cloud="local", policy=policy)
    settings = load(file)
    assert (settings.functions[0] / "activity" / "__init__.py").exists()
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "model.onnx").write_bytes(b"a model")
    model = documents.package(tmp_path / "v1", tmp_path / "v1.tar.gz")
    document = documents.deployment("v1", model.in_bucket(Path("/ml/v1")), model.digest, results="local")
    body = json.dumps(document).encode()
    deployment = parse(body, core=settings.core, policy=settings.policy)
    assert deployment.resources[0].source == S3Source("s3://factory-models/v1.tar.gz")
    assert deployment.resources[0].digest == f"sha256:{hashlib.sha256(model.file.read_bytes()).hexdigest()}"
    assert {s.target for s in deployment.subscriptions} == {"function:activity", "local"}
    with pytest.raises(RejectedError, match=r"topics\.yaml"):
        parse(body, core=settings.core, policy=Policy())


def test_one_byte_of_the_broken_archive_differs(tmp_path: Path) -> None:
    whole = tmp_path / "whole.zip"
    whole.write_bytes(os.urandom(1000))
    broken = documents.flip_byte(whole, tmp_path / "broken.zip")
    pairs = zip(whole.read_bytes(), broken.read_bytes(), strict=True)
    assert sum(a != b for a, b in pairs) == 1


def test_the_relay_forwards_until_it_is_cut_and_after_it_is_restored(broker: Mosquitto) -> None:
    [port] = free_ports(1)
    relay = Relay(port, broker.port)
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03abc")
            assert connection.recv(4) == b"\x20\x02\x00\x00"
            relay.cut()
            connection.settimeout(5)
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert not accepts(port)
        relay.restore()
        assert accepts(port)
    finally:
        relay.stop()
    assert not accepts(port)


def test_a_child_that_ends_is_told_with_its_last_lines(tmp_path: Path) -> None:
    child = Child("small server", [sys.executable, "-c", "print('no such luck'); exit(3)"], tmp_path / "log")
    with pytest.raises(ConfigError, match="no such luck") as caught:
        child.wait_port(free_ports(1)[0])
    assert caught.value.code == "DEMO_CHILD_FAILED"
    assert "ended with 3" in caught.value.message
    child.stop()


def test_the_bucket_takes_files(s3_server: S3Server, tmp_path: Path) -> None:  # noqa: F811
    file = tmp_path / "model.zip"
    file.write_bytes(os.urandom(1000))
    Bucket(s3_server.port).upload(file)
    body = s3_server.client().get_object(Bucket=documents.BUCKET, Key="model.zip")["Body"].read()
    assert body == file.read_bytes()


def test_the_cloud_hears_state_status_results_and_samples(broker: Mosquitto) -> None:
    cloud = Cloud("core-1", broker.port)
    core = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="core-1")
    heard: list[bytes] = []
    core.on_message = lambda _, __, message: heard.append(bytes(message.payload))
    core.on_connect = lambda client, *_: client.subscribe("marram/core-1/deployments", 1)
    subscribed = threading.Event()
    core.on_subscribe = lambda *_: subscribed.set()
    core.connect("127.0.0.1", broker.port)
    core.loop_start()
    try:
        assert subscribed.wait(10)
        cloud.push({"DeploymentId": "d1"})
        for topic, body in (
            ("marram/core-1/state", {"status": "online"}),
            ("marram/core-1/deployments/d1/status", {"deploymentId": "d1", "status": "IN_PROGRESS"}),
            ("marram/core-1/deployments/d1/status", {"deploymentId": "d1", "status": "SUCCEEDED"}),
            ("sensors/watch-1/motion/activity", {"activity": "Running", "meta": {"request": "watch-1.000000"}}),
            ("marram/core-1/capture/activity", {"id": "x", "input": {"window": [[0] * 6] * 100}}),
        ):
            core.publish(topic, json.dumps(body), qos=1)
        wait_until(cloud.samples)
        assert cloud.online
        assert [status["status"] for status in cloud.statuses("d1")] == ["IN_PROGRESS", "SUCCEEDED"]
        assert cloud.outcome("d1") == {"deploymentId": "d1", "status": "SUCCEEDED"}
        assert cloud.outcome("d2") is None
        assert cloud.results()[0]["meta"]["request"] == "watch-1.000000"
        assert cloud.samples()[0]["input"]["window"] == 100
        wait_until(lambda: heard)
        assert json.loads(heard[0]) == {"DeploymentId": "d1"}
    finally:
        core.disconnect()
        core.loop_stop()
        cloud.stop()


class HandMadeAgent:
    """Answers the watches as the agent should; forgets each tenth question the first time it is asked."""

    def __init__(self, port: int, network: train.Network) -> None:
        self._network = network
        self._forgotten: set[str] = set()
        self.ready = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="hand-made")
        self.client.on_connect = lambda client, *_: client.subscribe("sensors/+/motion", 1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.client.on_message = lambda _, __, message: self._answer(json.loads(message.payload))
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def _answer(self, event: dict[str, object]) -> None:
        meta = event["meta"]
        assert isinstance(meta, dict)
        id = meta["id"]
        if id.endswith("0") and id not in self._forgotten:
            self._forgotten.add(id)
            return
        scores = self._network.scores(activity.features(event["window"])[np.newaxis])[0]
        named = {name: round(float(score), 6) for name, score in zip(activity.ACTIVITIES, scores, strict=True)}
        body = {"activity": max(named, key=named.__getitem__), "scores": named}
        body["meta"] = {"request": id, "version": VERSION}
        self.client.publish(meta["reply_to"], json.dumps(body), qos=1)


def test_watches_ask_again_until_all_is_answered(
    broker: Mosquitto,
    splits: tuple[data.Recordings, data.Recordings],
    network: train.Network,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.demo.tally.AGAIN_S", 0.3)
    test = splits[1]
    tally = Tally(test.labels)
    version = tally.know(VERSION, "v1", network.scores(train.all_features(test.windows)))
    agent = HandMadeAgent(broker.port, network)
    assert agent.ready.wait(10)
    fleet = Fleet(broker.port, test.windows, tally, watches=4, rate=200)
    try:
        fleet.start()
        wait_until(lambda: tally.counts().sent >= 200)
        fleet.finish()
        wait_until(lambda: tally.counts().waiting == 0)
    finally:
        fleet.stop()
        agent.client.disconnect()
        agent.client.loop_stop()
    counts = tally.counts()
    assert counts.answered == counts.sent
    assert (counts.lost, counts.doubled, counts.wrong) == (0, 0, 0), tally.wrongs
    assert counts.again >= 20
    assert version.answers == counts.answered
    assert version.accuracy >= 0.95
    assert tally.answered_ids(0, 4) == {f"watch-{n}.000000" for n in range(1, 5)}


def answer(id: str, scores: list[float], version: str = VERSION) -> bytes:
    named = dict(zip(activity.ACTIVITIES, scores, strict=True))
    body = {"activity": max(named, key=named.__getitem__), "scores": named, "meta": {"request": id, "version": version}}
    return json.dumps(body).encode()


@pytest.fixture
def tally() -> Tally:
    made = Tally(np.array([0, 1]))
    made.know(VERSION, "v1", np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]], dtype=np.float32))
    made.sent("w.0", 0, 0, 0.0)
    return made


def test_a_second_answer_is_a_fault_only_where_the_watch_asked_once(tally: Tally) -> None:
    tally.answered(answer("w.0", [0.7, 0.1, 0.1, 0.1]), 0.5)
    tally.answered(answer("w.0", [0.7, 0.1, 0.1, 0.1]), 0.6)
    assert tally.counts().doubled == 1
    tally.sent("w.1", 1, 1, 1.0)
    assert tally.overdue(1.0 + AGAIN_S + 0.1) == [("w.1", 1)]
    for _ in range(2):
        tally.answered(answer("w.1", [0.1, 0.7, 0.1, 0.1]), 5.0)
    assert tally.counts().doubled == 1
    assert tally.counts().wrong == 0


@pytest.mark.parametrize(
    "payload",
    [
        answer("w.0", [0.7, 0.1, 0.1, 0.1], "sha256:" + "b" * 64),
        answer("w.0", [0.69, 0.11, 0.1, 0.1]),
        answer("w.0", [0.1, 0.7, 0.1, 0.1]),
        answer("w.9", [0.7, 0.1, 0.1, 0.1]),
        b'{"error": {"code": "TIMEOUT", "message": "late"}, "meta": {"request": "w.0"}}',
        b'{"activity": "Standing", "meta": {"request": "w.0", "version": "%s"}}' % VERSION.encode(),
        b'{"activity": "Standing"}',
        b"[]",
        b"no json",
    ],
)
def test_a_wrong_answer_is_counted(tally: Tally, payload: bytes) -> None:
    tally.answered(payload, 0.1)
    assert tally.counts().wrong == 1


def test_a_request_without_an_answer_is_lost_and_found_again(tally: Tally) -> None:
    assert not tally.settled(1)
    assert tally.settled(0)
    assert tally.overdue(LOST_S + 0.1) == []
    assert tally.counts().lost == 1
    assert tally.settled(1)
    tally.answered(answer("w.0", [0.7, 0.1, 0.1, 0.1]), LOST_S + 1)
    assert tally.counts().lost == 0
    assert tally.counts().latency_ms(0.5) == pytest.approx((LOST_S + 1) * 1000)


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from agent.demo.children import Child;"
        "c = Child('sleeper', [sys.executable, '-c', 'import time; time.sleep(60)'], Path(sys.argv[1]));"
        "print(c.pid, flush=True); sys.stdin.read(); __import__('os').kill(__import__('os').getpid(), 9)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    parent.communicate()
    end = time.monotonic() + 10
    while time.monotonic() < end and Path(f"/proc/{child}").exists() and _state(child) != "Z":
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists() or _state(child) == "Z"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
