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


@given(FRAMES, st.lists(st.integers(1, 64), max_size=40), st.booleans())
def test_large_bodies_are_the_same_however_they_are_read(sent, cuts, waits):
    """Some bytes are fed and the rest of a large body is read from the socket, at once or as it comes."""
    stream = b"".join(bytes(part) for header, body in sent for part in frames.pack(header, body))
    reader, got, at = frames.FrameReader(), [], 0
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "LARGE_BYTES", 8)
        for size in [*cuts, *[10_000] * 20]:
            if reader.missing and waits:
                size = reader.missing
            chunk = stream[at : at + size]
            at += len(chunk)
            if reader.missing and chunk:
                theirs.sendall(chunk)
                got += reader.receive_large(ours, 0 if waits else socket.MSG_DONTWAIT) or []
                while not reader.missing and (rest := _waiting(ours)):
                    got += reader.feed(rest)
            else:
                got += reader.feed(chunk)
    assert got == [(list(header), body) for header, body in sent]


@given(st.integers(0, 2**64 - 1), st.text(max_size=63), st.binary(max_size=300))
def test_a_plain_result_is_what_msgpack_makes_of_it(n, request, body):
    made = frames.pack_json_result(n, request.encode(), body)
    assert frames.FrameReader().feed(made) == [([frames.JSON_RESULT, n, request], body)]


def _waiting(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def test_the_end_of_the_stream_in_a_large_body():
    for flags in (0, socket.MSG_DONTWAIT):
        ours, theirs = socket.socketpair()
        reader = frames.FrameReader()
        first, body = frames.pack([1], bytes(frames.LARGE_BYTES))
        assert reader.feed(first) == []
        assert reader.missing == len(body)
        theirs.sendall(body[:10])
        theirs.close()
        assert reader.receive_large(ours, flags) == []
        assert reader.missing == len(body) - 10
        assert reader.receive_large(ours, flags) is None
        ours.close()


@given(st.lists(st.integers(0, 30), max_size=12))
def test_groups_are_everything_in_order_with_a_fence_ahead_of_each_large_body(sizes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "LARGE_BYTES", 20)
        patch.setattr(frames, "FENCED_BYTES", 15)
        pending, written, fenced = [bytes([i]) * size for i, size in enumerate(sizes)], [], set()
        whole = list(pending)
        while pending:
            group, fence = frames.next_group(pending)
            assert group
            if fence:
                assert sum(map(len, group)) <= 15 or len(group) == 1
                fenced.add(len(written) + len(group))
            written += group
            pending = pending[len(group) :]
        assert written == whole
        assert all(i in fenced for i, size in enumerate(sizes) if size >= 20 and i and sizes[i - 1] < 20)


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
