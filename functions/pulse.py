"""Answers the agent's question whether the interpreter lives, and where its main thread is.

A thread of its own, blocked in a read: it costs nothing until it is asked. That it answers tells a handler that takes
long from native code that never gives the interpreter back.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable

import msgpack

LINES = 3


class Pulse:
    """Starts the thread; made on the main thread, which is the one it tells about.

    Attributes:
        before: called ahead of each answer, on the pulse's thread.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.before: Callable[[], None] = lambda: None
        self._sock = sock
        self._main = threading.get_ident()
        threading.Thread(target=self._run, name="pulse", daemon=True).start()

    def _run(self) -> None:
        try:
            while asked := self._sock.recv(64):
                self.before()
                for _ in asked:
                    self._sock.sendall(msgpack.packb(where(self._main)))
        except OSError:
            pass
        os._exit(1)  # the agent is gone: nobody waits for what the main thread does


def where(thread: int) -> str:
    """The innermost calls of a thread, ``file:line in name``, innermost first."""
    frame = sys._current_frames().get(thread)
    lines: list[str] = []
    while frame is not None and len(lines) < LINES:
        lines.append(f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}")
        frame = frame.f_back
    return ", called from ".join(lines)
