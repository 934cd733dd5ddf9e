"""What is compared: how each is started, where it takes requests, and which processes it is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agent import commands, control
from agent.errors import AgentError
from tests.bench import models, processes
from tests.bench.load import Way, command
from tests.bench.places import ECHO, FUNCTIONS, RIVALS, ROOT, loop_python
from tests.mqtt_kit import wait_until

START_S = 60.0
PLAIN = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class Site:
    """What all contenders share: a broker, a directory for each, models and requests."""

    port: int
    directory: Path

    def model(self, name: str) -> Path:
        """The file of the model ``score`` or ``look``."""
        file = self.directory / "models" / name / "model.onnx"
        if not file.exists():
            {"score": models.write_scores, "look": models.write_look}[name](file.parent)
        return file

    def request(self, name: str) -> Path:
        """A file that holds a request: ``sensor``, ``endpoint`` or ``image``."""
        file = self.directory / f"{name}.request"
        if not file.exists():
            made = {"sensor": models.sensor_request, "endpoint": models.endpoint_request, "image": models.image_request}
            file.write_bytes(made[name]())
        return file

    def way(self, contender: str, request: str = "sensor", function: str = "score") -> Way:
        """Requests on ``bench/CONTENDER/in``, answers below it, as the agent names them."""
        topic = f"bench/{contender}/in"
        return Way(self.port, topic, f"{topic}/{function}", self.request(request))


@dataclass
class Running:
    """A contender at work.

    Attributes:
        first_s: seconds from its start to its first answer; None where it was not looked at.
        roles: names its processes: pid to name; those that it leaves out are called as the contender.
    """

    name: str
    way: Way
    process: subprocess.Popen[Any] | None
    others: list[subprocess.Popen[Any]] = field(default_factory=list)
    first_s: float | None = None
    roles: Callable[[], Mapping[int, str]] = dict

    def pids(self) -> list[int]:
        """All of its processes now."""
        started = [p for p in (self.process, *self.others) if p is not None]
        return [pid for each in started for pid in processes.tree(each.pid)]

    def role(self, pid: int) -> str:
        """What this process of it is called."""
        return self.roles().get(pid, self.name)

    def stop(self) -> None:
        """Ends it, kindly first."""
        for each in (*self.others, self.process):
            if each is not None and each.poll() is None:
                each.send_signal(signal.SIGTERM)
                try:
                    each.wait(10)
                except subprocess.TimeoutExpired:
                    each.kill()
                    each.wait()


Start = Callable[[Site, str], Running]
Prepare = Callable[[Site, str], None]


def started(site: Site, name: str, contender: Contender | None = None) -> Running:
    """Starts a contender and waits for its first answer.

    Raises:
        RuntimeError: it ended, or did not answer in START_S.
    """
    contender = contender or CONTENDERS[name]
    contender.prepare(site, name)
    asking = _ask_until_answered(ways(site, name))
    began_s = time.monotonic()
    running = contender.start(site, name)
    try:
        said, wrong = asking.communicate(timeout=START_S)
    except subprocess.TimeoutExpired:
        asking.kill()
        running.stop()
        raise RuntimeError(f"{name} did not answer within {START_S:g} s: see {site.directory}") from None
    if asking.returncode:
        running.stop()
        raise RuntimeError(f"{name}: {wrong}")
    running.first_s = float(said) - began_s
    return running


def _ask_until_answered(way: Way) -> subprocess.Popen[str]:
    asking = subprocess.Popen(
        [*command(way, qos=0), "first=1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert asking.stdout is not None
    asking.stdout.readline()
    return asking


def spawn(site: Site, name: str, argv: list[str], **more: Any) -> subprocess.Popen[bytes]:
    """A child whose output goes to ``NAME.log``."""
    with (site.directory / f"{name}.log").open("ab") as log:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more)


# -- the floor and the loop -------------------------------------------------------------------------------------------


def c_echo(site: Site, name: str) -> Running:
    way = ways(site, name)
    return Running(name, way, spawn(site, name, [str(ECHO), str(site.port), way.request, way.result]))


def broker_alone(site: Site, name: str) -> Running:
    """Nobody: the load generator hears its own requests."""
    return Running(name, ways(site, name), None)


def loop(variant: str, model: str = "score") -> Start:
    """rivals/loop.py."""

    def start(site: Site, name: str) -> Running:
        way = ways(site, name)
        argv = [loop_python(), str(RIVALS / "loop.py"), str(site.port), way.request, way.result]
        return Running(name, way, spawn(site, name, [*argv, str(site.model(model)), variant], env=PLAIN))

    return start


# -- this agent -------------------------------------------------------------------------------------------------------


def deployed(function: str = "score", model: str | None = "score", workers: int = 1, **config: Any) -> Prepare:
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
            deploy(directory, document(site, name, function, model, workers, config))

    return prepare


def agent(site: Site, name: str) -> Running:
    """The agent with what was deployed."""
    process = run_agent(site, name)
    return Running(name, ways(site, name), process, roles=lambda: agent_roles(process.pid))


def agent_roles(pid: int) -> dict[int, str]:
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


def document(
    site: Site, name: str, function: str, model: str | None, workers: int, config: Mapping[str, Any]
) -> dict[str, Any]:
    """A deployment with one function on ``bench/NAME/in``."""
    endpoint = function == "endpoint"
    policies = [{"ResourceId": "m", "Permission": "ro"}] if model else []
    resource = {
        "Id": "m",
        "Name": "m",
        "ResourceDataContainer": {"FileMachineLearningModelResourceData": {"Path": str(_packed(site, model))}},
    }
    topic = f"bench/{name}/in"
    made = {
        "Id": function,
        "FunctionArn": "marram:model" if endpoint else f"function:{function}",
        "FunctionConfiguration": {"Environment": {"ResourceAccessPolicies": policies}, **config},
        "Marram": {"Processes": workers, **({"Batch": {"MaxSize": 32, "MaxDelayMs": 0}} if endpoint else {})},
    }
    return {
        "DeploymentId": "bench",
        "Resources": [resource] if model else [],
        "Functions": [made],
        "Subscriptions": [
            {"Id": "in", "Source": "local", "Subject": topic, "Target": f"function:{function}"},
            {"Id": "out", "Source": f"function:{function}", "Subject": f"{topic}/{function}", "Target": "local"},
        ],
        "Marram": {"Probation": {"Seconds": 0}},
    }


def _packed(site: Site, model: str | None) -> Path:
    from agent.archive import pack

    if model is None:
        return site.directory
    archive = site.directory / f"{model}.tar.gz"
    if not archive.exists():
        pack(site.model(model).parent, archive)
    return archive


def run_agent(site: Site, name: str) -> subprocess.Popen[bytes]:
    """`marram run`, as users run it."""
    config = str(site.directory / name / "topics.yaml")
    return spawn(site, name, [sys.executable, "-m", "agent", "run", "--config", config], cwd=ROOT, env=PLAIN)


def deploy(directory: Path, deployment: Mapping[str, Any]) -> None:
    """Has an agent in `directory` commit this deployment, and ends the agent.

    Raises:
        RuntimeError: it failed.
    """
    site = Site(0, directory.parent)
    process = run_agent(site, directory.name)
    try:
        wait_until(lambda: _answers(directory / "state"), "the agent's control socket", START_S)
        body = json.dumps(deployment).encode()
        *_, last = commands.deploy(commands.Place(directory / "topics.yaml"), body, wait=True, timeout_s=120)
        if last["status"] != "SUCCEEDED":
            raise RuntimeError(f"{directory.name} cannot be deployed: {last['reason']}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _answers(state: Path) -> bool:
    with contextlib.suppress(AgentError):
        next(control.ask(state, {"command": "status"}, timeout_s=10))
        return True
    return False


# -- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """One line of the tables.

    Attributes:
        title: what the page calls it.
        prepare: what is done before it is started, once.
        request: what is sent to it, see `Site.request`.
        function: how its result topic ends.
    """

    title: str
    start: Start
    prepare: Prepare = lambda site, name: None
    request: str = "sensor"
    function: str = "score"


CONTENDERS: dict[str, Contender] = {
    "broker": Contender("broker alone", broker_alone),
    "c-echo": Contender("C echo, libmosquitto", c_echo),
    "loop": Contender("loop with NODELAY", loop("nodelay")),
    "loop-typed": Contender("loop as typed", loop("typed")),
    "loop-late": Contender("loop that acknowledges late", loop("late")),
    "loop-orjson": Contender("loop with orjson", loop("orjson")),
    "agent": Contender("agent, code", agent, deployed()),
    "agent-2": Contender("agent, code, 2 workers", agent, deployed(workers=2)),
    "endpoint": Contender("agent, endpoint", agent, deployed("endpoint"), "endpoint", "endpoint"),
    "endpoint-2": Contender(
        "agent, endpoint, 2 workers", agent, deployed("endpoint", workers=2), "endpoint", "endpoint"
    ),
    "loop-image": Contender("loop with NODELAY", loop("nodelay", "look"), request="image", function="look"),
    "agent-image": Contender("agent, code", agent, deployed("look", "look", EncodingType="binary"), "image", "look"),
    "agent-image-2": Contender(
        "agent, code, 2 workers", agent, deployed("look", "look", workers=2, EncodingType="binary"), "image", "look"
    ),
}


def ways(site: Site, name: str) -> Way:
    """Where this contender takes requests."""
    contender = CONTENDERS[name]
    way = site.way(name, contender.request, contender.function)
    return dataclasses.replace(way, result=way.request) if name == "broker" else way


@contextlib.contextmanager
def running(site: Site, names: list[str]) -> Iterator[dict[str, Running]]:
    """These contenders at work, one started after the other, ended with the block."""
    found: dict[str, Running] = {}
    try:
        for name in names:
            found[name] = started(site, name)
        yield found
    finally:
        for each in found.values():
            each.stop()
