"""A worker's place in its pool: what it has been sent, and how much it is given ahead of its asking. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Final

from agent.inference.requests import Request, Worker
from agent.values import dataclass

SENT_AHEAD_S: Final = 0.005  # work handed to a worker before it asks: enough to keep it busy, little to lose
MAX_SENT_AHEAD: Final = 128
GRACE_S: Final = 1.0  # a worker that settles what is late and has not by then does not run its event loop


@dataclass(slots=True, eq=False)
class Slot:
    """A worker and what it has been sent, oldest first.

    Attributes:
        ready: it has said so, and takes requests.
        stopping: it was told to end.
        condemned: it is late, and gets nothing any more.
        late: what it was late with.
        service_s: what one request takes it, smoothed.
        busy_since_s: the clock when it began the request that it is at.
        max_batch: how many requests it takes at once.
        grace_s: how much longer than the time-out it is left alone, because it settles what is late itself.
    """

    worker: Worker
    ready: bool = False
    stopping: bool = False
    condemned: bool = False
    late: frozenset[Request] = frozenset()
    in_flight: dict[int, Request] = field(default_factory=dict)
    service_s: float = SENT_AHEAD_S
    busy_since_s: float = 0.0
    max_batch: int = 1
    grace_s: float = 0.0

    @property
    def serves(self) -> bool:
        """Whether it takes requests, now or when it is done with those it has."""
        return self.ready and not self.condemned

    def window(self) -> int:
        """How many requests it may have in flight: two batches, or what keeps it busy for `SENT_AHEAD_S`."""
        ahead = min(int(SENT_AHEAD_S / max(self.service_s, 1e-6)), MAX_SENT_AHEAD)
        return max(ahead, 2 * self.max_batch if self.max_batch > 1 else 1)

    def retire(self) -> None:
        """Has it finish what it was sent, and end; it gets nothing any more."""
        self.stopping, self.ready = True, False
        self.worker.stop()

    def condemn(self) -> None:
        """Gives it up: the batch that it is at is late."""
        self.condemned = True
        self.late = frozenset(list(self.in_flight.values())[: self.max_batch])


def free(slots: Iterable[Slot]) -> Slot | None:
    """An idle one, else that with the least in flight; None: all have as much as they may."""
    best: Slot | None = None
    for slot in slots:
        if slot.ready and not slot.condemned:
            count = len(slot.in_flight)
            if not count:
                return slot
            if count < slot.window() and (best is None or count < len(best.in_flight)):
                best = slot
    return best
