"""What is set aside, and that it is given back: to the thread, to a worker, to all that a function starts."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.deployment import installation
from agent.deployment.threads import in_thread_aside, starting_aside
from agent.errors import AgentError, FunctionError
from agent.inference import launching, workers
from agent.inference.requests import Origin
from functions import aside, bounds
from tests.test_activation import Bench, group
from tests.worker_kit import DEADLINE_S, WorkerChild, function_config

ROOT = Path(__file__).resolve().parents[1]
ALL = os.sched_getaffinity(0)
GETATTR = {"x86_64": 315, "aarch64": 275}.get(os.uname().machine)
two_processors = pytest.mark.skipif(len(ALL) < 2, reason="this machine has one processor")
sessions = pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="this kernel schedules no sessions apart"
)
slices = pytest.mark.skipif(
    GETATTR is None or not bounds.kernel_is_from((6, 12)) or os.sched_getscheduler(0) != os.SCHED_OTHER,
    reason="before Linux 6.12 nobody has a slice of their own",
)


def slice_ns(task: int = 0) -> int:
    """The slice of a thread, this one by default."""
    found = ctypes.create_string_buffer(48)
    assert ctypes.CDLL(None, use_errno=True).syscall(GETATTR, task, found, 48, 0) == 0, ctypes.get_errno()
    return int(struct.unpack("=IIQiIQQQ", found.raw)[5])


def weight(pid: int) -> int:
    """The niceness of a process's session; 0 where none is scheduled apart."""
    file = Path(f"/proc/{pid}/autogroup")
    return int(file.read_text().split()[-1]) if file.exists() else 0


@pytest.mark.parametrize(
    ("allowed", "kept"),
    [({0}, {0}), ({3}, {3}), ({0, 1}, {1}), ({0, 1, 2}, {2}), ({0, 1, 2, 3}, {2, 3}), ({4, 9, 2, 7, 5}, {7, 9})],
)
def test_at_least_half_of_the_processors_is_left_to_others(allowed: set[int], kept: set[int]) -> None:
    assert aside.half(allowed) == kept


