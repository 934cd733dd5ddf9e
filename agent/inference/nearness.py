"""One core for agent and worker, while requests come one by one and are quick.

Such a request wakes the worker, whose answer wakes the agent: there is nothing to do side by side. The kernel spreads
them over idle cores all the same, each of which is then woken twice for a request, with caches that others have used
meanwhile. On one core a request takes less time and a third less processor. As soon as two requests are on their
way at once, or it no longer pays, all may run anywhere again; and so before a child is started, which would inherit
it.

Belongs to the event loop's thread; a change blocks for some calls of the kernel.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Final

from agent.inference.requests import Clock

OWN: Final = 0  # the kernel's name for the thread that asks
ENOUGH: Final = 64  # requests one by one, before it is taken for a habit
WITHIN_S: Final = 1.0  # their time: fewer are not worth it
LOOK_S: Final = 0.1
PAUSE_S: Final = 5.0  # after others began what may take long: a deployment, say, which holds up a core
FEWEST: Final = 8  # in that time, or it is over
QUICK_S: Final = 0.001  # a request that takes a worker longer gains nothing, and could keep the agent waiting
MOST_THREADS: Final = 3  # the worker's, its pulse's and one of a runtime's: a function that has more may want the cores


class Nearness:
    """All requests that are with workers, and whether agent and workers share a core.

    Args:
        clock: time and timers.
        processors: those that the agent may run on; with less than two nothing is ever changed.

    Attributes:
        open: requests that are with workers now.
        alone: requests in a row that were sent when no other was with a worker.
    """

    def __init__(self, clock: Clock, processors: Iterable[int]) -> None:
        self.open = 0
        self.alone = 0
        self._clock = clock
        self._all = frozenset(processors)
        self._began_s = clock.now()
        self._seen = 0
        self._not_before_s = 0.0
        self._core: frozenset[int] = frozenset()  # the one that they share
        self._near: dict[int, frozenset[int]] = {}  # pid to what it may run on else; OWN: the agent's own thread

    @property
    def near(self) -> bool:
        """Whether they share a core now."""
        return bool(self._near)

    def consider(self, pid: int, service_s: float) -> None:
        """To be called for each `ENOUGH`th request in a row that is alone.

        Args:
            pid: its worker.
            service_s: what a request takes that worker, about.
        """
        now = self._clock.now()
        began_s, self._began_s = self._began_s, now
        if service_s >= QUICK_S:
            self.crowd()
        elif pid in self._near or len(self._all) < 2 or now - began_s > WITHIN_S or now < self._not_before_s:
            pass
        elif len(_tasks(pid)) <= MOST_THREADS:
            self._come_near(pid)

    def crowd(self) -> None:
        """Two requests are on their way at once."""
        self.alone = 0
        self._began_s = self._clock.now()
        self.part()

    def make_way(self) -> None:
        """Others are about to work: all may run anywhere for `PAUSE_S` at least."""
        self._not_before_s = self._clock.now() + PAUSE_S
        self.part()

    def part(self) -> None:
        """All may run anywhere again. Idempotent."""
        near, self._near = self._near, {}
        for pid, processors in near.items():
            for task in (OWN,) if pid == OWN else _tasks(pid):
                # Where somebody else has said meanwhile what it may run on, that stands.
                if _allowed(task) == self._core and not _allow(task, processors):
                    _allow(task, range(os.cpu_count() or 1))

    def forget(self, pid: int, unanswered: int) -> None:
        """The worker has ended, and with it the requests that it was sent."""
        self.open -= unanswered
        self._near.pop(pid, None)
        if set(self._near) == {OWN}:
            self.part()

    def _come_near(self, pid: int) -> None:
        try:
            if not self._near:
                self._core = frozenset((_processor(),))
                self._near[OWN] = _allowed(OWN)
                _allow(OWN, self._core)
                self._seen = self.alone
                self._clock.later(LOOK_S, self._look)
            self._near[pid] = _allowed(pid)
            if not _allow(pid, self._core):
                self.part()  # another user's, and we are not root
        except OSError:
            self.part()

    def _look(self) -> None:
        """Parts where requests have become few."""
        if self._near and (self.alone - self._seen < FEWEST or _allowed(OWN) != self._core):
            self.crowd()
        elif self._near:
            self._seen = self.alone
            self._clock.later(LOOK_S, self._look)


def _allowed(task: int) -> frozenset[int]:
    """What a thread may run on; nothing where it has ended."""
    with contextlib.suppress(OSError):
        return frozenset(os.sched_getaffinity(task))
    return frozenset()


def _allow(task: int, processors: Iterable[int]) -> bool:
    try:
        os.sched_setaffinity(task, processors)
    except OSError:
        return False
    return True


def _processor() -> int:
    """The one that the agent runs on now, of those that it may."""
    with open("/proc/thread-self/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[36])


def _tasks(pid: int) -> list[int]:
    """The threads of a process; none where it has ended."""
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    return []
