"""When what was queued leaves: at the end of the callback that reads, or else in the loop's next turn.

Whoever gathers writes (a link's stream, a worker's wire) asks here for its flush. Answers to what was just read leave
before the loop polls again; a `call_soon` would cost each of them another turn and another poll. Belongs to the event
loop's thread; never blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

Flush = Callable[[], None]


class Turn:
    """One event loop's flushes."""

    __slots__ = ("_due", "_loop", "_reading", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due: list[Flush] = []
        self._reading = False
        self._scheduled = False

    def soon(self, flush: Flush) -> None:
        """Has `flush` called once: when what is being read is handled, or in the loop's next turn."""
        self._due.append(flush)
        if not self._reading and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._scheduled_now)

    def begin(self) -> None:
        """A callback begins to handle what it has read; `end` has to follow, whatever happens."""
        self._reading = True

    def end(self) -> None:
        """It is handled: what was queued meanwhile leaves."""
        self._reading = False
        if self._due:
            self._flush()

    def _scheduled_now(self) -> None:
        self._scheduled = False
        if self._due:
            self._flush()

    def _flush(self) -> None:
        due, self._due = self._due, []
        for flush in due:
            flush()


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


def turn_of(loop: asyncio.AbstractEventLoop) -> Turn:
    """The one that belongs to `loop`."""
    turn = _turns.get(loop)
    if turn is None:
        turn = _turns[loop] = Turn(loop)
    return turn
