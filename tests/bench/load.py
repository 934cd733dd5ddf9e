"""Runs the load generator (load.c) and gives back what it measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.places import LOAD


@dataclass(frozen=True)
class Way:
    """Where requests go and answers come from, and what a request is."""

    port: int
    request: str
    result: str
    payload: Path
    topics: int = 0  # of a growing number of topics: how many; the last five characters of `request` are replaced


@dataclass
class Measured:
    """One run of the load generator.

    Attributes:
        rate: answers a second.
        latency_us: p50, p99, p999, max of the answers; empty where there was none.
        cpu_us: microseconds of a processor for each answer, by pid.
        unanswered: requests without an answer at the end.
    """

    rate: float
    answers: int
    unanswered: int
    latency_us: dict[str, float] = field(default_factory=dict)
    cpu_us: dict[int, float] = field(default_factory=dict)


def measure(
    way: Way,
    *,
    qos: int,
    window: int = 1,
    seconds: float = 0.5,
    warm_s: float = 0.1,
    rate: float | None = None,
    pids: Iterable[int] = (),
    processors: set[int] | None = None,
    out: Path | None = None,
) -> Measured:
    """Keeps `window` requests outstanding, or sends at `rate` a second, for `seconds`.

    Raises:
        RuntimeError: the broker or what answers is broken.
    """
    finished = subprocess.Popen(
        command(way, qos=qos, window=window, seconds=seconds, warm_s=warm_s, rate=rate, pids=pids,
                processors=processors, out=out),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said, wrong = finished.communicate()
    if finished.returncode:
        raise RuntimeError(f"the load on {way.request} ended: {wrong.strip()}")
    return read(said)


def command(
    way: Way,
    *,
    qos: int,
    window: int = 1,
    seconds: float = 0.5,
    warm_s: float = 0.1,
    rate: float | None = None,
    pids: Iterable[int] = (),
    processors: set[int] | None = None,
    out: Path | None = None,
) -> list[str]:
    """The load generator's command line for `measure`."""
    options = {
        "port": way.port, "request": way.request, "result": way.result, "payload": way.payload, "topics": way.topics,
        "qos": qos, "window": window, "seconds": seconds, "warm": warm_s, "rate": rate or 0,
        "pids": ",".join(map(str, pids)), "out": out or "",
    }  # fmt: skip
    pinned = ["taskset", "-c", ",".join(map(str, sorted(processors)))] if processors else []
    return [*pinned, str(LOAD), *(f"{name}={value}" for name, value in options.items())]


def read(said: str) -> Measured:
    """What the load generator's line says."""
    found: dict[str, Any] = json.loads(said)
    answers = found["answers"]
    return Measured(
        rate=answers / found["seconds"],
        answers=answers,
        unanswered=found["unanswered"],
        latency_us={name[:-3]: value for name, value in found.items() if name.endswith("_us")},
        cpu_us={int(pid): used / answers * 1e6 for pid, used in found["cpu_s"].items()} if answers else {},
    )
