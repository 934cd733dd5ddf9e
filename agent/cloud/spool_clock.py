"""How old a record is, whatever becomes of the wall clock: a device may start in 1970 and learn the time an hour later.

Within one boot the machine's uptime counts, which no correction moves and which goes on in sleep; over a boot the wall
clock does, as far as it can be believed: back counts as no time, and what began before the agent was written was wrong.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Protocol

from agent.values import dataclass

BELIEVABLE_S = 1_577_836_800.0  # 2020: a wall clock before it was never set


class Clock(Protocol):
    """The machine's clocks."""

    boot: str

    def wall(self) -> float:
        """Seconds since 1970, as far as the machine knows."""

    def uptime(self) -> float:
        """Seconds since this boot, sleep included."""


class SystemClock:
    """The clocks of this machine."""

    def __init__(self) -> None:
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def wall(self) -> float:
        return time.time()

    def uptime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Anchor:
    """What all clocks said at one moment. `age`: the time by which records are dated, seconds."""

    age: float
    wall: float
    uptime: float
    boot: str

    def packed(self) -> str:
        return json.dumps([self.age, self.wall, self.uptime, self.boot])


def unpacked(text: str) -> Anchor:
    """What `packed` gave; raises ValueError."""
    age, wall, uptime, boot = json.loads(text)
    return Anchor(float(age), float(wall), float(uptime), str(boot))


def resumed(before: Anchor | None, wall: float, uptime: float, boot: str) -> float:
    """The age now, given the last anchor (None: the first start, which begins at the wall clock)."""
    if before is None:
        return wall
    if before.boot == boot and uptime >= before.uptime:
        return before.age + uptime - before.uptime
    return before.age + (max(0.0, wall - before.wall) if before.wall >= BELIEVABLE_S else 0.0)


class AgeClock:
    """Seconds by which records are dated; never runs backwards. Any thread may read it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.wall() - clock.uptime()

    def resume(self, before: Anchor | None) -> None:
        """Goes on from what an earlier run left."""
        uptime = self._clock.uptime()
        self._offset = resumed(before, self._clock.wall(), uptime, self._clock.boot) - uptime

    def now(self) -> float:
        return self._clock.uptime() + self._offset

    def anchor(self) -> Anchor:
        uptime = self._clock.uptime()
        return Anchor(uptime + self._offset, self._clock.wall(), uptime, self._clock.boot)
