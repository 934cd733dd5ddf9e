"""A TCP or TLS stream cut into MQTT packets: everything that waits is read at once, writes leave together.

asyncio's transport does the non-blocking I/O, TLS and back-pressure. This module adds what makes request and response
at QoS 1 take 0.4 ms instead of 44 ms: TCP_NODELAY (asyncio sets it) and TCP_QUICKACK, which Linux drops again by itself
and which is therefore set anew for what is read and not answered at once; and one write for all packets of a loop's
turn. It knows a packet's length and first byte, no more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Protocol, cast

from agent.mqtt.codec import MalformedError, read_varint
from agent.turn import turn_of

logger = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
# How long what was read may wait for something to be written, which acknowledges it too, before the kernel is told to
# acknowledge it. Linux by itself waits 40 ms, and a broker without TCP_NODELAY holds its next packet as long. At each
# read it cost one request at a time 4 % more processor: a call, and a segment that carries nothing.
ACKNOWLEDGE_S = 0.005
# A packet larger than this is refused: what it would take is missing elsewhere on a small device. MQTT 5 brokers are
# told and leave such messages out.
MAX_PACKET_BYTES = 64 * 1024 * 1024
_TCP_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class Receiver(Protocol):
    """Who gets what a stream reads."""

    def packet(self, first: int, data: bytes, at: int, end: int) -> None:
        """One packet: its first byte, and its body at ``data[at:end]``."""

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
        self._view = memoryview(bytearray(READ_BYTES))
        self._rest = bytearray()
        self._wanted = 2
        self._out: list[bytes] = []
        self._flushing = False
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

    def write(self, packet: bytes) -> None:
        """Queues a packet; it leaves with the others of this turn of the loop."""
        self._out.append(packet)
        if not self._flushing:
            self._flushing = True
            self._turn.soon(self.flush)

    def flush(self) -> None:
        """Writes what is queued, in one write."""
        self._flushing = False
        if self._ended:
            self._out.clear()  # an acknowledgement after our DISCONNECT: the broker sends that message again
        elif self._out and self._transport is not None:
            out, self._out = self._out, []
            self._unanswered = False
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

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

    def get_buffer(self, sizehint: int) -> memoryview:
        # A memoryview, because asyncio's TLS slices what it gets here and would otherwise fill a copy.
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        if self._receiver is None:
            return
        self._unanswered = True
        if not self._looking_after:
            self._looking_after = True
            self._loop.call_later(ACKNOWLEDGE_S, self._acknowledge)
        self._turn.begin()
        try:
            self._split(nbytes)
        except MalformedError as error:
            self.abort(error)
        except Exception:
            logger.exception("a packet could not be handled")
            self.abort(MalformedError("a packet could not be handled"))
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
        self._transport = self._socket = None
        if self._receiver is not None:
            receiver, self._receiver = self._receiver, None
            receiver.stream_lost(self._error or exc)

    def _acknowledge(self) -> None:
        """Has the kernel acknowledge what was read, unless something was written since, which did that as well."""
        self._looking_after = False
        if self._unanswered and self._socket is not None and _TCP_QUICKACK is not None:
            try:
                self._socket.setsockopt(socket.IPPROTO_TCP, _TCP_QUICKACK, 1)
            except OSError:
                self._socket = None  # closed under us; connection_lost comes

    def _split(self, nbytes: int) -> None:
        if self._rest:
            self._rest += self._view[:nbytes]
            if len(self._rest) < self._wanted:
                return
            data = bytes(self._rest)
            self._rest.clear()
        else:
            data = bytes(self._view[:nbytes])
        at, size = 0, len(data)
        while self._receiver is not None:
            if size - at < 2:
                self._wanted = 2
                break
            length = data[at + 1]
            body = at + 2
            if length > 127 and size - body > 0 and data[body] < 128:  # most packets are of 128 to 16,383 bytes
                length += (data[body] - 1) << 7
                body += 1
            elif length > 127:
                if size - at < 5 and all(byte > 127 for byte in data[at + 1 :]):
                    self._wanted = size - at + 1
                    break
                length, body = read_varint(data, at + 1, size)
                if length > MAX_PACKET_BYTES:
                    raise MalformedError(f"a packet of {length} bytes; at most {MAX_PACKET_BYTES} are taken")
            end = body + length
            if end > size:
                self._wanted = end - at
                break
            self._receiver.packet(data[at], data, body, end)
            at = end
        if at < size:
            self._rest += data[at:]
