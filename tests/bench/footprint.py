"""What a contender takes when it stands alone: time from its start to its first answer, memory, idle processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from tests.bench import processes
from tests.bench.contenders import start
from tests.bench.load import measure
from tests.bench.running import Running, Site

CONTENDERS: Final = ("loop", "agent", "endpoint", "agent-2", "node-red", "mlserver", "mlserver-default")
SETTLE_S: Final = 1.0
IDLE_S: Final = 3.0


def run(
    site: Site, names: Sequence[str], rounds: int, tell: Callable[[str], None], idle_s: float = IDLE_S
) -> Iterator[dict[str, Any]]:
    """Samples of `rounds` starts of each, in turn; memory and idling are looked at in the first of them."""
    for number in range(rounds):
        tell(f"starts, round {number + 1} of {rounds}")
        for name in names if number % 2 == 0 else reversed(names):
            contender = start(site, name)
            try:
                sample = {"contender": name, "round": number, "first_s": contender.first_s}
                yield {**sample, **(_alone(contender, idle_s) if number == 0 else {})}
            finally:
                contender.stop()


def _alone(contender: Running, idle_s: float) -> dict[str, Any]:
    time.sleep(SETTLE_S)
    pids = contender.pids()
    found: dict[str, Any] = {"idle_mb": _memory(contender, pids)}
    used_s, woken = processes.used_s(pids), processes.wakeups(pids)
    time.sleep(idle_s)
    found["idle_cpu"] = (processes.used_s(pids) - used_s) / idle_s
    found["idle_wakeups_s"] = (processes.wakeups(pids) - woken) / idle_s
    measure(contender.way, qos=1, window=64, seconds=1.0)
    found["loaded_mb"] = _memory(contender, contender.pids())
    return found


def _memory(contender: Running, pids: list[int]) -> dict[str, dict[str, float]]:
    """PSS and USS, MB, by what the process is called, and of all."""
    found: dict[str, dict[str, float]] = {}
    for pid in pids:
        pss, uss = processes.memory_mb([pid])
        for role in (contender.role(pid), "all"):
            sums = found.setdefault(role, {"pss": 0.0, "uss": 0.0})
            sums["pss"] += pss
            sums["uss"] += uss
    return found
