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
IOV_MAX: Final = 1024  # Linux: UIO_MAXIOV

# Agent to worker.
CONFIG: Final = 0  # [CONFIG, {..}]: first frame, once; see functions.worker.Config
REQUEST: Final = 1  # [REQUEST, n, topic, content type or None, fallback id, wants an answer] + payload; where another
# function invoked this one also its client context: a text, base64 of JSON, or empty
STOP: Final = 2  # [STOP]: finish what was received, then exit with 0
CHECK: Final = 3  # [CHECK, n, resource, overrides] + a health check as JSON, see functions.health
RECORD: Final = 4  # [RECORD, n, resource] + the inputs of golden requests as JSON
REPLY: Final = 5  # [REPLY, n, code or None, message or None, function error] + payload: to a CALL that wants one

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
CALL: Final = 16  # [CALL, n or 0: no reply, operation, {..}, n of the request that it is made in or 0] + payload


Buffer: TypeAlias = bytes | bytearray | memoryview
Frame: TypeAlias = tuple[list[Any], bytes]  # header, body


class FrameError(ValueError):
    """The other end sent what is no frame; the connection cannot be trusted further."""


# Made once: three times faster than `msgpack.packb`. Only one thread of a process packs frames.
_pack_header: Final = msgpack.Packer().pack
_pack_prefix: Final = PREFIX.pack
_prefix: Final = PREFIX.unpack_from
_unpack: Final = msgpack.unpackb


def pack(header: Sequence[Any], *buffers: Buffer) -> list[Buffer]:
    """One frame as a list of buffers for a gathered write; `buffers` are not copied. For one thread of a process.

    Raises:
        FrameError: the buffers together are larger than any MQTT packet.
    """
    head = _pack_header(header)
    body = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
    if body > MAX_BODY_BYTES:
        raise FrameError(f"a message of {body} bytes is beyond MQTT's limit of {MAX_BODY_BYTES}")
    return [_pack_prefix(len(head), body) + head, *buffers]


def pack_call(n: int, operation: str, arguments: Mapping[str, Any], during: int, body: bytes) -> bytes:
    """A CALL frame; may be made on any thread, unlike `pack`."""
    head = msgpack.packb([CALL, n, operation, arguments, during])
    return b"".join((PREFIX.pack(len(head), len(body)), head, body))


class FrameReader:
    """Cuts a byte stream into frames. Not thread-safe; keeps at most one incomplete frame.

    Bodies are copied out of the stream's buffer once, so that they outlive the next read.
    """

    __slots__ = ("_buffer", "_wanted")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = 0

    def feed(self, data: Buffer) -> list[Frame]:
        """All frames complete after `data`, in order, as (header, body).

        Raises:
            FrameError: a length beyond the limits, or a header that is no msgpack array.
        """
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
        while end - start >= PREFIX_BYTES:
            head, body = _prefix(data, start)
            if head > MAX_HEADER_BYTES or body > MAX_BODY_BYTES:
                raise FrameError(f"a frame of {head} + {body} bytes is beyond the limits")
            body_at = start + PREFIX_BYTES + head
            after = body_at + body
            if after > end:
                self._wanted = after - start
                break
            frames.append((_header(data[start + PREFIX_BYTES : body_at]), data[body_at:after]))
            start = after
        else:
            self._wanted = PREFIX_BYTES
        if start < end:
            self._buffer += data[start:]
        return frames


def _header(data: bytes) -> list[Any]:
    try:
        header = _unpack(data)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"a frame's header is not msgpack: {error}") from error
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
