"""The jobs: who answers what, with how many requests outstanding, on which processors; run in turn, A B A B."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.bench import processes
from tests.bench.load import measure
from tests.bench.running import Running

LOOP: Final = "loop"
EVERY: Final = ("broker", "c-echo", "loop", "loop-typed", "loop-late", "loop-orjson", "agent", "agent-2", "endpoint",
                "endpoint-2", "node-red", "mlserver")  # fmt: skip
ONE_WORKER: Final = ("broker", "c-echo", "loop", "loop-late", "agent", "endpoint", "node-red", "mlserver")
WARM_S: Final = 0.05
MOST_S: Final = 480.0  # no further round is begun after so long


@dataclass(frozen=True)
class Job:
    """One measurement of several contenders.

    Attributes:
        contenders: in the order in which the tables show them.
        base: the one to which the ratios are.
        window: requests outstanding.
        pinned: broker, load and contender share one processor.
        seconds: how long one run measures.
        latency: it is about the time to an answer; else about answers a second.
        stock: on the broker with its own settings, whose small writes wait for each other.
    """

    title: str
    contenders: tuple[str, ...]
    qos: int
    window: int
    base: str = LOOP
    pinned: bool = False
    seconds: float = 0.25
    latency: bool = False
    stock: bool = False


JOBS: Final[dict[str, Job]] = {
    "one-pinned": Job("QoS 1, one outstanding, all on one core", ONE_WORKER, 1, 1, pinned=True, latency=True),
    "one": Job("QoS 1, one outstanding", ONE_WORKER, 1, 1, latency=True),
    "many": Job("QoS 1, 64 outstanding", EVERY, 1, 64),
    "many-qos0": Job("QoS 0, 64 outstanding", EVERY, 0, 64),
    "image": Job("image, QoS 1, 16 outstanding", ("loop-image", "agent-image", "agent-image-2"), 1, 16, "loop-image"),
    "image-one": Job("image, QoS 1, one outstanding", ("loop-image", "agent-image"), 1, 1, "loop-image", latency=True),
    "stock": Job(
        "stock broker, QoS 1, one outstanding",
        ("c-echo", "loop", "loop-typed", "agent"),
        1,
        1,
        latency=True,
        stock=True,
    ),
}
QUICK: Final = ("one-pinned", "many", "many-qos0")
QUICK_CONTENDERS: Final = ("loop", "agent")


def run(
    jobs: Sequence[str], at_work: dict[str, Running], broker: int, rounds: int, seconds: float | None,
    tell: Callable[[str], None],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The samples of all rounds of these jobs, one for each run of the load generator.

    Args:
        at_work: the contenders; those that are not here are left out.
        broker: its pid.
        seconds: of one run, in place of the job's own.
    """
    until_s = time.monotonic() + MOST_S
    for number in range(rounds):
        if time.monotonic() > until_s:
            tell(f"no more rounds after {MOST_S:g} s")
            return
        tell(f"round {number + 1} of {rounds}")
        for name in jobs:
            job = JOBS[name]
            chosen = [each for each in job.contenders if each in at_work]
            for contender in chosen if number % 2 == 0 else reversed(chosen):
                yield {"job": name, "round": number, **_once(job, at_work[contender], broker, seconds)}


def _once(job: Job, contender: Running, broker: int, seconds: float | None) -> dict[str, Any]:
    every = os.sched_getaffinity(0)
    processors = {min(every)} if job.pinned else every
    pids = contender.pids()
    processes.allow([broker, *pids], processors)
    found = measure(
        contender.way, qos=job.qos, window=job.window, seconds=seconds or job.seconds, warm_s=WARM_S,
        pids=[broker, *pids], processors=processors,
    )  # fmt: skip
    cpu_us: dict[str, float] = {}
    for pid, used in found.cpu_us.items():
        role = "broker" if pid == broker else contender.role(pid)
        cpu_us[role] = round(cpu_us.get(role, 0) + used, 2)
    return {
        "contender": contender.name,
        "rate": round(found.rate, 1),
        "answers": found.answers,
        "unanswered": found.unanswered,
        "latency_us": found.latency_us,
        "cpu_us": cpu_us,
    }
