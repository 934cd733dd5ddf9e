"""The records of one kind on their way to one link, and which kind is next. Pure.

Kinds share a link by their weights (smooth weighted round robin, as nginx has it): with weights 8 and 1 a week of
captures takes one place in nine while results wait, and all of them when none do. A kind whose record the broker
refuses for now pauses by itself; then that record goes first and alone, so that it is known which one it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from agent.cloud.spool_records import Record
from agent.settings import SpoolClass

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class Lane:
    """One kind's records for one link.

    Attributes:
        waiting: read from the spool, next first.
        in_flight: seqs whose PUBACK is awaited.
        reading, read_again: a batch is asked for; another one is wanted after it.
        paused_until: the loop's time before which none goes out.
    """

    def __init__(self, kind: str, settings: SpoolClass) -> None:
        self.kind = kind
        self.weight = settings.weight
        self.newest_first = settings.newest_first
        self.waiting: deque[Record] = deque()
        self.in_flight: set[int] = set()
        self.reading = self.read_again = False
        self.paused_until = 0.0
        self.credit = 0
        self._suspect: int | None = None
        self._pauses = 0

    def ready(self, now: float) -> bool:
        """Whether a record of it may go out now."""
        if not self.waiting or self.paused_until > now:
            return False
        return self._suspect is None or not self.in_flight

    def take(self) -> Record:
        """The next record: the one that was refused before all others."""
        return self.waiting.popleft()

    def put_back(self, record: Record) -> None:
        """Back in its place."""
        self.waiting.append(record)
        self.waiting = deque(sorted(self.waiting, key=lambda each: each.seq, reverse=self.newest_first))
        if self._suspect is not None:
            first = next((each for each in self.waiting if each.seq == self._suspect), None)
            if first is not None and first is not self.waiting[0]:
                self.waiting.remove(first)
                self.waiting.appendleft(first)

    def counts(self, record: Record) -> bool:
        """Whether its refusal says something of this record: of many in flight only the first one's does."""
        return self._suspect in (None, record.seq)

    def pause(self, record: Record, now: float) -> float:
        """The broker refused `record` for now; returns how long to wait, seconds."""
        if self.counts(record):
            self._suspect = record.seq
            self._pauses += 1
            self.paused_until = now + min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (self._pauses - 1))
        return max(0.0, self.paused_until - now)

    def taken(self, record: Record) -> None:
        """The broker has it, or it is given up."""
        if record.seq == self._suspect:
            self._suspect = None
            self._pauses = 0


def choose(lanes: Iterable[Lane], now: float) -> Lane | None:
    """The lane whose turn it is; None where none may send."""
    ready = [lane for lane in lanes if lane.ready(now)]
    if len(ready) < 2:
        return ready[0] if ready else None
    for lane in ready:
        lane.credit += lane.weight
    best = max(ready, key=lambda lane: lane.credit)
    best.credit -= sum(lane.weight for lane in ready)
    return best
