"""The wire between agent and worker, cut in every way that a stream may cut it."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions import frames

HEADERS = st.lists(st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text()), min_size=1)
FRAMES = st.lists(st.tuples(HEADERS, st.binary(max_size=300)), max_size=8)


@given(FRAMES, st.lists(st.integers(1, 64), max_size=40), st.booleans())
def test_any_cut_of_a_stream_gives_the_same_frames(sent, cuts, as_view):
    stream = b"".join(bytes(part) for header, body in sent for part in frames.pack(header, body))
    reader, got, at = frames.FrameReader(), [], 0
    for size in [*cuts, len(stream) + 1]:
        chunk = stream[at : at + size]
        got += reader.feed(memoryview(bytearray(chunk)) if as_view else chunk)
        at += size
    assert got == [(list(header), body) for header, body in sent]


def test_a_body_outlives_the_buffer_that_it_was_read_into():
    stream = bytearray(b"".join(bytes(part) for part in frames.pack([1], b"first")))
    [(_, body)] = frames.FrameReader().feed(memoryview(stream))
    stream[:] = bytes(len(stream))
    assert body == b"first"


@pytest.mark.parametrize(
    "stream",
    [
        frames.PREFIX.pack(frames.MAX_HEADER_BYTES + 1, 0),
        frames.PREFIX.pack(1, frames.MAX_BODY_BYTES + 1),
        frames.PREFIX.pack(1, 0) + b"\xc1",  # never used in msgpack
        frames.PREFIX.pack(1, 0) + b"\x90",  # an empty array
        frames.PREFIX.pack(1, 0) + b"\x01",  # a number
        frames.PREFIX.pack(2, 0) + b"\x91\x92",  # an array that is cut off
    ],
)
def test_what_is_no_frame_is_refused(stream):
    with pytest.raises(frames.FrameError):
        frames.FrameReader().feed(stream)


@given(st.binary(max_size=200))
def test_any_bytes_give_frames_or_a_frame_error(stream):
    try:
        frames.FrameReader().feed(stream)
    except frames.FrameError:
        pass


@pytest.mark.parametrize(("count", "size"), [(3, 10), (3000, 40), (3, 2_000_000), (2500, 0)])
def test_send_all_writes_everything_in_order(count, size):
    ours, theirs = socket.socketpair()
    parts = [bytes([i % 256]) * size for i in range(count)]
    received = bytearray()

    def read():
        while data := theirs.recv(1 << 20):
            received.extend(data)

    thread = threading.Thread(target=read)
    thread.start()
    frames.send_all(ours, parts)
    ours.close()
    thread.join()
    theirs.close()
    assert bytes(received) == b"".join(parts)


@given(st.lists(st.binary(max_size=5), max_size=6), st.data())
def test_rest_after_is_what_was_not_sent(parts, data):
    whole = b"".join(parts)
    sent = data.draw(st.integers(0, len(whole)))
    rest = frames.rest_after([memoryview(part) for part in parts], sent)
    assert b"".join(rest) == whole[sent:]
