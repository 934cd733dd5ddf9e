"""The power is cut after every step of a deployment and of a turning back; what is found afterwards is whole.

On a loop-mounted ext4: a copy of the image, taken while it is mounted and the deploying processes stand still, holds
what had reached the device; to mount the copy replays the file system's journal, as a machine does that comes back. As
root with loop devices; elsewhere it says so. A few dozen cuts of some hundred, spread over all; with --soak all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.powercut_driver import Agent
from tests.test_faults import tar_gz

CUTS = 24
DEADLINE_S = 120.0
DRIVER = Path(__file__).with_name("powercut_driver.py")


def sh(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


@contextlib.contextmanager
def mounted(image: Path, place: Path) -> Iterator[Path]:
    place.mkdir(exist_ok=True)
    sh("mount", "-o", "loop,commit=300", image, place)
    try:
        yield place
    finally:
        sh("umount", place)


@dataclass(frozen=True)
class Cut:
    """A copy of the image after a step, and what the step was."""

    image: Path
    step: str


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """An image with an empty ext4 in it."""
    if os.geteuid() != 0:
        pytest.skip("the power can be cut by root only: it takes a loop device and mount")
    image = tmp_path / "disk.img"
    sh("truncate", "-s", "48M", image)
    sh("mkfs.ext4", "-q", "-F", "-N", "4000", image)
    try:
        with mounted(image, tmp_path / "try"):
            pass
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine gives no loop device: {error.stderr.decode().strip()}")
    return image


def document(directory: Path, id: str, model: bytes) -> Path:
    """A document with a model and a function, both from archives."""
    for name, archive in (("model", model), ("code", tar_gz(("__init__.py", id.encode(), {}), bulk=False))):
        (directory / f"{id}-{name}.tar.gz").write_bytes(archive)
    source = {"FileMachineLearningModelResourceData": {"Path": f"{directory}/{id}-model.tar.gz"}}
    code = {"Path": f"{directory}/{id}-code.tar.gz"}
    path = directory / f"{id}.json"
    values = {
        "DeploymentId": id,
        "Resources": [{"Id": "m", "Name": "m", "ResourceDataContainer": source}],
        "Functions": [{"Id": "f", "FunctionArn": "function:f", "Marram": {"Code": code}}],
    }
    path.write_text(json.dumps(values))
    return path


def deploy(state: Path, *what: object, cuts: str = "") -> subprocess.Popen[bytes]:
    environment = {**os.environ, **({"MARRAM_CUTS": cuts} if cuts else {})}
    return subprocess.Popen([sys.executable, DRIVER, state, *map(str, what)], stdout=subprocess.PIPE, env=environment)


def statuses_of(driver: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    out, _ = driver.communicate(timeout=DEADLINE_S)
    assert driver.returncode == 0
    found: list[dict[str, Any]] = json.loads(out.splitlines()[-1])
    return found


class Cutter:
    """Follows a driver's processes step by step; they stand still while the image is copied."""

    def __init__(self, work: Path, image: Path, every: int) -> None:
        self.cuts: list[Cut] = []
        self.steps = 0
        self._work = work
        self._image = image
        self._every = every
        self._wires: list[socket.socket] = []

    def follow(self, state: Path, what: object) -> dict[str, Any]:
        """Deploys a document, or turns back; returns the final status."""
        address = str(self._work / "cuts.sock")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(address)
            listening.listen()
            driver = deploy(state, what, cuts=address)
            while driver.poll() is None:
                for ready in select.select([listening, *self._wires], [], [], 0.05)[0]:
                    if ready is listening:
                        self._wires.append(listening.accept()[0])
                    else:
                        self._step(ready)
        os.unlink(address)
        return statuses_of(driver)[0]

    def _step(self, wire: socket.socket) -> None:
        step = wire.recv(4096).decode().strip()
        if not step:
            self._wires.remove(wire)
            wire.close()
            return
        if self.steps % self._every == 0:
            copy = self._work / f"cut-{self.steps}.img"
            sh("cp", "--sparse=always", self._image, copy)
            self.cuts.append(Cut(copy, f"{self.steps}: {step}"))
        self.steps += 1
        wire.sendall(b"\0")


