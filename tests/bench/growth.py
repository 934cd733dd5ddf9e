"""What grows: subscriptions, functions, spooled records, payloads. The same job at each size, in turn."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from agent.cloud.spool import Spool
from agent.messages import Outbound
from agent.settings import SpoolLimits
from tests.bench import cores, processes
from tests.bench.load import Way, measure
from tests.bench.running import Running, Site, started

SUBSCRIPTIONS: Final = (10, 100, 1_000, 10_000)
FUNCTIONS: Final = (1, 10, 50, 200)
RECORDS: Final = (1, 1_000, 100_000, 1_000_000)
PAYLOADS: Final = (200, 2_000, 20_000, 150_000, 1_000_000, 8_000_000)
SLOW_BYTES: Final = 1_000_000  # from here on a run takes longer, or it has no answer in it
MEASURED: Final = 1_000  # records that are timed
APPENDED: Final = 10_000  # records that are on their way to the disk at a time
Tell = Callable[[str], None]


def subscriptions(site: Site, rounds: int, tell: Tell) -> Iterator[dict[str, Any]]:
    """Latency and throughput with so many subscriptions, requests going to all of them in turn."""
    at_work: dict[int, Running] = {}
    try:
        for count in SUBSCRIPTIONS:
            tell(f"an agent with {count} subscriptions")
            at_work[count] = _subscribed(site, count)
        for number in range(rounds):
            for count, contender in at_work.items():
                one = measure(contender.way, qos=1, seconds=0.4)
                many = measure(contender.way, qos=1, window=64, seconds=0.4)
                yield {"size": count, "round": number, "p50_us": one.latency_us["p50"], "rate": many.rate}
    finally:
        for each in at_work.values():
            each.stop()


def _subscribed(site: Site, count: int) -> Running:
    name = f"subscribed-{count}"
    routes = [cores.subscription("local", f"{name}/{n:05}", "score") for n in range(count)]
    back = {"source": "function:score", "subject": f"{name}/+/score", "target": "local"}
    cores.write_core(site.directory / name, name, site.port, subscriptions=[back])
    made = cores.configured("score", "score", has_model=True)
    cores.deploy(site, name, cores.document("d", [cores.resource(site, "score")], [made], routes))
    way = Way(site.port, f"{name}/00000", f"{name}/+/score", site.request("sensor"), topics=count)
    return started(lambda: cores.agent(site, name, way), way)


def functions(site: Site, tell: Tell) -> Iterator[dict[str, Any]]:
    """Latency of one function, memory and the time to the first answer with so many functions, a process each."""
    for count in FUNCTIONS:
        tell(f"an agent with {count} functions")
        name = f"functions-{count}"
        topic = f"bench/{name}/in"
        cores.write_core(site.directory / name, name, site.port)
        made = [
            cores.configured(f"f{n}", "mirror", has_model=False, config={"EncodingType": "binary"})
            for n in range(count)
        ]
        last = f"f{count - 1}"
        routes = [cores.subscription("local", topic, last), cores.subscription(last, f"{topic}/{last}", "local")]
        cores.deploy(site, name, cores.document("d", [], made, routes))
        way = site.way(name, "bytes-200", last)
        contender = started(lambda name=name, way=way: cores.agent(site, name, way), way)
        try:
            settled_s = _all_started(contender, count)
            found = measure(way, qos=1, seconds=0.5)
            pids = contender.pids()
            yield {
                "size": count, "first_s": contender.first_s, "all_s": settled_s,
                "p50_us": found.latency_us.get("p50"), "pss_mb": processes.memory_mb(pids)[0],
                "agent_uss_mb": processes.memory_mb(pids[:1])[1],
            }  # fmt: skip
        finally:
            contender.stop()


def _all_started(contender: Running, count: int) -> float:
    """Seconds from the first answer until there are as many processes as there will be, and they idle."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < 120:
        pids = contender.pids()
        used_s = processes.used_s(pids)
        time.sleep(0.25)
        if len(pids) > count and processes.used_s(pids) - used_s < 0.02:
            break
    return time.monotonic() - began_s


def payloads(site: Site, rounds: int, tell: Tell) -> Iterator[dict[str, Any]]:
    """Latency and throughput of payloads that a function gives back as they are."""
    name = "payloads"
    cores.deployed("mirror", None, EncodingType="binary")(site, name)
    first = site.way(name, f"bytes-{PAYLOADS[0]}", "mirror")
    contender = started(lambda: cores.agent(site, name, first), first)
    try:
        for number in range(rounds):
            tell(f"payloads, round {number + 1} of {rounds}")
            for size in PAYLOADS:
                way = dataclasses.replace(first, payload=site.request(f"bytes-{size}"))
                seconds = 0.3 if size < SLOW_BYTES else 1.5
                one = measure(way, qos=1, seconds=seconds)
                many = measure(way, qos=1, window=8, seconds=seconds)
                yield {"size": size, "round": number, "p50_us": one.latency_us.get("p50"), "rate": many.rate}
    finally:
        contender.stop()


def records(directory: Path, tell: Tell) -> list[dict[str, Any]]:
    """What it takes to open a spool of so many records of 200 bytes, to commit more of them, and to read them back."""
    directory.mkdir()
    return asyncio.run(_records(directory, tell))


async def _records(directory: Path, tell: Tell) -> list[dict[str, Any]]:
    limits = SpoolLimits(max_bytes=4 * 1024**3)
    found, there = [], 0
    for size in RECORDS:
        tell(f"a spool of {size} records")
        spool = Spool(directory / "spool.db", loop=asyncio.get_running_loop(), limits=limits)
        await spool.open()
        await _append(spool, size - there)
        there = size
        await spool.close()
        began_s = time.perf_counter()
        spool = Spool(directory / "spool.db", loop=asyncio.get_running_loop(), limits=limits)
        await spool.open()
        opened_s = time.perf_counter() - began_s
        append_s = await _append(spool, MEASURED)
        began_s = time.perf_counter()
        taken = 0
        while taken < min(size, MEASURED):
            batch = await spool.next_batch("cloud", "result", 100)
            taken += len(batch)
            spool.handed_over([record.seq for record in batch])
        read_s = time.perf_counter() - began_s
        there += MEASURED - taken
        await spool.close()
        found.append(
            {"size": size, "open_s": opened_s, "append_rate": MEASURED / append_s, "read_rate": taken / read_s}
        )
    return found


async def _append(spool: Spool, count: int) -> float:
    """Appends so many and returns how long it took until the last was committed, s."""
    began_s = time.perf_counter()
    for first in range(0, count, APPENDED):
        committed = asyncio.Event()
        block = min(APPENDED, count - first)
        for n in range(block):
            spool.append("cloud", "result", Outbound("t", b"x" * 200), committed.set if n == block - 1 else None)
        await committed.wait()
    return time.perf_counter() - began_s
