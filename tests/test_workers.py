"""Real worker processes under a real pool: how each way to fail is told apart, answered and mended."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.activation import LoopClock
from agent.inference import launching, workers
from agent.inference.nearness import Nearness
from agent.inference.pool import Pool, PoolLimits
from agent.inference.requests import Answer, Failure, Origin, Request
from tests.agent_kit import FUNCTIONS

DEADLINE_S = 30.0


class Bench:
    """One function's pool on this loop."""

    def __init__(self, directory: Path, folder: str, *, memory_kb: int | None = None, **limits: Any) -> None:
        loop = asyncio.get_running_loop()
        origin = Origin("f", None, None, "d1")
        config = {"function": "f", "code": str(FUNCTIONS / folder), "deployment": "d1"}
        spec = launching.Spec(
            origin,
            sys.executable,
            config,
            launching.make_path(directory / "path"),
            directory,
            launching.base_environment(),
            memory_kb,
        )
        self.news = asyncio.Event()
        self.pool = Pool(
            origin,
            PoolLimits(**limits),
            lambda pool: workers.start(spec, pool, loop=loop, nearness=Nearness(LoopClock(loop), ())),
            LoopClock(loop),
            random.random,
            self.news.set,
        )
        self.pool.open()

    def ask(self, event: Any) -> asyncio.Future[Answer | Failure]:
        answered: asyncio.Future[Answer | Failure] = asyncio.get_running_loop().create_future()

        def settle(request: Request, outcome: Answer | Failure) -> None:
            answered.set_result(outcome)

        self.pool.submit(Request("f", "t", json.dumps(event).encode(), None, "r1", settle))
        return answered

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                self.news.clear()
                await self.news.wait()

        await asyncio.wait_for(wait(), DEADLINE_S)

    async def code_of(self, event: Any) -> str:
        outcome = await asyncio.wait_for(self.ask(event), DEADLINE_S)
        assert isinstance(outcome, Failure), outcome
        return outcome.error.code

    async def value_of(self, event: Any) -> Any:
        outcome = await asyncio.wait_for(self.ask(event), DEADLINE_S)
        assert isinstance(outcome, Answer), outcome.error
        return json.loads(outcome.outputs[0][2])

    async def end(self) -> None:
        gone = asyncio.Event()
        self.pool.drain(lambda request: None, gone.set)
        await asyncio.wait_for(gone.wait(), DEADLINE_S)


def with_bench(directory: Path, folder: str, work: Callable[[Bench], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        bench = Bench(directory, folder, **options)
        try:
            await work(bench)
        finally:
            await bench.end()

    asyncio.run(main())


def test_answers_come_back_in_order_and_the_worker_ends_when_drained(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        outcomes = await asyncio.gather(*(bench.ask({"i": i}) for i in range(300)))
        seen = [json.loads(o.outputs[0][2])["echo"]["i"] for o in outcomes if isinstance(o, Answer)]
        assert seen == list(range(300))

    with_bench(tmp_path, "echo", work)


@pytest.mark.parametrize(
    ("mood", "code"),
    [
        ("raise", "FUNCTION_RAISED"),
        ("exit", "WORKER_CRASHED"),
        ("segfault", "WORKER_CRASHED"),
        ("loop", "FUNCTION_TIMEOUT"),
        ("hang", "WORKER_HUNG"),
        ("eat", "OUT_OF_MEMORY"),
        ("nan", "RESULT_NOT_ENCODABLE"),
    ],
)
def test_each_way_to_fail_has_its_code_and_the_next_request_is_served(tmp_path: Path, mood: str, code: str) -> None:
    async def work(bench: Bench) -> None:
        assert await bench.code_of({"mood": mood}) == code
        assert (await bench.value_of({"mood": "fine"}))["mood"] == "fine"

    with_bench(tmp_path, "moody", work, timeout_s=2.0, memory_kb=120_000)


def test_a_late_function_is_told_where_it_was(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        outcome = await asyncio.wait_for(bench.ask({"mood": "loop"}), DEADLINE_S)
        assert isinstance(outcome, Failure)
        assert "moody/__init__.py" in outcome.error.message

    with_bench(tmp_path, "moody", work, timeout_s=0.5)


def test_a_killed_worker_s_request_is_answered_by_another(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        await bench.until(lambda: bench.pool.all_ready)
        asked = bench.ask({"seconds": 0.3})
        os.kill(bench.pool.pids()[0], signal.SIGKILL)
        outcome = await asyncio.wait_for(asked, DEADLINE_S)
        assert isinstance(outcome, Answer)

    with_bench(tmp_path, "sleepy", work, processes=2)


def test_a_function_that_is_not_there_fails_with_its_code(tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        await bench.until(lambda: bench.pool.last_loss is not None)
        assert bench.pool.last_loss is not None
        assert bench.pool.last_loss.code == "FUNCTION_NOT_FOUND"

    with_bench(tmp_path, "no-such-folder", work)


def test_an_interpreter_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        lost = asyncio.Event()
        origin = Origin("f", None, None, None)
        spec = launching.Spec(origin, "/no/such/python", {}, tmp_path, tmp_path)
        pool = Pool(
            origin,
            PoolLimits(),
            lambda pool: workers.start(spec, pool, loop=loop, nearness=Nearness(LoopClock(loop), ())),
            LoopClock(loop),
            random.random,
            lost.set,
        )
        pool.open()
        await asyncio.wait_for(lost.wait(), DEADLINE_S)
        assert pool.last_loss is not None
        assert pool.last_loss.code == "WORKER_NOT_STARTED"
        pool.drain(lambda request: None, lambda: None)

    asyncio.run(main())


def test_workers_die_with_the_agent(tmp_path: Path) -> None:
    """Even by SIGKILL, and even a worker that is stuck."""
    script = f"""
import asyncio, pathlib, sys
sys.path.insert(0, {str(FUNCTIONS.parent.parent)!r})
from tests.test_workers import Bench
async def main():
    bench = Bench(pathlib.Path({str(tmp_path)!r}), "sleepy", timeout_s=60)
    await bench.until(lambda: bench.pool.all_ready)
    bench.ask({{"seconds": 600}})
    await asyncio.sleep(0)
    print(bench.pool.pids()[0], flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""

    async def main() -> None:
        agent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
        assert agent.stdout
        pid = int(await asyncio.wait_for(agent.stdout.readline(), DEADLINE_S))
        descriptor = os.pidfd_open(pid)
        agent.kill()
        await agent.wait()
        gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(descriptor, gone.set)
        await asyncio.wait_for(gone.wait(), DEADLINE_S)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)

    asyncio.run(main())
