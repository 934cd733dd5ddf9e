"""The cloud's side of the demonstration: a bucket, and a client of the cloud's broker that deploys and listens.

It knows the agent by its topics alone.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from agent.demo.documents import BUCKET
from agent.errors import TransientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_S = 15.0
FINAL = ("SUCCEEDED", "FAILED", "REJECTED")


def s3_environment(port: int, folder: Path) -> dict[str, str]:
    """The variables by which boto3 finds the S3 server on `port` and nothing of the user's own; for the agent's too."""
    config = folder / "aws-config"
    config.write_text("[default]\n")
    return {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "demonstration",
        "AWS_SECRET_ACCESS_KEY": "demonstration",
        "AWS_SESSION_TOKEN": "",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_PROFILE": "default",
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(config),
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
    }


class Bucket:
    """The bucket of which the core's policy allows models. Blocks."""

    def __init__(self, port: int) -> None:
        import boto3
        from botocore.config import Config

        self._client: S3Client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            aws_access_key_id="demonstration",
            aws_secret_access_key="demonstration",
            region_name="us-east-1",
            config=Config(proxies={}),
        )
        self._client.create_bucket(Bucket=BUCKET)

    def upload(self, file: Path) -> None:
        """Puts the file under its own name."""
        self._client.upload_file(str(file), BUCKET, file.name)


class Cloud:
    """Deploys to one core and keeps what it says. Thread-safe; paho's thread receives."""

    def __init__(self, core: str, port: int) -> None:
        self._core = core
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._state: dict[str, Any] = {}
        self._statuses: dict[str, list[dict[str, Any]]] = {}
        self._results: list[dict[str, Any]] = []
        self._samples: list[dict[str, Any]] = []
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="demo-cloud", protocol=mqtt.MQTTv311)
        self._client.on_connect = lambda client, *_: client.subscribe([(f"marram/{core}/#", 1), ("sensors/#", 1)])
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _, __, message: self._receive(message.topic, message.payload)
        self._client.connect_async("127.0.0.1", port)
        self._client.loop_start()
        if not self._ready.wait(CONNECT_S):
            raise TransientError("DEMO_NO_BROKER", f"the cloud could not connect to its broker in {CONNECT_S:g} s.")

    def push(self, document: dict[str, Any]) -> None:
        """Sends a deployment document to the core; returns when the broker has it."""
        sent = self._client.publish(f"marram/{self._core}/deployments", json.dumps(document), qos=1)
        sent.wait_for_publish(CONNECT_S)

    @property
    def online(self) -> bool:
        with self._lock:
            return self._state.get("status") == "online"

    @property
    def state(self) -> dict[str, Any]:
        """The core's last state; empty before the first."""
        with self._lock:
            return self._state

    def statuses(self, id: str) -> list[dict[str, Any]]:
        """All that the core said about that deployment, in order."""
        with self._lock:
            return list(self._statuses.get(id, ()))

    def outcome(self, id: str) -> dict[str, Any] | None:
        """The final status of that deployment, once it is there."""
        return next((status for status in self.statuses(id) if status["status"] in FINAL), None)

    def results(self, first: int = 0) -> list[dict[str, Any]]:
        """The results from the `first`-th on, in the order of arrival."""
        with self._lock:
            return self._results[first:]

    def samples(self, first: int = 0) -> list[dict[str, Any]]:
        """The captured samples from the `first`-th on, in the order of arrival; without their inputs' windows."""
        with self._lock:
            return self._samples[first:]

    @property
    def result_count(self) -> int:
        return len(self._results)

    @property
    def sample_count(self) -> int:
        return len(self._samples)

    def stop(self) -> None:
        """Disconnects. Idempotent."""
        self._client.disconnect()
        self._client.loop_stop()

    def _receive(self, topic: str, payload: bytes | bytearray) -> None:
        body = json.loads(payload) if payload else {}
        parts = topic.split("/")
        with self._lock:
            if parts[0] == "sensors":
                self._results.append({"arrived_s": time.monotonic(), "topic": topic, **body})
            elif parts[2] == "state":
                self._state = body
            elif parts[2] == "capture":
                self._samples.append({"arrived_s": time.monotonic(), **_slim(body)})
            elif parts[-1] == "status":
                self._statuses.setdefault(body["deploymentId"], []).append(body)


def _slim(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample with its window's length instead of the window: thousands are kept."""
    given = sample.get("input")
    if isinstance(given, dict):
        sample = {**sample, "input": {**given, "window": len(given.get("window", ()))}}
    return sample
