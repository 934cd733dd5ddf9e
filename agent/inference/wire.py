"""The agent's end of a worker's socket: frames gathered into one write, all that waits read at once.

Runs on the event loop's thread and never blocks. What one turn of the loop sends leaves in one write.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import functools
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from agent.turn import turn_of
from functions import frames
from functions.memory import keep_freed

SOCKET_BYTES: Final = 4 * 1024 * 1024
# All wires read into this one: what is read is cut into frames, which are copies, before the next one reads. With one
# for each, a worker would cost the agent a quarter of a megabyte more.
_read: Final = memoryview(bytearray(frames.READ_BYTES))
WRONG = (frames.FrameError, LookupError, TypeError, ValueError)


class Wire:
    """One connection to a worker.

    Args:
        on_frame: gets each frame's header and body; may raise what is in `WRONG` for one that makes no sense.
        on_wrong: what came is no frame; nothing is read any more.
        on_end: the worker has closed its end.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        *,
        on_frame: Callable[[list[Any], bytes], None],
        on_wrong: Callable[[Exception], None],
        on_end: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._loop = loop
        self._on_frame = on_frame
        self._on_wrong = on_wrong
        self._on_end = on_end
        self._reader = frames.FrameReader()
        self._out: list[frames.Buffer] = []
        self._turn = turn_of(loop)
        self._flushing = False
        self._blocked = False
        loop.add_reader(sock, self._on_readable)

    def write(self, buffers: list[frames.Buffer]) -> None:
        """Has the buffers leave at the end of this turn, as far as the socket takes them."""
        self._out += buffers
        if not self._flushing and not self._blocked:
            self._flushing = True
            self._turn.soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        try:
            while self._out:
                # A frame's head is a buffer of its own: what leaves together is joined where that is the cheaper copy.
                if sum(map(len, self._out)) <= frames.JOINED_BYTES:
                    self._out = [b"".join(self._out)]
                sent = self._send()
                self._out = frames.rest_after(self._out, sent)
        except (BlockingIOError, InterruptedError):
            if not self._blocked:
                self._blocked = True
                self._loop.add_writer(self._sock, self._on_writable)
        except OSError:
            self._out.clear()  # it is gone; its exit tells why

    def _send(self) -> int:
        """Writes once; ahead of a large body with a fence, which the worker's next read does not go beyond.

        The kernel ends a read after bytes that came with a descriptor. A reader that does not ask for it never sees it.
        """
        group, fenced = frames.next_group(self._out)
        if fenced:
            try:
                return self._sock.sendmsg(group, _fence())
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS:
                    raise
        return self._sock.sendmsg(group)

    def _on_writable(self) -> None:
        self._loop.remove_writer(self._sock)
        self._blocked = False
        self._flush()

    def _on_readable(self) -> None:
        try:
            found = self._read()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            found = None
        except WRONG as error:
            self._loop.remove_reader(self._sock)
            self._on_wrong(error)
            return
        if found is None:
            self._loop.remove_reader(self._sock)
            self._on_end()
            return
        self._turn.begin()
        try:
            for header, body in found:
                self._on_frame(header, body)
        except WRONG as error:
            self._loop.remove_reader(self._sock)
            self._on_wrong(error)
        finally:
            self._turn.end()

    def _read(self) -> list[frames.Frame] | None:
        """Frames that are complete after one read; None at the end of the stream."""
        if self._reader.missing:
            keep_freed()
            return self._reader.receive_large(self._sock, socket.MSG_DONTWAIT)
        size = self._sock.recv_into(_read)
        return self._reader.feed(_read[:size]) if size else None

    def take_what_is_left(self) -> None:
        """Answers that the worker wrote before it ended still count."""
        with contextlib.suppress(OSError, *WRONG):
            while data := self._sock.recv(frames.READ_BYTES):
                for header, body in self._reader.feed(data):
                    self._on_frame(header, body)

    def close(self) -> None:
        """Closes it, whatever was not sent yet."""
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()


@functools.cache
def _fence() -> list[tuple[int, int, bytes]]:
    """What goes with the bytes ahead of a large body: any descriptor does, and is thrown away."""
    keep_freed()
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]


def pair() -> tuple[socket.socket, socket.socket]:
    """The agent's end, which does not block, and a worker's."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    return ours, theirs
