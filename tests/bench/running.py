"""A contender at work: the site that all share, its processes, and the time to its first answer."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.bench import models, processes
from tests.bench.load import Way, command

START_S: Final = 60.0
PLAIN: Final = {
    "PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8",
}  # fmt: skip


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
        """A file that holds a request: ``sensor``, ``endpoint``, ``image`` or ``bytes-N``."""
        file = self.directory / f"{name}.request"
        if not file.exists():
            made = {"sensor": models.sensor_request, "endpoint": models.endpoint_request, "image": models.image_request}
            file.write_bytes(made[name]() if name in made else models.bytes_request(int(name.partition("-")[2])))
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
        http_port: where it answers without a broker, too.
    """

    name: str
    way: Way
    process: subprocess.Popen[Any] | None
    others: list[subprocess.Popen[Any]] = field(default_factory=list)
    first_s: float | None = None
    roles: Callable[[], Mapping[int, str]] = dict
    http_port: int | None = None

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


def started(start: Callable[[], Running], way: Way) -> Running:
    """Starts a contender and waits for its first answer.

    Raises:
        RuntimeError: it ended, or did not answer in START_S.
    """
    asking = _ask_until_answered(way)
    began_s = time.monotonic()
    running = start()
    try:
        asking.wait(START_S)  # and no communicate(): what it said may be in the pipe's buffer already
    except subprocess.TimeoutExpired:
        asking.kill()
        running.stop()
        raise RuntimeError(f"{running.name} did not answer within {START_S:g} s") from None
    if asking.returncode:
        running.stop()
        raise RuntimeError(f"{running.name}: {asking.stderr.read() if asking.stderr else ''}")
    assert asking.stdout is not None
    running.first_s = float(asking.stdout.read()) - began_s
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
