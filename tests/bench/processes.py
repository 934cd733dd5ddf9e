"""What other processes take: memory, processor time, wake-ups; and which processors they may use. Linux."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def tree(pid: int) -> list[int]:
    """`pid` and all that came of it."""
    return [pid, *(below for child in _children(pid) for below in tree(child))]


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from (int(each) for each in (task / "children").read_text().split())


def memory_mb(pids: Iterable[int]) -> tuple[float, float]:
    """(PSS, USS) of these processes together, 10^6 bytes. PSS shares out what processes have in common."""
    pss = uss = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value, _ = line.split()
            if name == "Pss:":
                pss += int(value)
            elif name in ("Private_Clean:", "Private_Dirty:"):
                uss += int(value)
    return pss * 1024 / 1e6, uss * 1024 / 1e6


def used_s(pids: Iterable[int]) -> float:
    """Seconds of a processor that these processes have used."""
    return sum(int((task / "schedstat").read_text().split()[0]) for pid in pids for task in _tasks(pid)) / 1e9


def wakeups(pids: Iterable[int]) -> int:
    """How often their threads gave up the processor by themselves."""
    count = 0
    for pid in pids:
        for task in _tasks(pid):
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    count += int(line.split()[1])
    return count


def allow(pids: Iterable[int], processors: set[int]) -> None:
    """Lets all threads of these processes, and what they start, run on `processors` alone."""
    for pid in pids:
        for task in _tasks(pid):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), processors)


def _tasks(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []
