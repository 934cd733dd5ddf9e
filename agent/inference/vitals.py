"""Whether a worker still lives and how much memory it has: the pulse and the watch over its resident memory.

Runs on the event loop's thread and never blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgpack

from agent.errors import AgentError, FunctionError

PULSE_S: Final = 0.25  # a living interpreter answers within a switch interval or two
MEMORY_CHECK_S: Final = 0.2
PAGE_KB: Final = os.sysconf("SC_PAGE_SIZE") // 1024


class Pulse:
    """The agent's end of a worker's pulse."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, function: str) -> None:
        self._sock = sock
        self._loop = loop
        self._function = function
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, late: FunctionError, verdict: Callable[[AgentError], None]) -> None:
        """Asks whether it lives; `verdict` gets `late` and where it is, or WORKER_HUNG where no answer comes."""
        self._timer = self._loop.call_later(PULSE_S, self._failed, verdict)
        self._loop.add_reader(self._sock, self._answered, late, verdict)
        with contextlib.suppress(OSError):
            self._sock.send(b"?")

    def _answered(self, late: FunctionError, verdict: Callable[[AgentError], None]) -> None:
        self._stop()
        with contextlib.suppress(OSError, ValueError):
            where = msgpack.unpackb(self._sock.recv(65536))
            late = FunctionError(late.code, f"{late.message} It was at {where}.", late.remedy)
        verdict(late)

    def _failed(self, verdict: Callable[[AgentError], None]) -> None:
        self._stop()
        text = (
            f"A worker of function {self._function} neither finished in time nor answered its pulse: it is stopped, or"
            " stuck in native code."
        )
        verdict(FunctionError("WORKER_HUNG", text, "Look for a library call in it that never returns."))

    def _stop(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()

    def close(self) -> None:
        """Closes it; nothing is asked any more."""
        self._stop()
        self._sock.close()


class MemoryWatch:
    """Looks at a worker's resident memory now and then.

    Args:
        limit_kb: what it may take, KiB.
        exceeded: called once, with OUT_OF_MEMORY.
    """

    def __init__(
        self,
        pid: int,
        limit_kb: int,
        function: str,
        loop: asyncio.AbstractEventLoop,
        exceeded: Callable[[AgentError], None],
    ) -> None:
        self._pid = pid
        self._limit_kb = limit_kb
        self._function = function
        self._loop = loop
        self._exceeded = exceeded
        self._timer = loop.call_later(MEMORY_CHECK_S, self._look)

    def _look(self) -> None:
        used = resident_kb(self._pid)
        if used > self._limit_kb and children(self._pid):
            used = proportional_kb(self._pid) or used  # what a process shares with those it forked counts once
        if used > self._limit_kb:
            text = f"A worker of function {self._function} took {used} KiB, its MemorySize is {self._limit_kb}."
            remedy = "Raise MemorySize in its FunctionConfiguration, or make it take less."
            self._exceeded(FunctionError("OUT_OF_MEMORY", text, remedy))
        else:
            self._timer = self._loop.call_later(MEMORY_CHECK_S, self._look)

    def close(self) -> None:
        """Looks no more."""
        self._timer.cancel()


def resident_kb(pid: int) -> int:
    """The resident memory of a process and all that it has started, KiB; 0 where it is gone.

    What they share counts for each of them.
    """
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KB
        return own + sum(map(resident_kb, children(pid)))
    except (OSError, IndexError, ValueError):
        return 0


def proportional_kb(pid: int) -> int:
    """The same, in which what several share counts once for all of them; 0 where the agent may not look.

    The kernel looks at every page for it: milliseconds for a large process.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii", errors="replace") as file:
            own = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
        return own + sum(map(proportional_kb, children(pid)))
    except (OSError, StopIteration, IndexError, ValueError):
        return 0


def children(pid: int) -> list[int]:
    """The processes that a process, any thread of it, has started and that still run."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
            found += map(int, file.read().split())
    return found
