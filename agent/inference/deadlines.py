"""The time that a worker has for one request, or for one batch. Pure: the clock is passed in."""

from __future__ import annotations

from collections.abc import Callable, Collection

from agent.errors import FunctionError
from agent.inference.requests import Clock
from agent.inference.slots import Slot


class Deadlines:
    """Finds the workers that are late.

    One timer a pool, set only while something is in flight: none is made or cancelled for a request.

    Args:
        slots: the pool's, as they are now and later.
        timeout_s: what one request may take in the handler.
        late: makes what a late request is answered with.

    Attributes:
        watching: the timer is set.
    """

    def __init__(
        self, slots: Collection[Slot], timeout_s: float, clock: Clock, late: Callable[[], FunctionError]
    ) -> None:
        self._slots = slots
        self._timeout_s = timeout_s
        self._clock = clock
        self._late = late
        self.watching = False

    def watch(self) -> None:
        """To be called when a request is sent, unless it is `watching`."""
        if not self.watching:
            self.watching = True
            self._clock.later(self._timeout_s, self._find_late)

    def _find_late(self) -> None:
        self.watching = False
        now, nearest = self._clock.now(), None
        for slot in list(self._slots):
            if not slot.in_flight or slot.condemned:
                continue
            left = slot.busy_since_s + self._timeout_s + slot.grace_s - now
            if left <= 0:
                slot.condemn()
                slot.worker.check(self._late())
            else:
                nearest = left if nearest is None else min(nearest, left)
        if nearest is not None:
            self.watching = True
            self._clock.later(nearest, self._find_late)
