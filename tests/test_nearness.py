"""Agent and worker on one core while requests come one by one: when they come near, and when they part."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.deployment.threads import in_thread_aside
from agent.inference.nearness import ENOUGH, LOOK_S, PAUSE_S, QUICK_S, WITHIN_S, Nearness
from agent.loop import Loop, run
from functions.aside import half

ALL = frozenset(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(ALL) < 2, reason="with one processor there is nothing to choose")


class Clock:
    def __init__(self) -> None:
        self.time = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def now(self) -> float:
        return self.time

    def later(self, delay_s: float, run: Callable[[], None]) -> None:
        self.timers.append((self.time + delay_s, run))

    def go(self, seconds: float) -> None:
        self.time += seconds
        due = [each for at, each in self.timers if at <= self.time]
        self.timers = [(at, each) for at, each in self.timers if at > self.time]
        for each in due:
            each()


class Bench:
    """A nearness with the test's own thread as the agent's and a child as the worker."""

    def __init__(self, processors: frozenset[int] = ALL, threads: int = 0) -> None:
        code = "import sys, threading, time\n"
        code += f"for _ in range({threads}): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        code += "print('up', flush=True); sys.stdin.read()"
        self.child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.child.stdout
        self.child.stdout.readline()
        self.clock = Clock()
        self.near = Nearness(self.clock, processors)

    def alone(self, times: int = ENOUGH, took_s: float = 0.0, service_s: float = QUICK_S / 2) -> None:
        """Requests one by one, as `WorkerProcess.send` counts them."""
        for _ in range(times):
            self.clock.time += took_s
            self.near.alone += 1
            if self.near.alone % ENOUGH == 0:
                self.near.consider(self.child.pid, service_s)

    @property
    def masks(self) -> tuple[frozenset[int], frozenset[int]]:
        return frozenset(os.sched_getaffinity(0)), frozenset(os.sched_getaffinity(self.child.pid))


@pytest.fixture
def made() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**more: Any) -> Bench:
        benches.append(Bench(**more))
        return benches[-1]

    yield make
    os.sched_setaffinity(0, ALL)
    for each in benches:
        each.child.kill()
        each.child.communicate()


def test_after_enough_requests_one_by_one_both_are_on_one_core(made: Callable[..., Bench]) -> None:
    bench = made()
    bench.alone(ENOUGH - 1)
    assert bench.masks == (ALL, ALL)
    bench.alone(1)
    own, worker = bench.masks
    assert own == worker
    assert len(own) == 1
    bench.near.crowd()
    assert bench.masks == (ALL, ALL)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"took_s": WITHIN_S / ENOUGH * 1.1}, "too rare"),
        ({"service_s": QUICK_S}, "too slow"),
    ],
)
def test_they_do_not_come_near_for_requests_that_gain_nothing(
    made: Callable[..., Bench], how: dict[str, float], why: str
) -> None:
    bench = made()
    bench.alone(3 * ENOUGH, **how)
    assert bench.masks == (ALL, ALL), why
    assert not bench.near.near


def test_a_worker_with_threads_of_its_own_is_left_alone(made: Callable[..., Bench]) -> None:
    bench = made(threads=5)
    bench.alone()
    assert bench.masks == (ALL, ALL)


def test_with_one_processor_nothing_is_changed(made: Callable[..., Bench]) -> None:
    bench = made(processors=frozenset((0,)))
    bench.alone()
    assert bench.masks == (ALL, ALL)


def test_they_part_when_requests_become_few_or_slow(made: Callable[..., Bench]) -> None:
    bench = made()
    bench.alone()
    bench.alone(20)
    bench.clock.go(LOOK_S)
    assert bench.near.near, "there were enough"
    bench.alone(2)
    bench.clock.go(LOOK_S)
    assert bench.masks == (ALL, ALL)
    bench.alone()
    assert bench.near.near
    bench.alone(service_s=2 * QUICK_S)
    assert bench.masks == (ALL, ALL)


def test_what_somebody_else_says_of_the_processors_stands(made: Callable[..., Bench]) -> None:
    bench = made()
    bench.alone()
    (core,) = bench.masks[0]
    other = frozenset((next(iter(ALL - {core})),))
    os.sched_setaffinity(0, other)
    bench.alone(20)
    bench.clock.go(LOOK_S)
    assert bench.masks == (other, ALL)
    assert not bench.near.near


def test_a_worker_that_ends_frees_the_agent_and_counts_no_more(made: Callable[..., Bench]) -> None:
    bench = made()
    bench.alone()
    bench.near.open = 3
    bench.child.kill()
    bench.child.wait()
    bench.near.forget(bench.child.pid, 3)
    assert bench.near.open == 0
    assert frozenset(os.sched_getaffinity(0)) == ALL
    bench.alone()  # of a process that is no more
    assert frozenset(os.sched_getaffinity(0)) == ALL


def test_threads_of_the_worker_that_began_meanwhile_are_freed_too(made: Callable[..., Bench]) -> None:
    bench = made(threads=1)
    bench.alone()
    core = bench.masks[0]
    for task in os.listdir(f"/proc/{bench.child.pid}/task"):
        os.sched_setaffinity(int(task), core)  # as one that it started then has it
    bench.near.part()
    assert {frozenset(os.sched_getaffinity(int(t))) for t in os.listdir(f"/proc/{bench.child.pid}/task")} == {ALL}


def test_children_and_threads_of_the_loop_do_not_inherit_it(made: Callable[..., Bench]) -> None:
    bench = made()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        loop.before_thread = bench.near.part
        loop.before_others = bench.near.make_way
        bench.alone()
        assert bench.near.near
        assert await asyncio.to_thread(os.sched_getaffinity, 0) == ALL
        assert not bench.near.near
        bench.alone()
        assert bench.near.near, "a thread's short work is soon over"
        assert await in_thread_aside(os.sched_getaffinity, 0) == half(ALL)
        bench.alone()
        assert not bench.near.near, "others may still be at work"
        bench.clock.go(PAUSE_S)
        bench.alone()
        bench.alone()
        assert bench.near.near
        code = "import os; print(len(os.sched_getaffinity(0)))"
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        said, _ = await child.communicate()
        assert int(said) == len(ALL)

    run(main())
