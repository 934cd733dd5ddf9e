"""The wire between the agent and a worker: frames over a Unix stream socket pair.

A frame is ``u32 header length, u32 body length`` (little endian), the header as a msgpack array whose first element is
the frame's kind, then the body: raw bytes that are never copied into msgpack. The layouts of all headers stand below
and nowhere else. Both ends read all frames that wait with one call and write many frames with one.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import msgpack

PREFIX: Final = struct.Struct("<II")
MAX_BODY_BYTES: Final = 256 * 1024 * 1024  # MQTT's own limit for one packet (MQTT 5, 2.1.4)
MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
READ_BYTES: Final = 256 * 1024
JOINED_BYTES: Final = 64 * 1024  # up to here one copy costs less than a list of buffers
IOV_MAX: Final = 1024  # Linux: UIO_MAXIOV

# Agent to worker.
CONFIG: Final = 0  # [CONFIG, {..}]: first frame, once; see functions.worker.Config
REQUEST: Final = 1  # [REQUEST, n, topic, content type or None, fallback id, wants an answer] + payload
STOP: Final = 2  # [STOP]: finish what was received, then exit with 0
CHECK: Final = 3  # [CHECK, n, resource, overrides] + a health check as JSON, see functions.health
RECORD: Final = 4  # [RECORD, n, resource] + the inputs of golden requests as JSON

# Worker to agent.
READY: Final = 10  # [READY, {models: [..], import_s, load_s, warm_up_s, max_batch}]: import, load and warm-up are done
FAILED: Final = 11  # [FAILED, code, message]: it will never be ready; the process exits with 1
# [RESULT, n, request id, reply_to or None, [[topic or None, content type, bytes], ..], answer] + outputs; where the
# function keeps samples one more element, [[reason, input, output], ..], each of the two [content type, bytes] or None
RESULT: Final = 12
ERROR: Final = 13  # [ERROR, n, request id, reply_to or None, code, message]
CHECKED: Final = 14  # [CHECKED, n, code or None, message or None]
RECORDED: Final = 15  # [RECORDED, n, code or None, message or None] + a list of outputs as JSON, one for each request


Buffer: TypeAlias = bytes | bytearray | memoryview
Frame: TypeAlias = tuple[list[Any], bytes]  # header, body


class FrameError(ValueError):
    """The other end sent what is no frame; the connection cannot be trusted further."""


# Made once: three times faster than `msgpack.packb`. Only one thread of a process packs frames.
_pack_header: Final = msgpack.Packer().pack


def pack(header: Sequence[Any], *buffers: Buffer) -> list[Buffer]:
    """One frame as a list of buffers for a gathered write; `buffers` are not copied. For one thread of a process.

    Raises:
        FrameError: the buffers together are larger than any MQTT packet.
    """
    head, body = _pack_header(header), sum(map(len, buffers))
    if body > MAX_BODY_BYTES:
        raise FrameError(f"a message of {body} bytes is beyond MQTT's limit of {MAX_BODY_BYTES}")
    return [PREFIX.pack(len(head), body) + head, *buffers]


class FrameReader:
    """Cuts a byte stream into frames. Not thread-safe; keeps at most one incomplete frame.

    Bodies are copied out of the stream's buffer once, so that they outlive the next read.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: Buffer) -> list[Frame]:
        """All frames complete after `data`, in order, as (header, body).

        Raises:
            FrameError: a length beyond the limits, or a header that is no msgpack array.
        """
        buffer = self._buffer
        whole = not buffer  # most reads hold whole frames alone: these are cut out of `data` itself
        if not whole:
            buffer += data
        frames: list[Frame] = []
        start, end = 0, len(data) if whole else len(buffer)
        with memoryview(data if whole else buffer) as view:
            while end - start >= PREFIX.size:
                head, body = PREFIX.unpack_from(view, start)
                if head > MAX_HEADER_BYTES or body > MAX_BODY_BYTES:
                    raise FrameError(f"a frame of {head} + {body} bytes is beyond the limits")
                body_at = start + PREFIX.size + head
                if end < body_at + body:
                    break
                frames.append((_header(view[start + PREFIX.size : body_at]), bytes(view[body_at : body_at + body])))
                start = body_at + body
            if whole:
                buffer += view[start:]
        if start and not whole:
            del buffer[:start]
        return frames


def _header(data: memoryview) -> list[Any]:
    try:
        header = msgpack.unpackb(data)
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
    pending = [memoryview(b) for b in parts if len(b)]
    while pending:
        sent = sock.sendmsg(pending[:IOV_MAX])
        pending = rest_after(pending, sent)


def rest_after(pending: list[memoryview], sent: int) -> list[memoryview]:
    """What of `pending` is left when its first `sent` bytes are written."""
    for i, view in enumerate(pending):
        if sent < len(view):
            return [view[sent:], *pending[i + 1 :]]
        sent -= len(view)
    return []
