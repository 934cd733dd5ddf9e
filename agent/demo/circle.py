"""The whole circle: capture on a device, label, train, package, deploy, and see whether it answers better.

A device runs a model that learned from few digits, and sees many more while its cloud is away. It may keep only so many
samples until then. Those arrive, are labelled by an oracle that knows each picture by its id, and the next model learns
from them, too. Once the kept samples are those that the model was least sure of (by entropy, by margin), once a random
choice: all through one real agent, its brokers and an S3 server.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent import control
from agent.demo import digits as pictures
from agent.demo import documents, formats, train
from agent.demo.children import Child, free_ports
from agent.demo.cloud import Bucket, Cloud, s3_environment
from agent.demo.digits import Digits, Split
from agent.demo.documents import Package
from agent.demo.relay import Relay
from agent.values import dataclass

CORE: Final = "circle-core"
MODEL: Final = "digits-model"
HIDDEN: Final = 32
WAIT_S: Final = 120.0
WINDOW: Final = 100  # requests without an answer
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "entropy": {"Strategy": "entropy", "Threshold": 0.0},  # all; the budget chooses
    "margin": {"Strategy": "margin", "Threshold": 1.0},
    "random": {"Strategy": "random", "Rate": 1.0},
}


@dataclass(frozen=True, slots=True)
class Turn:
    """What came of one turn of the circle.

    Attributes:
        before, after: the share of the holdout that the device answered right, with the first and the next model.
        samples: how many it learned from beside the seed.
    """

    seed: int
    policy: str
    before: float
    after: float
    samples: int


class Device:
    """A machine on the local broker that shows pictures to a function and hears its answers. Blocks."""

    def __init__(self, port: int) -> None:
        self._answers: dict[str, int] = {}
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="circle-device", protocol=mqtt.MQTTv311)
        ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe("exam/+/exam", 1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = lambda _, __, message: self._receive(message.payload)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        until(ready.is_set, "the device's connection")

    def show(self, name: str, shown: Digits) -> None:
        """Sends all pictures, each with its id, as the function's requests."""
        for n, pixels in enumerate(shown.pixels):
            last = self._client.publish(f"stream/{name}", request(f"{name}:{n}", pixels), qos=1)
            if n % WINDOW == 0:
                last.wait_for_publish(WAIT_S)
        last.wait_for_publish(WAIT_S)

    def accuracy(self, name: str, shown: Digits) -> float:
        """The share of the pictures that the function answers right."""
        self._answers.clear()
        for n, pixels in enumerate(shown.pixels):
            with self._changed:
                self._changed.wait_for(lambda n=n: n - len(self._answers) < WINDOW, WAIT_S)  # type: ignore[misc]
            self._client.publish(f"exam/{n}", request(f"{name}:{n}", pixels), qos=1)
        with self._changed:
            self._changed.wait_for(lambda: len(self._answers) == len(shown), WAIT_S)
        right = sum(self._answers.get(f"{name}:{n}") == int(label) for n, label in enumerate(shown.labels))
        return right / len(shown)

    def stop(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _receive(self, payload: bytes | bytearray) -> None:
        answer = json.loads(payload)
        (scores,) = answer["outputs"]
        with self._changed:
            self._answers[answer["id"]] = int(np.argmax(scores["data"]))
            self._changed.notify_all()


def request(id: str, pixels: Any) -> str:
    """A picture in the Open Inference Protocol."""
    data = [int(each) for each in pixels]
    tensor = {"name": "data", "shape": [1, len(data)], "datatype": "FP32", "data": data}
    return json.dumps({"id": id, "inputs": [tensor]})


def until(condition: Callable[[], object], what: str, seconds: float = WAIT_S) -> None:
    """Returns when `condition` is true.

    Raises:
        TimeoutError: it was not within `seconds`.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(0.02)


class Factory:
    """The device's core, its brokers, the S3 server, and the cloud that trains. `start` and `stop` block.

    Args:
        budget: how many samples the core may keep while the cloud is away.
    """

    def __init__(self, budget: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="marram-circle-"))
        self._budget = budget
        self._local_port, self._cloud_port, relay_port, self._s3_port = free_ports(4)
        self._environment = {**os.environ, **s3_environment(self._s3_port, self.folder)}
        self._children: list[Child] = []
        self._relay_port = relay_port

    def start(self) -> None:
        """Starts all of it, the cloud's side first."""
        broker = self._child("cloud-broker", "-m", "agent", "broker", "--listen", f"127.0.0.1:{self._cloud_port}")
        s3 = self._child("s3", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._s3_port))
        broker.wait_port(self._cloud_port)
        s3.wait_port(self._s3_port)
        self._relay = Relay(self._relay_port, self._cloud_port)
        self.cloud = Cloud(CORE, self._cloud_port)
        self._bucket = Bucket(self._s3_port)
        topics = documents.write_topics(
            self.folder,
            core=CORE,
            local={"url": "embedded", "listen": f"127.0.0.1:{self._local_port}"},
            cloud={"url": f"mqtt://127.0.0.1:{self._relay_port}"},
            policy={"sources": [f"s3://{documents.BUCKET}/*"]},
            spool={"capture": {"max_count": self._budget}},
        )
        agent = self._child("agent", "-m", "agent", "run", "--config", str(topics))
        agent.wait_port(self._local_port)
        until(lambda: self.cloud.online, "the core to be online")
        self.device = Device(self._local_port)

    def _child(self, name: str, *arguments: str) -> Child:
        child = Child(name, [sys.executable, *arguments], self.folder / f"{name}.log", env=self._environment)
        self._children.append(child)
        return child

    def stop(self) -> None:
        """Ends everything."""
        for name in ("device", "cloud"):
            if hasattr(self, name):
                getattr(self, name).stop()
        for child in reversed(self._children):
            child.stop()
        if hasattr(self, "_relay"):
            self._relay.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- a turn -------------------------------------------------------------------------------------------------------

    def turn(self, split: Split, seed: int, policy: str) -> Turn:
        """One turn of the circle with one policy."""
        name = f"{seed}-{policy}"
        self._deploy(f"{name}-first", self._trained(split.seed, seed, f"{name}-first"), policy)
        before = self.device.accuracy(f"{name}-before", split.holdout)
        kept = self._captured(name, split.stream)
        labelled = split.seed.joined(label(kept, split.stream))
        self._deploy(f"{name}-next", self._trained(labelled, seed, f"{name}-next"), policy)
        return Turn(seed, policy, before, self.device.accuracy(f"{name}-after", split.holdout), len(kept))

    def _trained(self, data: Digits, seed: int, name: str) -> Package:
        network = train.train(data.pixels, data.labels, hidden=HIDDEN, seed=seed, classes=pictures.CLASSES)
        formats.write_onnx(self.folder / name / "model.onnx", network.layers)
        package = documents.package(self.folder / name, self.folder / f"{name}.tar.gz")
        self._bucket.upload(package.file)
        return package

    def _deploy(self, id: str, package: Package, policy: str) -> None:
        self.cloud.push(document(id, package, POLICIES[policy]))
        until(lambda: self.cloud.outcome(id), f"the outcome of {id}")
        outcome = self.cloud.outcome(id)
        assert outcome is not None
        if outcome["status"] != "SUCCEEDED":
            raise RuntimeError(f"{id}: {outcome}")

    def _captured(self, name: str, stream: Digits) -> list[dict[str, Any]]:
        """Shows the stream while the cloud is away; the samples that arrive once it is back."""
        first = self.cloud.sample_count
        seen = self._seen()
        self._relay.cut()
        until(lambda: not self._status()["links"]["cloud"]["connected"], "the link to the cloud to be down")
        self.device.show(name, stream)
        until(lambda: self._seen() - seen >= len(stream), "the stream to be looked at")
        until(lambda: self._waiting() <= self._budget, "the spool to choose")
        self._relay.restore()
        until(lambda: self.cloud.sample_count - first >= self._budget, "the samples to arrive")
        found = {each["id"]: each for each in self.cloud.samples(first)}
        return list(found.values())

    def _seen(self) -> int:
        return int(self._status()["capture"]["functions"].get("digits", {}).get("seen", 0))

    def _waiting(self) -> int:
        return int(self._status()["spool"]["backlog"].get("cloud", {}).get("capture", {}).get("count", 0))

    def _status(self) -> dict[str, Any]:
        return next(control.ask(self.folder / "state", {"command": "status"}))


