"""Functions on demand: when a worker is started because requests wait, and when one is ended because none come. Pure.

A first worker is started at once. Another one beside it is started when a request has waited for `GROW_S`, one at a
time: what a worker does soon enough is not done sooner by loading the model again. A worker that had nothing to do for
its keep-alive time is ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from agent.inference.queueing import WorkQueue
from agent.inference.requests import Clock, Request
from agent.inference.slots import Slot

GROW_S: Final = 0.1
SHORTEST_S: Final = 0.05  # between two looks


class Workers(Protocol):
    """The pool, as far as demand goes."""

    @property
    def queue(self) -> WorkQueue: ...
    @property
    def slots(self) -> Mapping[Any, Slot]: ...
    @property
    def limits(self) -> Any: ...
    @property
    def idle_workers_stay(self) -> bool: ...
    def wake(self) -> None: ...
    def add(self) -> None: ...


class Demand:
    """Starts and ends the workers of one pool.

    One timer for growth, set only while requests wait for long, and one for idle workers: none for a request.
    """

    def __init__(self, pool: Workers, clock: Clock, keep_alive_s: float) -> None:
        self._pool = pool
        self._clock = clock
        self._keep_alive_s = keep_alive_s
        self._growing = False
        self._watching = False

    def waits(self, request: Request) -> None:
        """To be called for a request that was queued because no worker is free."""
        request.sent_s = self._clock.now()
        self._pool.wake()
        if not self._growing:
            self._growing = True
            self._clock.later(GROW_S, self._grow)

    def _grow(self) -> None:
        self._growing = False
        if not self._pool.queue.requests:
            return
        waited = self._clock.now() - self._pool.queue.requests[0].sent_s
        if waited >= GROW_S * 0.99 and self.needs_another(0):
            self._pool.add()
        self._growing = True
        self._clock.later(GROW_S, self._grow)

    def needs_another(self, failed_starts: int) -> bool:
        """Whether one more is to be started: for what waits, or to see whether it starts again at all."""
        slots = self._pool.slots.values()
        starting = any(not slot.ready and not slot.stopping for slot in slots)
        wanted = bool(self._pool.queue.requests) or failed_starts > 0
        return wanted and not starting and len(slots) < self._pool.limits.processes

    def watch(self) -> None:
        """To be called when a worker is ready: looks for those that have nothing to do, as long as there are any."""
        if not self._watching:
            self._watching = True
            self._clock.later(max(self._keep_alive_s, SHORTEST_S), self._end_idle)

    def _end_idle(self) -> None:
        self._watching = False
        now, nearest = self._clock.now(), self._keep_alive_s
        for slot in list(self._pool.slots.values()):
            if not slot.serves or slot.in_flight or self._pool.idle_workers_stay:
                continue
            left = slot.busy_since_s + self._keep_alive_s - now
            if left <= 0:
                slot.retire()
            else:
                nearest = min(nearest, left)
        if any(slot.serves for slot in self._pool.slots.values()):
            self._watching = True
            self._clock.later(max(nearest, SHORTEST_S), self._end_idle)
