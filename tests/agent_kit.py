"""A whole installation for a test: settings, functions, models in a real S3, and the agent as users run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from agent import control
from agent.archive import pack
from agent.cli import commands
from agent.demo.formats import write_neo, write_onnx
from agent.errors import AgentError
from tests.mqtt_kit import wait_until
from tests.s3_kit import S3Server

FUNCTIONS = Path(__file__).parent / "functions"
BUCKET = "factory-models"
CORE = "press-7"


def layers(seed: int) -> list[tuple[Any, Any]]:
    """Weights of a network of 16 inputs, 32 hidden units and 3 scores."""
    chance = np.random.default_rng(seed)
    return [
        (chance.normal(0, 0.5, (32, 16)).astype("f4"), chance.normal(0, 0.1, 32).astype("f4")),
        (chance.normal(0, 0.5, (3, 32)).astype("f4"), chance.normal(0, 0.1, 3).astype("f4")),
    ]


def by_hand(weights: list[tuple[Any, Any]], x: Any) -> Any:
    """What such a network makes of `x` (16,): float32[3]."""
    hidden = np.maximum(weights[0][0] @ np.asarray(x, "f4") + weights[0][1], 0)
    scores = weights[1][0] @ hidden + weights[1][1]
    raised = np.exp(scores - scores.max())
    return raised / raised.sum()


def model_archive(directory: Path, seed: int, *, runtime: str = "onnx", suffix: str = ".tar.gz") -> dict[str, Any]:
    """A packed model: what `agent.archive.pack` returns."""
    tree = directory / f"model-{runtime}-{seed}"
    tree.mkdir(parents=True, exist_ok=True)
    if runtime == "onnx":
        write_onnx(tree / "model.onnx", layers(seed))
    else:
        write_neo(tree, layers(seed))
    return pack(tree, directory / f"{tree.name}{suffix}")


def resource(uri: str, *, id: str = "model", destination: str | None = "/ml/model", **more: Any) -> dict[str, Any]:
    data = {"S3Uri": uri, **({"DestinationPath": destination} if destination else {})}
    return {
        "Id": id,
        "Name": id,
        "ResourceDataContainer": {"S3MachineLearningModelResourceData": data},
        **({"Marram": more} if more else {}),
    }


def function(
    id: str,
    *,
    arn: str | None = None,
    models: tuple[str, ...] = (),
    marram: Mapping[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    policies = [{"ResourceId": each, "Permission": "ro"} for each in models]
    configuration = {"Environment": {"ResourceAccessPolicies": policies}, **config}
    made = {"Id": id, "FunctionArn": arn or f"function:{id}", "FunctionConfiguration": configuration}
    return {**made, **({"Marram": dict(marram)} if marram else {})}


def subscription(source: str, subject: str, target: str) -> dict[str, str]:
    return {"Id": f"s{abs(hash((source, subject, target)))}", "Source": source, "Subject": subject, "Target": target}


class Core:
    """One core: its directory, its settings and, once started, its agent.

    Args:
        local, cloud: links as topics.yaml has them.
        more: other sections of topics.yaml.

    Attributes:
        store_reachable: whether the next agent finds the store; set it to False and all connections are refused.
        store_at: the URL of what the next agent takes for the store; None: the store itself.
    """

    def __init__(
        self,
        directory: Path,
        *,
        local: Any,
        cloud: Any = "local",
        s3: S3Server | None = None,
        subscriptions: list[dict[str, str]] | None = None,
        policy: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.config = directory / "topics.yaml"
        self.s3 = s3
        self.store_reachable = True
        self.store_at: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / "agent.log"
        directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "core": CORE,
            "state": str(self.state),
            "functions": [str(FUNCTIONS)],
            "links": {"local": local, "cloud": cloud},
            "subscriptions": subscriptions or [],
            "policy": {"sources": [f"s3://{BUCKET}/*"], **(policy or {})},
            **(more or {}),
        }
        self.config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def start(self, *, wait: bool = True) -> Core:
        environment = {**os.environ, **(self.s3.environment() if self.s3 else {})}
        if not self.store_reachable:
            environment["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:1"
        if self.store_at is not None:
            environment["AWS_ENDPOINT_URL_S3"] = self.store_at
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(self.config)],
                env=environment, stdout=log, stderr=log, cwd=Path(__file__).parent.parent,
            )  # fmt: skip
        if wait:
            wait_until(self.answers, "the agent's control socket", 60)
        return self

    def answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise AssertionError(f"the agent ended: {self.tail()}")
        try:
            self.status()
        except AgentError:
            return False
        return True

    def status(self) -> dict[str, Any]:
        return next(control.ask(self.state, {"command": "status"}, timeout_s=10))

    def wait_ready(self, *functions: str, deadline_s: float = 60) -> None:
        """Until the agent says of each of these functions that it is ready."""

        def ready() -> bool:
            if not self.answers():
                return False
            states = {f["id"]: f["status"] for f in self.status()["state"]["functions"]}
            return all(states.get(name) == "ready" for name in functions)

        wait_until(ready, f"{functions} ready", deadline_s)

    def wait_linked(self) -> None:
        """Until all links are up."""
        wait_until(
            lambda: self.answers() and all(link["connected"] for link in self.status()["links"].values()), "links up"
        )

    def deploy(self, document: Mapping[str, Any], *, expect: str | None = "SUCCEEDED") -> dict[str, Any]:
        """Deploys through the control socket, without probation unless it is asked for; returns the last status."""
        given = document.get("Marram")
        document = {**document, "Marram": {"Probation": {"Seconds": 0}, **(given if isinstance(given, dict) else {})}}
        place = commands.Place(self.config)
        *_, last = commands.deploy(place, json.dumps(document).encode(), wait=True, timeout_s=120)
        assert expect is None or last["status"] == expect, f"{last}\n{self.tail()}"
        return last

    def group(
        self, id: str, *, resources: list[Any], functions: list[Any], subscriptions: list[Any], **marram: Any
    ) -> dict[str, Any]:
        made: dict[str, Any] = {
            "DeploymentId": id,
            "Resources": resources,
            "Functions": functions,
            "Subscriptions": subscriptions,
        }
        return {**made, **({"Marram": marram} if marram else {})}

    def worker_pids(self) -> list[int]:
        """The pids of all worker processes of this core."""
        assert self.process
        return sorted(each for each in _children(self.process.pid) if b"functions.worker" in _command(each))

    def installer_pids(self) -> list[int]:
        """The pid of the installer, if one runs."""
        assert self.process
        return [each for each in _children(self.process.pid) if b"agent.deployment.installer" in _command(each)]

    def tail(self, count: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-count:] if self.log.exists() else ""

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(30)
        self.process = None
        return code

    def __enter__(self) -> Core:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from (int(each) for each in (task / "children").read_text().split())


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