def label(samples: list[dict[str, Any]], stream: Digits) -> Digits:
    """The oracle: what the samples' pictures show, joined by the request's id; the pixels are the sample's own."""
    numbers = np.array([int(each["input"]["id"].rpartition(":")[2]) for each in samples], dtype=np.int64)
    pixels = np.array([each["input"]["inputs"][0]["data"] for each in samples], dtype=np.float32)
    return Digits(pixels.reshape(len(samples), pictures.PIXELS), stream.labels[numbers])


def document(id: str, package: Package, capture: dict[str, Any]) -> dict[str, Any]:
    """A deployment of the model behind two endpoints: one that captures, and one that is only examined."""
    resource = {
        "Id": MODEL,
        "Name": MODEL,
        "ResourceDataContainer": {
            "S3MachineLearningModelResourceData": {"S3Uri": f"s3://{documents.BUCKET}/{package.file.name}"}
        },
        "Marram": {"Digest": package.digest},
    }
    policies = {"Environment": {"ResourceAccessPolicies": [{"ResourceId": MODEL, "Permission": "ro"}]}}
    functions: list[dict[str, Any]] = [
        {"Id": each, "FunctionArn": "marram:model", "FunctionConfiguration": policies} for each in ("digits", "exam")
    ]
    functions[0]["Marram"] = {"Capture": capture}
    subscriptions = [
        {"Id": "stream", "Source": "local", "Subject": "stream/+", "Target": "function:digits"},
        {"Id": "exam", "Source": "local", "Subject": "exam/+", "Target": "function:exam"},
        {"Id": "answers", "Source": "function:exam", "Subject": "exam/+/exam", "Target": "local"},
    ]
    return {
        "DeploymentId": id,
        "Resources": [resource],
        "Functions": functions,
        "Subscriptions": subscriptions,
        "Marram": {"Probation": {"Seconds": 0}},
    }
