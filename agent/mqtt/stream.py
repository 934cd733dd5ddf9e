"""A TCP or TLS stream cut into MQTT packets: everything that waits is read at once, writes leave together.

asyncio's transport does the connecting, the writing with its back-pressure, and TLS. What comes over plain TCP is read
here, within the loop's poll (`agent.loop`). This module adds what makes request and response
at QoS 1 take 0.4 ms instead of 44 ms: TCP_NODELAY (asyncio sets it) and TCP_QUICKACK, which Linux drops again by itself
and which is therefore set anew for what is read and not answered at once; and one write for all packets of a loop's
turn. It knows a packet's length and first byte, and PUBACK, the shortest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Protocol, cast

from agent.loop import turn_of
from agent.mqtt.codec import PUBACK, PUBLISH, MalformedError, read_varint
from agent.mqtt.pace import LOOK_S, Pace

logger = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
# How long what was read may wait for something to be written, which acknowledges it too, before the kernel is told to
# acknowledge it. Linux by itself waits 40 ms, and a broker without TCP_NODELAY holds its next packet as long. At each
# read it cost one request at a time 4 % more processor: a call, and a segment that carries nothing.
ACKNOWLEDGE_S = LOOK_S
MOST_LATE = 8  # acknowledgements that wait for a packet
_ACKNOWLEDGEMENT_BYTES = 4
# A packet larger than this is refused: what it would take is missing elsewhere on a small device. MQTT 5 brokers are
# told and leave such messages out.
MAX_PACKET_BYTES = 64 * 1024 * 1024
_KIND_AND_TWICE = 0xF4  # a packet's kind, and the bit of QoS 2
_TCP_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class Receiver(Protocol):
    """Who gets what a stream reads."""

    def publish(self, first: int, data: bytes, at: int, end: int) -> None:
        """A PUBLISH of QoS 0 or 1: its first byte, and its body at ``data[at:end]``."""

    def puback(self, packet_id: int, reason: int) -> None:
        """A PUBACK."""

    def packet(self, first: int, data: bytes, at: int, end: int) -> None:
        """Any other packet: its first byte, and its body at ``data[at:end]``."""

    def stream_lost(self, error: Exception | None) -> None:
        """The stream is closed: by the peer (None), by an error, or by bytes that are no MQTT (MalformedError)."""


class PacketStream(asyncio.BufferedProtocol):
    """One connection's bytes. Made by the loop's ``create_connection``; everything runs on the loop's thread."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver: Receiver | None = receiver
        self._loop = asyncio.get_running_loop()
        self._turn = turn_of(self._loop)
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._plain: socket.socket | None = None  # what it reads itself: the connection's, without TLS
        self._view: memoryview | None = None  # what asyncio reads into, with TLS
        self._parts: list[bytes] = []  # of a packet that is not all there
        self._held = 0  # bytes in them
        self._wanted = 2
        self._out: list[bytes] = []
        self._flushing = False
        self._pace = Pace()
        self._late: list[bytes] = []
        self._late_for: list[object] = []
        self._clogged = False  # the transport has what could not be written, or had
        self._ended = False
        self._unanswered = False  # something was read since it last wrote
        self._looking_after = False  # a timer is set for that
        self._writable = asyncio.Event()
        self._writable.set()
        self._error: Exception | None = None

    @property
    def congested(self) -> bool:
        """Whether the kernel takes no more and bytes pile up here."""
        return not self._writable.is_set()

    @property
    def brisk(self) -> bool:
        """Whether acknowledgements wait for the next packet."""
        return self._pace.brisk

    @property
    def not_acknowledged(self) -> list[object]:
        """What `write_late` was called for and has not left."""
        return self._late_for

    def write_late(self, packet: bytes, of: object) -> None:
        """Queues an acknowledgement, which may wait for the next packet, two looks at most.

        Args:
            of: what it acknowledges, for `not_acknowledged`.
        """
        if not self._pace.brisk:
            self.write(packet)
            return
        self._late.append(packet)
        self._late_for.append(of)
        if len(self._late) >= MOST_LATE:
            self.write(b"")

    def write(self, packet: bytes) -> None:
        """Queues a packet; it leaves with the others of this turn of the loop."""
        self._out.append(packet)
        if not self._flushing:
            self._flushing = True
            turn = self._turn
            if turn.reading:
                turn.due.append(self.flush)
            else:
                turn.soon(self.flush)

    def flush(self) -> None:
        """Writes what is queued, in one write."""
        self._flushing = False
        late_for = self._late_for
        if self._late:
            self._out[:0] = self._late
            self._late, self._late_for = [], []
        if self._ended:
            self._out.clear()  # an acknowledgement after our DISCONNECT: the broker sends that message again
        elif self._out and self._transport is not None:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out = []
            self._unanswered = False
            plain = self._plain
            if plain is None or (self._clogged and self._transport.get_write_buffer_size()):
                self._transport.write(data)
                return
            # Past the transport, which keeps what the kernel does not take.
            try:
                sent = plain.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._late_for = late_for
                self.abort(error)
                return
            self._clogged = sent < len(data)
            if self._clogged:
                self._transport.write(data[sent:])

    async def drained(self) -> None:
        """Returns when what was written has left for the kernel, but for the last few kilobytes."""
        self.flush()
        await self._writable.wait()

    def end_writing(self) -> None:
        """Writes all that is queued and closes once it has left; TLS says its good-bye."""
        self.flush()
        self._ended = True
        if self._transport is not None:
            if self._transport.can_write_eof():
                self._transport.write_eof()  # the peer closes: closing first, with bytes unread, would be a reset
            else:
                self._transport.close()

    def abort(self, error: Exception | None = None) -> None:
        """Closes at once; the receiver hears of it with `error`."""
        self._error = self._error or error
        # paho's client closes its socket when it is collected, which may be after the loop's end.
        if self._transport is not None and not self._loop.is_closed():
            self._transport.abort()

    def detach(self) -> None:
        """Closes at once, and the receiver hears nothing any more."""
        self._receiver = None
        self.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1024 * 1024)
        self._socket = transport.get_extra_info("socket")
        if transport.get_extra_info("ssl_object") is None and self._socket is not None:
            self._loop.call_soon(self._read_it_here)  # in the same turn, after asyncio's own reader is set

    def _read_it_here(self) -> None:
        """Takes the reading over, by a descriptor of its own for the same connection."""
        if self._transport is None or self._transport.is_closing() or self._socket is None:
            return
        self._transport.pause_reading()
        self._plain = socket.socket(fileno=os.dup(self._socket.fileno()))
        self._turn.add_reader(self._plain.fileno(), self._read)

    def _read(self) -> None:
        assert self._plain is not None
        try:
            data = self._plain.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.abort(error)
            return
        if data:
            self._received(data)
        elif self._transport is not None:
            self._stop_reading()
            self._transport.close()

    def _stop_reading(self) -> None:
        if self._plain is not None:
            self._turn.remove_reader(self._plain.fileno())
            self._plain.close()
            self._plain = None

    def get_buffer(self, sizehint: int) -> memoryview:
        # A memoryview, because asyncio's TLS slices what it gets here and would otherwise fill a copy.
        if self._view is None:
            self._view = memoryview(bytearray(READ_BYTES))
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        assert self._view is not None
        self._turn.begin()
        try:
            self._received(bytes(self._view[:nbytes]))
        finally:
            self._turn.end()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._stop_reading()
        self._transport = self._socket = None
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.stream_lost(self._error or exc)

    def _look_later(self) -> None:
        self._looking_after = True
        self._loop.call_later(ACKNOWLEDGE_S, self._look)

    def _look(self) -> None:
        """Keeps to the pace, and has the kernel acknowledge what was read, unless something was written since.

        What was written did that as well.
        """
        self._looking_after = False
        if self._plain is not None:
            pace, before = self._pace, self._pace.brisk
            if pace.look():
                self._look_later()
            if pace.brisk != before:
                self._change_pace(self._plain)
        if self._unanswered and self._socket is not None and _TCP_QUICKACK is not None:
            try:
                self._socket.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)
            except OSError:
                self._socket = None  # closed under us; connection_lost comes

    def _change_pace(self, plain: socket.socket) -> None:
        """Has the kernel wake us for the broker's acknowledgements only when more comes, or for all again."""
        with contextlib.suppress(OSError):  # closed under us
            size = _ACKNOWLEDGEMENT_BYTES + 1 if self.brisk else 1
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        if not self.brisk:
            self._read()  # what did not wake us: older kernels do not look again
            self.flush()

    def _received(self, data: bytes) -> None:
        """Hands on the packets that are complete with `data`, and keeps the rest."""
        self._unanswered = True
        self._pace.heard += 1
        if not self._looking_after:
            self._look_later()
        if self._parts:
            self._parts.append(data)
            self._held += len(data)
            if self._held < self._wanted:
                return
            data = b"".join(self._parts)
            self._parts, self._held = [], 0
        receiver = self._receiver
        at, size = 0, len(data)
        try:
            while receiver is not None:
                body = at + 2
                if body > size:
                    self._wanted = 2
                    break
                length = data[at + 1]
                if length > 127:
                    if body < size and data[body] < 128:  # most packets are of 128 to 16,383 bytes
                        length += (data[body] - 1) << 7
                        body += 1
                    elif size - at < 5 and all(byte > 127 for byte in data[at + 1 :]):
                        self._wanted = size - at + 1
                        break
                    else:
                        length, body = _long(data, at + 1, size)
                end = body + length
                if end > size:
                    self._wanted = end - at
                    break
                first = data[at]
                if first & _KIND_AND_TWICE == PUBLISH:
                    receiver.publish(first, data, body, end)
                elif first == PUBACK and length == 2:
                    receiver.puback(data[body] << 8 | data[body + 1], 0)
                else:
                    receiver.packet(first, data, body, end)
                at = end
                receiver = self._receiver
        except MalformedError as error:
            self.abort(error)
        except Exception:
            logger.exception("a packet could not be handled")
            self.abort(MalformedError("a packet could not be handled"))
        else:
            if at < size and receiver is not None:
                self._parts, self._held = [data[at:] if at else data], size - at


def _long(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The length of a packet of 16,384 bytes or more, and where its body begins."""
    length, body = read_varint(data, at, end)
    if length > MAX_PACKET_BYTES:
        raise MalformedError(f"a packet of {length} bytes; at most {MAX_PACKET_BYTES} are taken")
    return length, body
