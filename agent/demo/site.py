"""A whole installation on loopback: two brokers, an S3 server, the cable between, the agent, and the models to deploy.

The agent is the command that a user types, on a topics.yaml that a user could have written. It starts the local broker.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from agent.demo import data, documents, formats, train
from agent.demo.children import Child, free_ports
from agent.demo.cloud import Bucket, Cloud, s3_environment
from agent.demo.documents import Package
from agent.demo.relay import Relay
from agent.values import dataclass


@dataclass(frozen=True, slots=True)
class Models:
    """The factory's work.

    Attributes:
        test: the recordings that the watches replay.
        first, second: the networks behind the packages `v1` and `v2`.
        broken: a third model's archive with one bit turned, announced with the digest of the whole one.
    """

    test: data.Recordings
    first: train.Network
    second: train.Network
    v1: Package
    v2: Package
    broken: Package


def make_models(folder: Path) -> Models:
    """Trains and packs the models into `folder`. Takes about a second.

    Raises:
        ConfigError: the recordings or gcc are missing.
    """
    training, test = data.read(data.find_wheel())
    rows = train.all_features(training.windows)
    first = train.train(rows, training.labels, hidden=16, seed=1)
    second = train.train(rows, training.labels, hidden=32, seed=2)
    formats.write_neo(folder / "v1", first.layers)
    formats.write_onnx(folder / "v2" / "activity.onnx", second.layers)
    v1 = documents.package(folder / "v1", folder / "activity-v1.tar.gz")
    v2 = documents.package(folder / "v2", folder / "activity-v2.zip")
    third = train.train(rows, training.labels, hidden=32, seed=3)
    formats.write_onnx(folder / "v3" / "activity.onnx", third.layers)
    v3 = documents.package(folder / "v3", folder / "activity-v3.zip")
    broken = Package(documents.flip_byte(v3.file, folder / "activity-v3-broken.zip"), v3.digest)
    return Models(test, first, second, v1, v2, broken)


class Site:
    """Everything that runs beside the watches. `start` and `stop` block.

    Attributes:
        folder: where all of it lies; removed by `stop` unless something went wrong or it is to be kept.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="marram-demo-"))
        self.local_port, self.cloud_port, self.relay_port, self.s3_port = free_ports(4)
        self.environment = s3_environment(self.s3_port, self.folder)
        self._children: list[Child] = []
        self.relay: Relay | None = None
        self.cloud: Cloud | None = None
        self.agent: Child | None = None

    def start(self, models: Models) -> None:
        """Starts all of it, the cloud's side first; the agent is on its way when this returns.

        Raises:
            ConfigError, TransientError: a part did not start.
        """
        broker = ["-m", "agent", "broker", "--listen", f"127.0.0.1:{self.cloud_port}"]
        cloud_broker = self._child("cloud broker", broker)
        s3 = self._child("S3 server", ["-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.s3_port)])
        cloud_broker.wait_port(self.cloud_port)
        self.relay = Relay(self.relay_port, self.cloud_port)
        self.cloud = Cloud(documents.CORE, self.cloud_port)
        s3.wait_port(self.s3_port)
        bucket = Bucket(self.s3_port)
        for package in (models.v1, models.v2, models.broken):
            bucket.upload(package.file)
        topics = documents.write_topics(
            self.folder,
            core=documents.CORE,
            local={"url": "embedded", "listen": f"127.0.0.1:{self.local_port}"},
            cloud={"url": f"mqtt://127.0.0.1:{self.relay_port}"},
            policy={"sources": [f"s3://{documents.BUCKET}/*"], "destinations": [str(self.folder / "ml")]},
        )
        self.agent = self._child("agent", ["-m", "agent", "run", "--config", str(topics)])

    def document(self, id: str, model: Package) -> dict[str, Any]:
        """The deployment of `model` out of the bucket; it appears in the folder as ``ml/activity``."""
        source = model.in_bucket(self.folder / "ml" / "activity")
        return documents.deployment(id, source, model.digest, results="cloud")

    def stop(self, *, remove: bool) -> None:
        """Ends all processes, the agent first. Idempotent."""
        if self.cloud:
            self.cloud.stop()
        for child in reversed(self._children):
            child.stop()
        if self.relay:
            self.relay.stop()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _child(self, name: str, arguments: list[str]) -> Child:
        log = self.folder / f"{name.replace(' ', '-')}.log"
        child = Child(name, [sys.executable, *arguments], log, env={**os.environ, **self.environment})
        self._children.append(child)
        return child
