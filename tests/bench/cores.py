"""The agent as a contender: a core's directory, what is deployed on it, and `marram run`."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from agent import control
from agent.archive import pack
from agent.cli import commands
from agent.errors import AgentError
from tests.bench import processes
from tests.bench.load import Way
from tests.bench.places import FUNCTIONS, ROOT
from tests.bench.running import PLAIN, START_S, Running, Site, spawn
from tests.mqtt_kit import wait_until


def deployed(
    function: str = "score", model: str | None = "score", workers: int = 1, **config: Any
) -> Callable[[Site, str], None]:
    """Deploys one function, so that the agent has it when it is started.

    Args:
        function: a folder of the bench's functions, or ``endpoint``.
        model: of `Site.model`; None for none.
        config: more of the function's FunctionConfiguration.
    """

    def prepare(site: Site, name: str) -> None:
        directory = site.directory / name
        if not directory.exists():
            write_core(directory, name, site.port)
            made = configured(function, function, model is not None, workers, config)
            topic = f"bench/{name}/in"
            routes = [subscription("local", topic, function), subscription(function, f"{topic}/{function}", "local")]
            resources = [resource(site, model)] if model else []
            deploy(site, name, document("bench", resources, [made], routes))

    return prepare


def agent(site: Site, name: str, way: Way) -> Running:
    """The agent with what was deployed."""
    process = run_agent(site, name)
    return Running(name, way, process, roles=lambda: roles(process.pid))


def roles(pid: int) -> dict[int, str]:
    """The agent's process, and its workers."""
    return {each: "agent" if each == pid else "worker" for each in processes.tree(pid)}


def write_core(directory: Path, core: str, port: int, **more: Any) -> None:
    """A directory with topics.yaml."""
    directory.mkdir(parents=True)
    settings = {
        "core": core,
        "state": str(directory / "state"),
        "functions": [str(FUNCTIONS)],
        "links": {"local": f"mqtt://127.0.0.1:{port}", "cloud": "local"},
        "policy": {"sources": ["*"]},
        **more,
    }
    (directory / "topics.yaml").write_text(yaml.safe_dump(settings))


def resource(site: Site, model: str) -> dict[str, Any]:
    """A model of `Site.model` as a resource, packed once."""
    archive = site.directory / f"{model}.tar.gz"
    if not archive.exists():
        pack(site.model(model).parent, archive)
    data = {"FileMachineLearningModelResourceData": {"Path": str(archive)}}
    return {"Id": "m", "Name": "m", "ResourceDataContainer": data}


def configured(
    id: str, function: str, has_model: bool, workers: int = 1, config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A function of a deployment."""
    endpoint = function == "endpoint"
    policies = [{"ResourceId": "m", "Permission": "ro"}] if has_model else []
    return {
        "Id": id,
        "FunctionArn": "marram:model" if endpoint else f"function:{function}",
        "FunctionConfiguration": {"Environment": {"ResourceAccessPolicies": policies}, **(config or {})},
        "Marram": {"Processes": workers, **({"Batch": {"MaxSize": 32, "MaxDelayMs": 0}} if endpoint else {})},
    }


def subscription(source: str, subject: str, target: str) -> dict[str, str]:
    """A subscription between ``local`` and a function's Id."""
    ends = [end if end == "local" else f"function:{end}" for end in (source, target)]
    return {"Id": f"s{abs(hash((source, subject)))}", "Source": ends[0], "Subject": subject, "Target": ends[1]}


def document(
    id: str, resources: list[Any], functions: list[Any], subscriptions: list[Any], **marram: Any
) -> dict[str, Any]:
    """A deployment without probation."""
    return {
        "DeploymentId": id,
        "Resources": resources,
        "Functions": functions,
        "Subscriptions": subscriptions,
        "Marram": {"Probation": {"Seconds": 0}, **marram},
    }


def run_agent(site: Site, name: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`marram run`, as users run it."""
    config = str(site.directory / name / "topics.yaml")
    argv = [sys.executable, "-m", "agent", "run", "--config", config]
    return spawn(site, name, argv, cwd=ROOT, env={**PLAIN, **(environment or {})})


def deploy(site: Site, name: str, deployment: Mapping[str, Any]) -> None:
    """Has an agent commit this deployment, and ends the agent.

    Raises:
        RuntimeError: it failed.
    """
    process = run_agent(site, name)
    try:
        wait_control(site.directory / name)
        deploy_to(site.directory / name, deployment)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def deploy_to(directory: Path, deployment: Mapping[str, Any], timeout_s: float = 120.0) -> None:
    """Has the agent that runs in `directory` commit this deployment.

    Raises:
        RuntimeError: it failed.
    """
    body = json.dumps(deployment).encode()
    *_, last = commands.deploy(commands.Place(directory / "topics.yaml"), body, wait=True, timeout_s=timeout_s)
    if last["status"] != "SUCCEEDED":
        raise RuntimeError(f"{directory.name} cannot be deployed: {last['reason']}")


def wait_control(directory: Path) -> None:
    """Until the agent of `directory` answers commands."""
    wait_until(lambda: _answers(directory / "state"), "the agent's control socket", START_S)


def _answers(state: Path) -> bool:
    with contextlib.suppress(AgentError):
        next(control.ask(state, {"command": "status"}, timeout_s=10))
        return True
    return False
