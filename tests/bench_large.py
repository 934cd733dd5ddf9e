"""How long a large payload takes to a worker and back, beside a bare socket pair with raw buffers in the same run.

``.venv/bin/python -m tests.bench_large``: no broker; the agent's pool with a real worker on one side, on the other a
child that reads into a buffer of the right size. One request at a time; each figure is the median of its requests, the
least of its rounds, which take turns.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from agent.activation import LoopClock
from agent.errors import FunctionError
from agent.inference import launching, workers
from agent.inference.nearness import Nearness
from agent.inference.pool import Pool, PoolLimits
from agent.inference.requests import Answer, Failure, Origin, Request

SIZES: Final = (150_528, 1 << 20, 4 << 20, 8 << 20)
REQUESTS, WARM_UP, ROUNDS = 40, 3, 3
FUNCTION: Final = {
    "in": "def handler(event, context): return b'%d' % len(event)",
    "echo": "def handler(event, context): return event",
}
BARE: Final = """
import socket, sys
sock, size, echo = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3] == "echo"
buffer = bytearray(size)
view = memoryview(buffer)
while True:
    got = 0
    while got < size:
        count = sock.recv_into(view[got:])
        if not count:
            sys.exit()
        got += count
    sock.sendall(buffer if echo else b"1")
"""


def bare(size: int, mode: str) -> float:
    """Seconds of a round trip over a bare socket pair."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", BARE, str(theirs.fileno()), str(size), mode]
    child = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    theirs.close()
    body, back = os.urandom(size), memoryview(bytearray(size if mode == "echo" else 1))
    times = []
    for _ in range(WARM_UP + REQUESTS):
        began, got = time.perf_counter(), 0
        ours.sendall(body)
        while got < len(back):
            got += ours.recv_into(back[got:])
        times.append(time.perf_counter() - began)
    ours.close()
    child.wait()
    return statistics.median(times[WARM_UP:])


async def through_a_worker(size: int, mode: str, directory: Path) -> float:
    """Seconds of a request through the agent's pool to a worker."""
    loop = asyncio.get_running_loop()
    origin = Origin("f", None, None, "d1")
    spec = launching.Spec(
        origin=origin,
        interpreter=sys.executable,
        config={"function": "f", "code": str(directory / mode), "encoding": "binary"},
        path=launching.make_path(directory / "path"),
        directory=directory,
        environment=launching.base_environment(),
    )
    news = asyncio.Event()
    clock = LoopClock(loop)
    pool = Pool(
        origin,
        PoolLimits(),
        lambda p: workers.start(spec, p, loop=loop, nearness=Nearness(clock, ())),
        clock,
        random.random,
        news.set,
    )
    pool.open()
    while pool.state != "ready":
        news.clear()
        await news.wait()
    body, times = os.urandom(size), []
    for _ in range(WARM_UP + REQUESTS):
        answered: asyncio.Future[Answer | Failure] = loop.create_future()
        began = time.perf_counter()
        pool.submit(Request("f", "t", body, None, "r", lambda _, outcome, to=answered: to.set_result(outcome)))  # type: ignore[misc]
        outcome = await answered
        times.append(time.perf_counter() - began)
        assert isinstance(outcome, Answer)
        assert outcome.outputs[0][2] == (body if mode == "echo" else b"%d" % size)
    gone = asyncio.Event()
    pool.drain(lambda request: None, gone.set)
    pool.kill(FunctionError("STOPPED", "Measured."))
    await gone.wait()
    return statistics.median(times[WARM_UP:])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for mode, code in FUNCTION.items():
            Path(folder, mode).mkdir()
            Path(folder, mode, "__init__.py").write_text(code)
            for size in SIZES:
                pairs = [
                    (bare(size, mode), asyncio.run(through_a_worker(size, mode, Path(folder)))) for _ in range(ROUNDS)
                ]
                least, ours = (min(each) * 1000 for each in zip(*pairs, strict=True))
                print(
                    f"{mode:4} {size / 1e6:5.2f} MB  bare {least:7.3f} ms  worker {ours:7.3f} ms  x {ours / least:.2f}"
                )


if __name__ == "__main__":
    main()
