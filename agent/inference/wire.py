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

from agent.loop import turn_of
from functions import frames
from functions.memory import keep_freed

READ_BYTES: Final = 64 * 1024  # what malloc gives and takes back without asking the kernel
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
        self._held = 0  # bytes in it, but for the frames' heads
        self._turn = turn_of(loop)
        self._flushing = False
        self._blocked = False
        self._turn.add_reader(sock.fileno(), self._on_readable)

    def send(self, header: list[Any], body: frames.Buffer = b"") -> None:
        """Has a frame leave at the end of this turn, as far as the socket takes it; `body` is not copied before.

        Raises:
            frames.FrameError: the body is larger than any MQTT packet.
        """
        head, size = frames.pack_header(header), len(body)
        if size > frames.MAX_BODY_BYTES:
            raise frames.FrameError(f"a message of {size} bytes is beyond MQTT's limit of {frames.MAX_BODY_BYTES}")
        self._out += (frames.pack_prefix(len(head), size) + head, body)
        self._held += size
        if not self._flushing and not self._blocked:
            self._flushing = True
            turn = self._turn
            if turn.reading:
                turn.due.append(self._flush)
            else:
                turn.soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._held >= frames.JOINED_BYTES:
            self._flush_large()
            return
        # A frame's head is a buffer of its own: what leaves together is joined where that is the cheaper copy.
        data = b"".join(self._out)
        self._out, self._held = [], 0
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # it is gone; its exit tells why
        if sent < len(data):
            self._out, self._held = [memoryview(data)[sent:]], len(data) - sent
            self._wait_for_room()

    def _flush_large(self) -> None:
        try:
            while self._out:
                self._out = frames.rest_after(self._out, self._send())
            self._held = 0
        except (BlockingIOError, InterruptedError):
            self._held = sum(map(len, self._out))
            self._wait_for_room()
        except OSError:
            self._out, self._held = [], 0

    def _wait_for_room(self) -> None:
        if not self._blocked:
            self._blocked = True
            self._loop.add_writer(self._sock, self._on_writable)

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
            if self._reader.missing:
                keep_freed()
                found = self._reader.receive_large(self._sock, socket.MSG_DONTWAIT)
            else:
                data = self._sock.recv(READ_BYTES)
                found = self._reader.feed(data) if data else None
            if found is None:
                self._stop_reading()
                self._on_end()
                return
            for header, body in found:
                self._on_frame(header, body)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._stop_reading()
            self._on_end()
        except WRONG as error:
            self._stop_reading()
            self._on_wrong(error)

    def _stop_reading(self) -> None:
        self._turn.remove_reader(self._sock.fileno())

    def take_what_is_left(self) -> None:
        """Answers that the worker wrote before it ended still count."""
        with contextlib.suppress(OSError, *WRONG):
            while data := self._sock.recv(frames.READ_BYTES):
                for header, body in self._reader.feed(data):
                    self._on_frame(header, body)

    def close(self) -> None:
        """Closes it, whatever was not sent yet."""
        self._stop_reading()
        self._loop.remove_writer(self._sock)
        self._sock.close()


@functools.cache
def _fence() -> list[tuple[int, int, bytes]]:
    """What goes with the bytes ahead of a large body: any descriptor does, and is thrown away."""
    keep_freed()
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]).tobytes())]
