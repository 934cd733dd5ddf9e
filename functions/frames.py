"""The wire between the agent and a worker: frames over a Unix stream socket pair.

A frame is ``u32 header length, u32 body length`` (little endian), the header as a msgpack array whose first element is
the frame's kind, then the body: raw bytes that are never copied into msgpack. The layouts of all headers stand below
and nowhere else. Both ends read all frames that wait with one call and write many frames with one.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgpack

PREFIX: Final = struct.Struct("<II")
PREFIX_BYTES: Final = PREFIX.size
MAX_BODY_BYTES: Final = 256 * 1024 * 1024  # MQTT's own limit for one packet (MQTT 5, 2.1.4)
MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
READ_BYTES: Final = 256 * 1024
JOINED_BYTES: Final = 64 * 1024  # up to here one copy costs less than a list of buffers
LARGE_BYTES: Final = 64 * 1024  # from here a body is worth two calls more to be copied once less
FENCED_BYTES: Final = 16 * 1024  # the kernel keeps so many bytes of one write together
IOV_MAX: Final = 1024  # Linux: UIO_MAXIOV

# Agent to worker.
CONFIG: Final = 0  # [CONFIG, {..}]: first frame, once; see functions.worker.Config
REQUEST: Final = 1  # [REQUEST, n, topic, content type or None, fallback id, wants an answer] + payload; where another
# function invoked this one also its client context: a text, base64 of JSON, or empty
STOP: Final = 2  # [STOP]: finish what was received, then exit with 0
CHECK: Final = 3  # [CHECK, n, resource, overrides] + a health check as JSON, see functions.health
RECORD: Final = 4  # [RECORD, n, resource] + the inputs of golden requests as JSON
REPLY: Final = 5  # [REPLY, n, code or None, message or None, function error, content type or None] + payload: to a CALL

# Worker to agent.
READY: Final = 10  # [READY, {models: [..], import_s, load_s, warm_up_s, max_batch}]: import, load and warm-up are done
FAILED: Final = 11  # [FAILED, code, message]: it will never be ready; the process exits with 1
# [RESULT, n, request id, reply_to or None, [[topic or None, content type, bytes], ..], answer] + outputs. The answer is
# None or [content type, bytes], with a third element where it is a result that is published nowhere. Where the function
# keeps samples one more element: [[reason, input, output], ..], each of the two [content type, bytes] or None
RESULT: Final = 12
ERROR: Final = 13  # [ERROR, n, request id, reply_to or None, code, message]
CHECKED: Final = 14  # [CHECKED, n, code or None, message or None]
RECORDED: Final = 15  # [RECORDED, n, code or None, message or None] + a list of outputs as JSON, one for each request
JSON_RESULT: Final = (
    17  # [JSON_RESULT, n, request id] + the one output, JSON on no topic of its own; no answer is asked
)
CALL: Final = 16  # [CALL, n or 0: no reply, operation, {..}, n of the request that it is made in or 0] + payload


Buffer: TypeAlias = bytes | bytearray | memoryview
Frame: TypeAlias = tuple[list[Any], bytes]  # header, body


class FrameError(ValueError):
    """The other end sent what is no frame; the connection cannot be trusted further."""


# Made once: three times faster than `msgpack.packb`. Only one thread of a process packs frames.
pack_header: Final = msgpack.Packer().pack
pack_prefix: Final = PREFIX.pack
_prefix: Final = PREFIX.unpack_from
# A JSON_RESULT's header in msgpack's own terms, see `pack_json_result`.
MAX_SHORT_TEXT: Final = 255
_ARRAY_3_RESULT: Final = b"\x93\x11\xcf"  # an array of three, JSON_RESULT, and a whole number in eight bytes follows
_TEXT: Final = 0xD9  # a text with its length in one byte
_result_lead: Final = struct.Struct(">3sQBB").pack
_RESULT_BYTES: Final = struct.calcsize(">3sQBB")
_unpack: Final = msgpack.unpackb


def pack(header: Sequence[Any], *buffers: Buffer) -> list[Buffer]:
    """One frame as a list of buffers for a gathered write; `buffers` are not copied. For one thread of a process.

    Raises:
        FrameError: the buffers together are larger than any MQTT packet.
    """
    head = pack_header(header)
    body = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
    if body > MAX_BODY_BYTES:
        raise FrameError(f"a message of {body} bytes is beyond MQTT's limit of {MAX_BODY_BYTES}")
    return [pack_prefix(len(head), body) + head, *buffers]


def pack_json_result(n: int, request: bytes, body: bytes) -> bytes:
    """A JSON_RESULT.

    What ``pack([JSON_RESULT, n, request], body)`` joins to, but for a whole number in more bytes than it needs. Most
    results are of this kind, and msgpack's code, which by then is rarely in the processor's caches, took 5 us of a
    request that comes alone.

    Args:
        request: the request's id, up to `MAX_SHORT_TEXT` bytes.
    """
    short = len(request)
    prefix, lead = pack_prefix(_RESULT_BYTES + short, len(body)), _result_lead(_ARRAY_3_RESULT, n, _TEXT, short)
    return b"".join((prefix, lead, request, body))


def pack_call(n: int, operation: str, arguments: Mapping[str, Any], during: int, body: bytes) -> bytes:
    """A CALL frame; may be made on any thread, unlike `pack`."""
    head = msgpack.packb([CALL, n, operation, arguments, during])
    return b"".join((PREFIX.pack(len(head), len(body)), head, body))


class FrameReader:
    """Cuts a byte stream into frames. Not thread-safe; keeps at most one incomplete frame.

    Bodies are copied out of the stream's buffer once, so that they outlive the next read. A large one that is not all
    there yet can be read to where it stays: while `missing` is not 0, `receive_large` takes the place of a read and
    `feed`. Where its sender made a fence in front of it (`agent.inference.wire`), no byte of it came with other frames,
    and the kernel's copy is the only one.

    Attributes:
        missing: how many bytes of a large body are still to come.
    """

    __slots__ = ("_buffer", "_head", "_large", "_wanted", "missing")

    def __init__(self) -> None:
        self.missing = 0
        self._buffer = bytearray()
        self._wanted = 0
        self._head: list[Any] = []
        self._large: bytearray | None = None  # made when it comes in parts

    def feed(self, data: Buffer) -> list[Frame]:
        """All frames complete after `data`, in order, as (header, body).

        Raises:
            FrameError: a length beyond the limits, or a header that is no msgpack array.
        """
        if self.missing:
            return self._feed_large(data)
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        elif type(data) is not bytes:
            data = bytes(data)  # slices of it are the fastest way to cut frames out
        frames: list[Frame] = []
        start, end = 0, len(data)
        try:
            while end - start >= PREFIX_BYTES:
                head, body = _prefix(data, start)
                body_at = start + PREFIX_BYTES + head
                after = body_at + body
                if after > end:
                    if head > MAX_HEADER_BYTES or body > MAX_BODY_BYTES:
                        raise FrameError(f"a frame of {head} + {body} bytes is beyond the limits")
                    if body >= LARGE_BYTES and end >= body_at:
                        self._head, self.missing = _array(_unpack(data[start + PREFIX_BYTES : body_at])), body
                        return frames + self._feed_large(data[body_at:end])
                    self._wanted = after - start
                    break
                header = _unpack(data[start + PREFIX_BYTES : body_at])
                if type(header) is not list or not header:
                    _array(header)
                frames.append((header, data[body_at:after]))
                start = after
            else:
                self._wanted = PREFIX_BYTES
        except FrameError:
            raise
        except (ValueError, msgpack.UnpackException) as error:
            raise FrameError(f"a frame's header is not msgpack: {error}") from error
        if start < end:
            self._buffer += data[start:]
        return frames

    def receive_large(self, sock: socket.socket, flags: int = 0) -> list[Frame] | None:
        """Reads what is missing of a large body, with one call; [] where there is more to come, None at the end.

        Args:
            flags: MSG_DONTWAIT, or 0 on a socket that blocks.

        Raises:
            OSError: as a read.
        """
        if self._large is None and not flags:
            whole = sock.recv(self.missing, socket.MSG_WAITALL)
            if len(whole) == self.missing:
                return [self._completed(whole)]
            return self._feed_large(whole) if whole else None  # a signal came in between
        target = self._large = bytearray(self.missing) if self._large is None else self._large
        size = sock.recv_into(memoryview(target)[len(target) - self.missing :], 0, flags)
        if not size:
            return None
        self.missing -= size
        return [] if self.missing else [self._completed(bytes(target))]

    def _feed_large(self, data: Buffer) -> list[Frame]:
        """The part of a large body that `data` begins with, and what comes after it."""
        if not data:
            return []
        target = self._large = bytearray(self.missing) if self._large is None else self._large
        part, at = data[: self.missing], len(target) - self.missing
        target[at : at + len(part)] = part
        self.missing -= len(part)
        if self.missing:
            return []
        rest = data[len(part) :]
        return [self._completed(bytes(target)), *(self.feed(rest) if rest else ())]

    def _completed(self, body: bytes) -> Frame:
        head, self._head, self._large, self.missing = self._head, [], None, 0
        return head, body


def next_group(pending: list[Buffer]) -> tuple[list[Buffer], bool]:
    """What of `pending` to write next in one call, and whether a large body follows that wants a fence before it."""
    large = next((i for i, each in enumerate(pending[:IOV_MAX]) if len(each) >= LARGE_BYTES), None)
    if large is None:
        return pending[:IOV_MAX], False
    if large == 0:
        return pending[:1], False
    if sum(map(len, pending[:large])) <= FENCED_BYTES:
        return pending[:large], True
    return (pending[: large - 1], False) if large > 1 else (pending[:1], True)


def _array(header: Any) -> list[Any]:
    if not isinstance(header, list) or not header:
        raise FrameError("a frame's header is no array")
    return header


def send_all(sock: socket.socket, buffers: Iterable[Buffer]) -> None:
    """Writes all buffers to a blocking socket, in as few calls as possible.

    Raises:
        OSError: the other end is gone.
    """
    parts = list(buffers)
    if sum(map(len, parts)) <= JOINED_BYTES:
        sock.sendall(b"".join(parts))
        return
    pending: list[Buffer] = [memoryview(b) for b in parts if len(b)]
    while pending:
        sent = sock.sendmsg(pending[:IOV_MAX])
        pending = rest_after(pending, sent)


def rest_after(pending: Sequence[Buffer], sent: int) -> list[Buffer]:
    """What of `pending` is left when its first `sent` bytes are written."""
    for i, buffer in enumerate(pending):
        if sent < len(buffer):
            return [memoryview(buffer)[sent:], *pending[i + 1 :]]
        sent -= len(buffer)
    return []
