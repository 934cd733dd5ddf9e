"""Measures a spool with a backlog beside an empty one, in turn: appending, forwarding, starting, memory.

``python -m tests.spool_backlog --records 1000000`` prints what it finds as JSON; scripts/soak keeps it in docs/soak.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.cloud.forwarder import Refused, Sent
from agent.cloud.outbox import Outbox
from agent.cloud.spool import Spool
from agent.messages import Outbound
from agent.settings import SpoolLimits

LIMITS = SpoolLimits(max_bytes=8 << 30, free_bytes=0)
BURST = 50  # appended in one turn of the loop
BODY_BYTES = 1000
ROUNDS = 5
KIND = os.environ.get("KIND", "capture")  # or `result`, which no value sorts


@dataclass
class Taken:
    refused: Refused | None = None  # of what went straight: nothing did


class Taker:
    """A link whose broker takes everything, one turn of the loop later; disconnected until it is told."""

    def __init__(self) -> None:
        self.connected = False
        self.outstanding: dict[int, Sent] = {}
        self.taken = 0
        self.order: list[str] = []
        self.stop_at: int | None = None
        self.enough = asyncio.Event()

    def divert(self, packet_id: int, done: Callable[[], None], refused: Refused) -> None:
        raise AssertionError("nothing went straight")

    def publish(self, out: Outbound, done: Callable[[], None] | None = None, refused: Refused | None = None) -> None:
        self.outstanding[len(self.order)] = Taken()
        self.order.append(out.topic)
        asyncio.get_running_loop().call_soon(self._acknowledge, done)

    def _acknowledge(self, done: Callable[[], None] | None) -> None:
        del self.outstanding[self.taken]
        self.taken += 1
        if self.taken == self.stop_at:
            self.connected = False
            self.enough.set()
        if done:
            done()


class Place:
    """One spool, its outbox and its link."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.link = Taker()
        self.appended = 0

    async def open(self) -> float:
        """Opens the spool; returns how long it took, seconds."""
        began = time.perf_counter()
        self.spool = Spool(self.folder / "spool.db", loop=asyncio.get_running_loop(), limits=LIMITS)
        await self.spool.open()
        took = time.perf_counter() - began
        self.outbox = Outbox(self.spool, {"cloud": self.link}, LIMITS)
        return took

    async def append(self, count: int) -> float:
        """Appends records and waits for the last one's commit; returns records a second."""
        chance = random.Random(7)
        last = asyncio.get_running_loop().create_future()
        room = asyncio.Semaphore(100)  # bursts that are not committed yet
        began = time.perf_counter()
        for n in range(count):
            self.appended += 1
            out = Outbound(f"t/{self.appended}", b"x" * BODY_BYTES)
            done = (lambda: last.set_result(None)) if n == count - 1 else room.release if n % BURST == 0 else _nothing
            self.outbox.send("cloud", KIND, out, done, chance.random())
            if n % BURST == 0:
                await asyncio.sleep(0)
                await room.acquire()
        await last
        return count / (time.perf_counter() - began)

    async def forward(self, count: int) -> float:
        """Hands over the oldest records; returns records a second."""
        link = self.link
        link.stop_at, link.enough = link.taken + count, asyncio.Event()
        began = time.perf_counter()
        link.connected = True
        self.outbox.link_up("cloud")
        await link.enough.wait()
        return count / (time.perf_counter() - began)


def _nothing() -> None:
    pass


def resident_mb() -> float:
    """Resident memory now, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


async def measure(folder: Path, records: int, count: int) -> dict[str, Any]:
    empty, full = Place(folder / "empty"), Place(folder / "full")
    await empty.open()
    await empty.append(count)  # both have grown and been emptied before anything is measured
    await empty.forward(count)
    before_mb = resident_mb()
    await full.open()
    fill = await full.append(records)
    grown_mb = resident_mb() - before_mb
    await full.spool.close()
    start_s = await full.open()
    backlog = full.spool.backlog("cloud")
    rates: dict[str, list[float]] = {"append_empty": [], "append_full": [], "forward_empty": [], "forward_full": []}
    for number in range(ROUNDS):
        for place in (empty, full) if number % 2 else (full, empty):
            name = "empty" if place is empty else "full"
            rates[f"append_{name}"].append(await place.append(count))
            rates[f"forward_{name}"].append(await place.forward(count))
    order = full.link.order
    assert order == [f"t/{n}" for n in range(1, len(order) + 1)], "the backlog went out in another order"
    assert full.spool.backlog("cloud") == records
    assert not full.spool.dropped
    for place in (empty, full):
        await place.outbox.stop(0)
        await place.spool.close()
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "records": records,
        "backlog_at_start": backlog,
        "start_ms": round(start_s * 1000, 1),
        "start_after_kill_ms": round(await asyncio.to_thread(start_after_kill, folder / "full" / "spool.db") * 1000, 1),
        "fill_per_s": round(fill),
        **{f"{name}_per_s": round(value) for name, value in median.items()},
        "append_ratio": round(median["append_full"] / median["append_empty"], 3),
        "forward_ratio": round(median["forward_full"] / median["forward_empty"], 3),
        "memory_grown_mb": round(grown_mb, 1),
        "file_mb": round((folder / "full" / "spool.db").stat().st_size / 1e6),
    }


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from agent.messages import Outbound
from tests.spool_backlog import Place

async def main():
    place = Place(Path(sys.argv[1]))
    await place.open()
    await place.append(2000)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def start_after_kill(file: Path) -> float:
    """Kills a process that has just appended to the spool, and returns how long the next start takes, seconds."""
    subprocess.run([sys.executable, "-c", KILLED, str(file.parent)], check=False)
    assert Path(f"{file}-wal").exists(), "it was not killed"

    async def again() -> float:
        place = Place(file.parent)
        took = await place.open()
        await place.spool.close()
        return took

    return asyncio.run(again())


def run(records: int, count: int, folder: Path | None = None) -> dict[str, Any]:
    """Measures in a fresh folder (below `folder`) and removes it."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        return _run_in(Path(name), records, count)


def _run_in(folder: Path, records: int, count: int) -> dict[str, Any]:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(measure(folder, records, count))
    finally:
        loop.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000, help="of 1,000 bytes in the backlog")
    parser.add_argument("--count", type=int, default=20_000, help="appended and forwarded in each round")
    options = parser.parse_args()
    print(json.dumps(run(options.records, options.count, Path(os.environ.get("TMPDIR", "/var/tmp")))))


if __name__ == "__main__":
    main()
