"""The process that is started ahead of its function: what serves in it finds no difference, or it is not used."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.activation import LoopClock
from agent.inference import launching, workers
from agent.inference.launching import Spec
from agent.inference.nearness import Nearness
from agent.inference.pool import Pool, PoolLimits
from agent.inference.requests import Answer, Failure, Origin, Request
from agent.inference.spare import Spare

DEADLINE_S = 30.0
MARKS = {"MARRAM_STATE": "/some/state"}
TELLS = """
import os, subprocess, sys

def handler(event, context):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {
        "environment": dict(os.environ), "child": subprocess.check_output(["env"], text=True).splitlines(),
        "directory": os.getcwd(), "argv": sys.argv, "path": sys.path,
        "processes": status["NSpid"].split()[1:], "session": os.getsid(0), "groups": os.getgroups(),
        "flags": list(sys.flags), "files": len(os.listdir("/proc/self/fd")),
    }
"""


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    """Of a function that tells what it finds around it."""
    folder, home = tmp_path / "tells", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    (folder / "__init__.py").write_text(TELLS)
    return Spec(
        Origin("f", None, None, "d1"), sys.executable, {"function": "f", "code": str(folder), "deployment": "d1"},
        launching.make_path(tmp_path / "path"), home,
        {**launching.base_environment(), **MARKS, "HOME": str(home), "OMP_NUM_THREADS": "3", "COLOUR": "red"},
        own_processes=True,
    )  # fmt: skip


@pytest.fixture
def spare(spec: Spec) -> Any:
    made = Spare(spec.path, MARKS)
    yield made
    made.end()


def pid_of(spare: Spare) -> int | None:
    return spare._started.process.pid if spare._started else None


def told_by(spec: Spec, launch: launching.Launch) -> tuple[int, dict[str, Any]]:
    """The PID of a worker and what its function finds."""

    async def main() -> tuple[int, dict[str, Any]]:
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        clock, answered = LoopClock(loop), loop.create_future()
        near = Nearness(clock, ())
        pool = Pool(
            spec.origin, PoolLimits(), lambda pool: workers.start(spec, pool, loop=loop, nearness=near, launch=launch),
            clock, random.random, lambda: None,
        )  # fmt: skip
        pool.open()

        def settle(request: Request, outcome: Answer | Failure) -> None:
            answered.set_result((pool.pids()[0], outcome))

        pool.submit(Request("f", "t", b"{}", None, "r1", settle))
        try:
            pid, outcome = await asyncio.wait_for(answered, DEADLINE_S)
        finally:
            pool.drain(lambda request: None, gone.set)
            await asyncio.wait_for(gone.wait(), DEADLINE_S)
        assert isinstance(outcome, Answer), outcome.error
        found = json.loads(outcome.outputs[0][2])
        assert found.pop("session") in (pid, 1, 0)
        found.pop("meta", None)
        return pid, found

    return asyncio.run(main())


def test_what_serves_in_it_finds_what_it_finds_elsewhere(spec: Spec, spare: Spare) -> None:
    pid = pid_of(spare)
    taken, found = told_by(spec, spare.launch)
    assert taken == pid
    other, expected = told_by(spec, launching.start)
    assert other != pid
    assert sorted(found.pop("child")) == sorted(expected.pop("child"))
    assert found == expected
    assert found["environment"]["COLOUR"] == "red"
    assert found["environment"]["OMP_NUM_THREADS"] == "3"


def test_only_one_gets_it(spec: Spec, spare: Spare) -> None:
    pid = pid_of(spare)
    assert told_by(spec, spare.launch)[0] == pid
    assert told_by(spec, spare.launch)[0] != pid


@pytest.mark.parametrize(
    "changed",
    [
        lambda spec: replace(spec, own_processes=False),
        lambda spec: replace(spec, groups=(os.getgid(),)),
        lambda spec: replace(spec, aside=True),
        lambda spec: replace(spec, path=launching.make_path(spec.path.parent / "other")),
        lambda spec: replace(spec, environment={**spec.environment, "LD_PRELOAD": ""}),
        lambda spec: replace(spec, environment={**spec.environment, "MALLOC_ARENA_MAX": "1"}),
        lambda spec: replace(spec, environment={**spec.environment, "TZ": "Asia/Tokyo"}),
        lambda spec: replace(spec, environment={k: v for k, v in spec.environment.items() if k != "MARRAM_STATE"}),
    ],
    ids=["processes", "groups", "aside", "path", "loader", "malloc", "zone", "mark"],
)
def test_it_is_left_where_something_belongs_to_a_processs_start(
    spec: Spec, spare: Spare, changed: Callable[[Spec], Spec]
) -> None:
    pid = pid_of(spare)
    started = spare.launch(changed(spec))
    try:
        assert started.process.pid != pid
        assert started.late is None
        assert pid_of(spare) == pid
    finally:
        started.process.kill()
        started.process.wait()
        for each in (started.wire, started.pulse, started.process.stdout):
            assert each is not None
            each.close()


def test_it_ends_where_nobody_takes_it(spec: Spec) -> None:
    spare = Spare(spec.path, MARKS)
    pid = pid_of(spare)
    assert pid is not None
    spare.end()
    spare.end()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert told_by(spec, spare.launch)[0] != pid


def test_without_it_workers_start_as_ever(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(spec: Spec) -> Any:
        raise OSError("no more processes")

    with monkeypatch.context() as patch:
        patch.setattr(launching, "start", refused)
        spare = Spare(spec.path, MARKS)
    assert pid_of(spare) is None
    assert told_by(spec, spare.launch)[1]["environment"]["COLOUR"] == "red"