@two_processors
def test_a_thread_gets_its_processors_back(tmp_path: Path) -> None:
    with aside.aside():
        assert os.sched_getaffinity(0) == aside.half(ALL)
        started = subprocess.run(
            [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"], stdout=subprocess.PIPE, text=True
        )
    assert os.sched_getaffinity(0) == ALL
    assert set(map(int, started.stdout.split())) == aside.half(ALL)


@slices
def test_a_thread_gets_its_slice_and_keeps_its_niceness() -> None:
    before, niceness = slice_ns(), os.getpriority(os.PRIO_PROCESS, 0)
    with aside.aside():
        assert slice_ns() == aside.SLICE_NS
        assert os.getpriority(os.PRIO_PROCESS, 0) == niceness
    assert slice_ns() == before
    assert os.getpriority(os.PRIO_PROCESS, 0) == niceness


def test_it_is_given_back_after_an_error() -> None:
    with pytest.raises(KeyError), aside.aside():
        raise KeyError
    assert os.sched_getaffinity(0) == ALL


@two_processors
def test_a_deployments_blocking_work_is_done_aside_and_its_thread_comes_back() -> None:
    async def main() -> None:
        assert await in_thread_aside(os.sched_getaffinity, 0) == aside.half(ALL)
        assert os.sched_getaffinity(0) == ALL  # the loop's own thread never left
        assert await asyncio.to_thread(os.sched_getaffinity, 0) == ALL  # the same thread, as none else was free

    asyncio.run(main())


FUNCTION = """
import ctypes, os, struct, threading

def found(task=0):
    attributes = ctypes.create_string_buffer(48)
    if GETATTR:
        ctypes.CDLL(None).syscall(GETATTR, task, attributes, 48, 0)
    return [sorted(os.sched_getaffinity(task)), struct.unpack("=IIQiIQQQ", attributes.raw)[5]]

GETATTR = %r
first = found()
seen = []
thread = threading.Thread(target=lambda: seen.append(found()))
thread.start()
thread.join()
ours, theirs = os.pipe()
child = os.fork()
if child == 0:
    os.write(theirs, repr(found()).encode())
    os._exit(0)
os.waitpid(child, 0)
forked = eval(os.read(ours, 4096))


def handler(event, context):
    tasks = [found(int(task)) for task in os.listdir("/proc/self/task")]
    return {"found": [first, *seen, forked, *tasks], "variable": os.environ.get("MARRAM_ASIDE")}
"""


@pytest.mark.parametrize("is_aside", [False, True])
def test_a_workers_code_and_all_that_it_starts_find_nothing_of_it(is_aside: bool, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(FUNCTION % GETATTR)
    usual = slice_ns() if GETATTR else 0
    environment = {"MARRAM_ASIDE": " ".join(map(str, ALL))} if is_aside else {}
    with aside.aside() if is_aside else contextlib.nullcontext():
        started = WorkerChild(function_config(tmp_path, handler="main.handler"), environment=environment)
    with started as worker:
        worker.ready()
        answer = worker.ask({}, wanted=True).answer
    assert answer is not None
    told = json.loads(answer[1])
    assert told["variable"] is None
    assert told["found"] == [[sorted(ALL), usual]] * len(told["found"])
    assert len(told["found"]) >= 5  # at import, in a thread, in a child, and the worker's two threads at least


@two_processors
def test_a_worker_is_aside_from_its_first_moment_on(tmp_path: Path) -> None:
    spec = launching.Spec(
        Origin("f", None, None, "d"), sys.executable, {}, launching.make_path(tmp_path / "path"), tmp_path,
        environment=launching.base_environment(), aside=True,
    )  # fmt: skip
    usual = slice_ns() if GETATTR else 0
    started = launching.start(spec)
    process = started.process
    assert os.sched_getaffinity(process.pid) == aside.half(ALL)
    assert os.sched_getaffinity(0) == ALL  # the agent stays where it is, and as it is
    if GETATTR:
        assert slice_ns() == usual
    assert started.light == (weight(process.pid) == aside.LEAST_WEIGHT)
    started.wire.close()
    started.pulse.close()
    process.wait(DEADLINE_S)
    assert process.stdout is not None
    process.stdout.close()


@sessions
def test_a_worker_weighs_what_others_do_once_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light: list[tuple[str, int]] = []
    start = launching.start

    def noted(spec: launching.Spec) -> launching.Started:
        started = start(spec)
        light.append((spec.origin.deployment, weight(started.process.pid)))
        return started

    async def main() -> None:
        bench = Bench(tmp_path)
        activation, dispatcher = bench.activation, bench.dispatcher
        activation._launch = noted
        first, second = group(1, "sleepy", tmp_path), group(2, "sleepy", tmp_path)
        await activation.warm(first)
        await activation.promote(first)
        await activation.warm(second)
        await activation.promote(second)
        [pid] = dispatcher.pools["sleepy"].pids()
        await bench.until(lambda: weight(pid) == 0)
        await activation.stop(5)

    asyncio.run(main())
    assert light == [("d1", 0), ("d2", aside.LEAST_WEIGHT)]


@sessions
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_who_is_refused_its_weight_gets_it_a_moment_later() -> None:
    """The kernel takes one change in a tenth of a second from all who are not root."""
    script = (
        "import ctypes, os, time; from functions import aside; os.setsid(); os.setuid(65534)\n"
        "assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0  # PR_SET_DUMPABLE: its files in /proc are its own again\n"
        "until_s = time.monotonic() + 60\n"
        "while not aside.put(os.getpid()): assert time.monotonic() < until_s\n"
        "refused = 0\n"
        "while not aside.give_weight_back(os.getpid()): refused += 1; assert time.monotonic() < until_s\n"
        "print(refused > 0, open('/proc/self/autogroup').read().split()[-1])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True).split() == ["True", "0"]


def test_who_has_ended_needs_no_weight() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert aside.give_weight_back(ended.pid)


@two_processors
def test_all_threads_of_a_process_end_aside() -> None:
    script = (
        "import os, threading; from functions import aside; forever = threading.Event()\n"
        "threading.Thread(target=forever.wait, daemon=True).start(); aside.leave()\n"
        "print([sorted(os.sched_getaffinity(int(task))) for task in os.listdir('/proc/self/task')]); os._exit(0)"
    )
    told = subprocess.check_output([sys.executable, "-uc", script], cwd=ROOT, text=True)
    assert json.loads(told) == [sorted(aside.half(ALL))] * 2


def test_an_error_of_what_is_started_aside_arrives_and_a_cancellation_gets_there() -> None:
    seen: list[str] = []

    async def start(waits: asyncio.Future[None]) -> str:
        assert os.sched_getaffinity(0) == aside.half(ALL)
        try:
            await waits
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        assert os.sched_getaffinity(0) == ALL
        raise KeyError("no such program")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        waits = loop.create_future()
        loop.call_soon(waits.set_result, None)
        with pytest.raises(KeyError):
            await starting_aside(start(waits))
        never = asyncio.ensure_future(starting_aside(start(loop.create_future())))
        await asyncio.sleep(0)
        never.cancel()
        with pytest.raises(asyncio.CancelledError):
            await never
        assert os.sched_getaffinity(0) == ALL

    asyncio.run(main())
    assert seen == ["cancelled"]


def test_only_what_starts_while_others_serve_is_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, bool]] = []
    start = workers.start

    def noted(spec: launching.Spec, *args: Any, **more: Any) -> Any:
        started.append((spec.origin.deployment, spec.aside))
        return start(spec, *args, **more)

    monkeypatch.setattr(workers, "start", noted)

    async def main() -> None:
        bench = Bench(tmp_path)
        activation, dispatcher = bench.activation, bench.dispatcher
        first, second = group(1, "sleepy", tmp_path), group(2, "sleepy", tmp_path)
        await activation.warm(first)
        await activation.promote(first)
        await activation.warm(second)
        await activation.promote(second)
        dispatcher.pools["sleepy"].end_workers(FunctionError("WORKER_CRASHED", "It is gone."))
        await bench.until(lambda: len(started) == 3 and dispatcher.pools["sleepy"].all_ready)
        await activation.stop(5)

    asyncio.run(main())
    assert started == [("d1", False), ("d2", True), ("d2", False)]


@two_processors
@pytest.mark.parametrize("serving", [False, True])
def test_an_installer_is_aside_while_others_serve(
    serving: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "import json, os; print(json.dumps({'event': 'object', 'on': sorted(os.sched_getaffinity(0))})); "
    fake = installation.BOOT.replace("from agent.deployment.installer import main; code = main()", f"{told}code = 0")
    assert fake != installation.BOOT
    monkeypatch.setattr(installation, "BOOT", fake)
    events: list[dict[str, Any]] = []
    with pytest.raises(AgentError):  # it did nothing
        asyncio.run(installation.install(tmp_path, {"aside": serving}, events.append))
    assert [each["on"] for each in events] == [sorted(aside.half(ALL) if serving else ALL)]