def cuts_of(work: Path, image: Path, what: object, ends: str, *, soak: bool) -> list[Cut]:
    """Copies of the image after the steps of a deployment, or of turning back."""
    every = 1
    if not soak:  # how many there are is seen on a copy
        counted = work / "counted.img"
        shutil.copyfile(image, counted)
        with mounted(counted, work / "mounted") as place:
            cutter = Cutter(work, counted, 10**6)
            cutter.follow(place / "state", what)
            every = cutter.steps // CUTS + 1
    with mounted(image, work / "mounted") as place:
        cutter = Cutter(work, image, every)
        status = cutter.follow(place / "state", what)
    assert status["status"] == ends
    assert cutter.steps > 10, "the steps were not seen"
    return cutter.cuts


def prepared(work: Path, image: Path, *documents: Path) -> None:
    """Deploys what runs before the cuts."""
    with mounted(image, work / "mounted") as place:
        found = statuses_of(deploy(place / "state", *documents))
    assert {status["status"] for status in found} == {"SUCCEEDED"}


async def started(state: Path, whole: set[str]) -> Agent:
    """An agent that has found a whole group of these deployments."""
    agent = Agent(state)
    group = await agent.deployer.recover()
    assert group is not None
    agent.store.verify(group)
    assert group.deployment.id in whole
    assert current_of(agent) == group.deployment.id
    agent.deployer.start()
    return agent


def current_of(agent: Agent) -> str:
    """The deployment that runs, every file of it read."""
    group = agent.store.current()
    assert group is not None
    agent.store.verify(group)
    return group.deployment.id


@pytest.mark.parametrize(
    ("id", "ends", "current"),
    [("good", "SUCCEEDED", "good"), ("bad-1", "FAILED", "first")],
    ids=["deploy", "turn back"],
)
def test_after_a_cut_at_any_step_a_whole_group_runs_and_the_report_comes(
    tmp_path: Path,
    disk: Path,
    id: str,
    ends: str,
    current: str,
    soak: bool,
    record_property: Any,
) -> None:
    """A deployment that ends well, and one that fails its probation and is turned back by itself."""
    first = document(tmp_path, "first", tar_gz(("model.json", b"1", {})))
    second = document(tmp_path, id, tar_gz(("model.json", b"2", {}), ("sub/w.bin", bytes(range(256)) * 400, {})))
    prepared(tmp_path, disk, first)
    cuts = cuts_of(tmp_path, disk, second, ends, soak=soak)
    record_property("cuts", len(cuts))
    body = second.read_bytes()

    async def come_back(state: Path) -> tuple[str, str]:
        agent = await started(state, {"first", id})
        status = await agent.deploy(body)  # a broker gives it again where it was not acknowledged
        await agent.deployer.close()
        return current_of(agent), status["status"]

    for cut in cuts:
        with mounted(cut.image, tmp_path / "after") as place:
            assert asyncio.run(come_back(place / "state")) == (current, ends), cut.step
        cut.image.unlink()


def test_after_a_cut_at_any_step_of_a_rollback_a_whole_group_runs(
    tmp_path: Path, disk: Path, soak: bool, record_property: Any
) -> None:
    """By hand, without a network: what was begun is gone on with, what was not can be asked for again."""
    first = document(tmp_path, "first", tar_gz(("model.json", b"1", {})))
    second = document(tmp_path, "second", tar_gz(("model.json", b"2", {})))
    prepared(tmp_path, disk, first, second)
    for path in tmp_path.glob("*.tar.gz"):
        path.unlink()
    cuts = cuts_of(tmp_path, disk, "rollback", "SUCCEEDED", soak=soak)
    record_property("cuts", len(cuts))

    async def come_back(state: Path) -> tuple[str, bool]:
        agent = await started(state, {"first", "second"})
        await asyncio.wait_for(agent.deployer.idle(), DEADLINE_S)
        if current_of(agent) == "second":
            assert not agent.final
            assert (await agent.roll_back())["status"] == "SUCCEEDED"
        statuses = {status["status"] for status in agent.final.values()}
        await agent.deployer.close()
        return current_of(agent), statuses <= {"SUCCEEDED"}

    for cut in cuts:
        with mounted(cut.image, tmp_path / "after") as place:
            assert asyncio.run(come_back(place / "state")) == ("first", True), cut.step
        cut.image.unlink()
